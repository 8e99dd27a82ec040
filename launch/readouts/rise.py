"""What pre-training adds to a frozen readout of texture, on patients that it did not train on.

A readout is ridge regression of a number on embeddings of training patients; r is scored on all
other patients. Numbers are the texture number, which every prepared folder has and which is no
truth about the bone (docs/data.md), and the true trabecular spacing of a simulated cohort.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.readouts import fits
from launch.readouts.encoders import variables
from launch.readouts.vertebrae import truth_of
from osteojax.data.cohort import PreparedCohort
from osteojax.evaluation import compare
from osteojax.evaluation.report.cells import Shown
from osteojax.evaluation.statistics import bootstrap


@dataclasses.dataclass(frozen=True)
class Rise:
    """r of one number at the start and at the end of a pre-training.

    Attributes:
      number: what is read.
      start, end: Pearson's r, with their 95% intervals over patients; None for fewer than 10.
      rise: end - start, with its 95% interval over the same resamples of patients.
      patients: that r is of.
    """

    number: str
    start: tuple[float, list[float] | None]
    end: tuple[float, list[float] | None]
    rise: tuple[float, list[float] | None]
    patients: int


def rises(workdir: Path, pool: Path, simulated: Path) -> list[Rise]:
    """Embeds a cohort with the network that `osteojax train` began with, and with its last step.

    Args:
      workdir: of a pre-training.
      pool: the prepared folder that it was trained on.
      simulated: the folder that `osteojax simulate` wrote of that cohort. Only the readout is told
        its truth.

    Returns:
      the texture number, then the logarithm of the true spacing.
    """
    from osteojax import objectives
    from osteojax.export.write import load_run
    from osteojax.objectives.encoder import image_statistics
    from osteojax.train.parallel import DataParallel

    config, _ = load_run(workdir)
    cohort = PreparedCohort(pool)
    objective: Any = objectives.load(config, cohort)
    devices = DataParallel.create(config.engine)
    known = truth_of(cohort, pd.read_csv(simulated / "truth.csv"))
    rows, embedded = np.arange(len(cohort)), []
    for folder in (None, workdir):
        params, state = variables(objective, config, devices, folder)
        embedded.append(objective.embeddings(params, image_statistics(state), rows, devices))
    training = (cohort.table["split"] == "train").to_numpy()
    named = {"texture number": known.texture_number, "true spacing": known.log_spacing}
    return [
        rise_of(name, embedded[0], embedded[1], target, known.patients, training)
        for name, target in named.items()
    ]


def rise_of(
    name: str,
    start_NF: np.ndarray,
    end_NF: np.ndarray,
    target_N: np.ndarray,
    patients_N: np.ndarray,
    training_N: np.ndarray,
) -> Rise:
    """Args: f[N, F] embeddings, f[N] what is read (NaN where it is not known), [N] patients, and
    bool[N], which vertebrae fit the readout; all others score it."""
    known = np.isfinite(target_N)
    fitted, scored = np.flatnonzero(training_N & known), np.flatnonzero(~training_N & known)
    truth, patients = target_N[scored], patients_N[scored]
    read = []
    for embedding in (start_NF, end_NF):
        x = fits.scaled(embedding, np.empty((len(embedding), 0)), fitted)
        model = fits.ridge(x[fitted], target_N[fitted], patients_N[fitted])
        read.append(model.predict(x[scored]))
    start, end = (
        (float(np.corrcoef(one, truth)[0, 1]), bootstrap.correlation_interval(truth, one, patients))
        for one in read
    )
    paired = compare.compare_bmd(truth, read[1], read[0], patients)["difference"]["r"]
    rise = end[0] - start[0], paired["interval"]
    return Rise(name, start, end, rise, len(np.unique(patients)))


def table(rises: Sequence[Rise]) -> Shown:
    """For the terminal: r before pre-training and after it, and its rise."""
    rows = tuple(
        (one.number, *(_with_interval(*r) for r in (one.start, one.end, one.rise))) for one in rises
    )
    patients = rises[0].patients
    return Shown(
        f"Frozen readout of texture: r, and 95% interval over {patients} patients not trained on",
        ("", "before pre-training", "after it", "rise"),
        rows,
    )


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
