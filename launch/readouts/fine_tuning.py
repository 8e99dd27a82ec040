"""Answers of rows that are fine-tuned: one run of the product for each number of patients.

W/rows/<row>-seed<k>/start/             the encoder's last step, for `init_from`
W/rows/<row>-seed<k>/<n>-patients/      a workdir of `osteojax train` (0: all patients), without its
                                        checkpoints when done; answers-<cohort>.npz; done.json

The label and BMD are the model's own answers, of its last step. Trabecular spacing, which it is not
taught, is read from its embedding as from a frozen one.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from launch.configs import load_config
from launch.readouts import fits
from launch.readouts.encoders import Encoders
from launch.readouts.few_patients import rows_of_few
from launch.readouts.plan import FineTuning, Readout, ReadoutStudy
from launch.studies.folders import finished, slug
from launch.studies.plan import with_settings
from launch.studies.runs import train_alone
from osteojax.data import vertebrae
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from osteojax.files import atomic_path, write_json

KEPT = ("probability", "bmd_g_cm2", "embedding")

Outputs = dict[str, np.ndarray]
"""`KEPT` of every vertebra of a cohort."""


def answers(
    study: ReadoutStudy,
    encoders: Encoders,
    row: Readout,
    seed: int,
    made_with: dict[str, Any],
    folder: Path,
    scored: list[np.ndarray],
) -> list[dict[str, np.ndarray]]:
    """Readout -> f64[M] of the scored rows of each cohort of a row, as `launch.readouts.rows` has
    them.

    Args:
      made_with: what the row depends on.
      folder: of the row.
      scored: i64[M] rows of the row's cohort, and of its new one.

    Raises:
      Busy: another process is at the row's encoder.
      UserError, Stopped: of the training.
    """
    names = [row.cohort, *([row.new] if row.new else [])]
    cohort, truth = encoders.cohort(row.cohort), encoders.truth(row.cohort)
    training, found = cohort.rows("train"), [dict[str, np.ndarray]() for _ in names]
    for count in (0, *(study.few if row.few else ())):
        config = _config(study, encoders, row, seed, count, folder)
        place = folder / f"{count}-patients"
        outputs = _outputs(encoders, config, names, place, {**made_with, "patients": count})
        embedded = np.concatenate([out["embedding"] for out in outputs])
        x = fits.scaled(embedded, np.empty((len(embedded), 0)), training)
        rows, last = rows_of_few(cohort, count, seed), 0
        ridge = fits.ridge(x[rows], truth.log_spacing[rows], truth.patients[rows])
        for answered, own, asked in zip(found, outputs, scored, strict=True):
            answered[f"spacing{count or ''}"] = ridge.predict(x[last + asked])
            answered[f"label{count or ''}"] = own["probability"][asked]
            if not count:
                answered["bmd"] = own["bmd_g_cm2"][asked]
            last += len(own["embedding"])
    return found


def _config(
    study: ReadoutStudy, encoders: Encoders, row: Readout, seed: int, count: int, folder: Path
) -> ConfigDict:
    fine_tuning: FineTuning = study.fine_tunings[row.fine_tuning]
    settings = {**fine_tuning.settings, "objective.patients": count, "seed": seed}
    if study.encoders[row.encoder].trained:
        encoders.embeddings(row.encoder, seed, [])  # makes the encoder if it is not yet
        settings["init_from"] = str(_start(encoders.folder(row.encoder, seed), folder / "start"))
    return with_settings(load_config(fine_tuning.config), settings, f"row {row.name!r}")


def _start(encoder: Path, start: Path) -> Path:
    """A workdir whose best step is the encoder's last, which is the one that is read of encoders;
    `init_from` takes the best step."""
    start.mkdir(parents=True, exist_ok=True)
    for name, target in (("best", "checkpoints"), ("config.json", "config.json")):
        (start / name).unlink(missing_ok=True)
        (start / name).symlink_to((encoder / target).resolve())
    return start


def _outputs(
    encoders: Encoders,
    config: ConfigDict,
    names: list[str],
    folder: Path,
    made_with: dict[str, Any],
) -> list[Outputs]:
    """Outputs of each cohort, by a model that is fine-tuned on the first now if it is not yet."""
    paths = [folder / f"answers-{slug(name)}.npz" for name in names]
    if finished(folder, made_with) is None:
        cohorts = [encoders.cohort(name) for name in names]
        train_alone(config, folder, cohorts[0].directory)
        for cohort, path in zip(cohorts, paths, strict=True):
            outputs = _predicted(config, folder, as_seen_by(cohorts[0], cohort))
            with atomic_path(path) as temporary:
                np.savez(temporary, **{name: outputs[name] for name in KEPT})  # type: ignore[arg-type]
        write_json(folder / "done.json", {"made_with": made_with})
        for name in ("checkpoints", "best"):
            shutil.rmtree(folder / name, ignore_errors=True)
    found = []
    for path in paths:
        with np.load(path) as stored:
            found.append({name: stored[name] for name in KEPT})
    return found


def _predicted(config: ConfigDict, folder: Path, cohort: PreparedCohort) -> Outputs:
    """The last step's answers for every vertebra of a cohort, each with its own DXA scanner."""
    from osteojax import objectives
    from osteojax.checkpoints import load_variables
    from osteojax.objectives.diagnosis import in_units
    from osteojax.train.parallel import DataParallel

    objective: Any = objectives.load(config, cohort)
    devices = DataParallel.create(config.engine)
    _, variables = load_variables(folder, "last")
    params = variables["ema_params"] or variables["params"]
    rows = np.arange(len(cohort))
    outputs = objective.predict(params, variables["model_state"], rows, devices)
    return in_units(outputs, cohort.manifest)


def as_seen_by(own: PreparedCohort, other: PreparedCohort) -> PreparedCohort:
    """The other cohort with the statistics of a run's own: z-scores of maps and of BMD.

    Raises:
      UserError: it has other boxes or other DXA scanners.
    """
    about, others = vertebrae.about(own.manifest), vertebrae.about(other.manifest)
    for name in ("spacing_mm", "shape", "margin", "devices"):
        if getattr(about, name) != getattr(others, name):
            raise UserError(
                f"{other.directory}: {name} is {getattr(others, name)}, and {getattr(about, name)} "
                "in the cohort of the fine-tuning. Prepare both with the same options."
            )
    seen = copy.copy(other)
    seen.manifest = dataclasses.replace(
        other.manifest, about=own.manifest.about, targets=own.manifest.targets
    )
    seen.about = own.about
    return seen
