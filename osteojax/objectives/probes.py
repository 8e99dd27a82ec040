"""Frozen probes of pre-training: what a linear readout of the images' embeddings tells.

Most of them need labels. The texture probe needs none: its target is the texture number that
`osteojax prepare` measures of every vertebral body (docs/data.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from osteojax.data.cohort import PreparedCohort
from osteojax.evaluation.statistics import bootstrap
from osteojax.objectives import diagnostics

log = logging.getLogger(__name__)

TEXTURE_COLUMN = "texture_number"
MOST_ROWS = 1000
"""Vertebrae of a split that the texture probe embeds at most: validation costs time."""


def frozen_probes(
    cohort: PreparedCohort,
    embed: Callable[[np.ndarray], np.ndarray],
    label_probe: str = "logistic",
) -> dict[str, float]:
    """Probes that are fitted on training vertebrae and scored on those of validation.

    Args:
      embed: i64[N] rows -> f32[N, F].
      label_probe: as of `diagnostics.probe_metrics`.

    Returns:
      the metrics of `diagnostics.probe_metrics`, on labelled vertebrae, and those of
      `texture_probe`, on all whose body has the number; absent where no body has.
    """
    labelled, textured = [], []
    found: dict[int, np.ndarray] = {}
    for split in ("train", "valid"):
        labelled.append(cohort.rows(split, labelled=True))
        textured.append(rows_with_texture(cohort, split))
        rows = np.union1d(labelled[-1], textured[-1])
        if len(rows):
            found |= dict(zip(rows.tolist(), embed(rows), strict=True))

    def of(rows: np.ndarray) -> np.ndarray:
        return np.array([found[row] for row in rows.tolist()], np.float32)

    train, valid = labelled
    metrics = diagnostics.probe_metrics(cohort, train, of(train), valid, of(valid), label_probe)
    train, valid = textured
    if len(train) >= 2 and len(valid) >= 2:
        numbers = cohort.table[TEXTURE_COLUMN].to_numpy(np.float64)
        patients = cohort.table["patient_id"].to_numpy()[valid]
        metrics |= texture_probe(of(train), numbers[train], of(valid), numbers[valid], patients)
    return metrics


def warn(cohort: PreparedCohort, warned: set[str]) -> None:
    """Logs, once per run, that the texture probe is left out. warned: names of the warnings that
    the run has logged; this one is added."""
    if "texture" not in warned:
        warned.add("texture")
        log.warning(
            "%s: its table has no %s for both training and validation, so "
            "valid/texture_probe_r is left out. Prepare the cohort again with this version to "
            "have it.", cohort.directory, TEXTURE_COLUMN,
        )  # fmt: skip


def rows_with_texture(cohort: PreparedCohort, split: str) -> np.ndarray:
    """i64[at most MOST_ROWS]: vertebrae of a split whose texture number is known, evenly spaced."""
    rows = cohort.rows(split)
    if TEXTURE_COLUMN not in cohort.table:
        return rows[:0]
    rows = rows[cohort.table[TEXTURE_COLUMN].notna().to_numpy()[rows]]
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(int)]


def texture_probe(
    train_NF: np.ndarray,
    train_N: np.ndarray,
    valid_NF: np.ndarray,
    valid_N: np.ndarray,
    patients_N: np.ndarray,
) -> dict[str, float]:
    """Pearson's r of a ridge readout with the texture number, fitted on the first two.

    Args:
      train_NF, valid_NF: f32 embeddings. All channels are divided by one scale, as for the other
        probes.
      train_N, valid_N: f64 texture numbers, ln(HU^2).
      patients_N: of validation.

    Returns:
      texture_probe_r, in -1 to 1; 0 where the readout or the number does not vary. And
      texture_probe_low and texture_probe_high, its 95% interval of a bootstrap over validation
      patients; absent where they are fewer than 10.
    """
    train_NF, valid_NF = diagnostics.on_one_scale(train_NF, valid_NF)
    read_N = diagnostics.ridge_readout(train_NF, train_N, valid_NF).astype(np.float64)
    if min(np.ptp(read_N), np.ptp(valid_N)) < 1e-9:
        return {"texture_probe_r": 0.0}
    metrics = {"texture_probe_r": float(np.corrcoef(read_N, valid_N)[0, 1])}
    interval = bootstrap.correlation_interval(valid_N, read_N, patients_N)
    if interval is not None:
        metrics["texture_probe_low"], metrics["texture_probe_high"] = interval
    return metrics
