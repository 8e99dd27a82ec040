"""What studies know of a cohort's vertebrae: true values, and features without a network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import POOL
from osteojax.errors import UserError

PLAIN_NUMBERS = (
    "body_mean_hu", "body_sd_hu",
    *(f"body_msd_{axis}{lag}" for axis in ("si", "ap", "rl") for lag in (1, 2, 3)),
)  # fmt: skip
"""Columns of `vertebrae.csv`: mean and deviation of HU in the body, and mean squares of differences
at lags of 1-3 voxels along each axis."""

BODY = 2
"""The plane of the mask record that holds the vertebral body."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """True and measured values of every row of a cohort's table.

    Attributes:
      log_spacing: f64[N], natural log of the true trabecular spacing in mm.
      anisotropy: f64[N], true.
      label: i64[N], osteoporosis by the DXA result, -1 where there is none.
      bmd_g_cm2: f64[N] as measured, NaN where it was not.
      patients: str[N].
    """

    log_spacing: np.ndarray
    anisotropy: np.ndarray
    label: np.ndarray
    bmd_g_cm2: np.ndarray
    patients: np.ndarray


def truth_of(cohort: PreparedCohort, truth: pd.DataFrame) -> Truth:
    """truth: the simulator's `truth.csv`. Raises UserError where a vertebra is not in it."""
    table = cohort.table
    places = pd.MultiIndex.from_arrays([table["scan_id"], table["level"]])
    found = truth.set_index(["scan_id", "level"]).reindex(places)
    spacing = found["trabecular_spacing_mm"].to_numpy(np.float64)
    if np.isnan(spacing).any():
        lost = table.iloc[int(np.argmax(np.isnan(spacing)))]
        raise UserError(
            f"{cohort.directory}: {lost['scan_id']} {lost['level']} is not in the simulator's "
            "truth.csv: the prepared folder is of another cohort."
        )
    return Truth(
        log_spacing=np.log(spacing),
        anisotropy=found["anisotropy"].to_numpy(np.float64),
        label=cohort.labels.osteoporosis.astype(np.int64),
        bmd_g_cm2=cohort.labels.bmd_g_cm2.astype(np.float64),
        patients=table["patient_id"].to_numpy(str),
    )


def plain_numbers(cohort: PreparedCohort) -> np.ndarray:
    """f64[N, 11]: `PLAIN_NUMBERS`, all but the mean in natural log, because they are energies.

    Raises:
      UserError: a folder without them.
    """
    table = cohort.table
    names = list(PLAIN_NUMBERS)
    if missing := [name for name in names if name not in table or table[name].isna().any()]:
        raise UserError(
            f"{cohort.directory}: {missing[0]} is not known of every vertebra. Prepare the cohort "
            "again with this version."
        )
    values = table[names].to_numpy(np.float64)
    # Differences of codes of 5 HU can all be 0, in a body without structure.
    return np.concatenate([values[:, :1], np.log(np.maximum(values[:, 1:], 0.1))], axis=1)


def map_means(cohort: PreparedCohort) -> np.ndarray:
    """f64[N, 4]: mean over the body of each texture map, in the scale that networks see (of grey
    levels, or log(1 + x) of them)."""
    specs = cohort.about.maps[1:]
    means = np.empty((len(cohort), len(specs)))
    for row in range(len(cohort)):
        body = cohort.array(row, "mask")[BODY]
        codes = cohort.members(row, list(POOL[1:]))
        means[row] = [s.offset + s.step * c[body].mean() for s, c in zip(specs, codes, strict=True)]
    return means


def ceiling_features(ceiling: str, cohort: PreparedCohort, truth: Truth) -> np.ndarray:
    """f64[N, P] of one of `plan.CEILINGS`."""
    if ceiling == "truth":
        return np.stack([truth.log_spacing, truth.anisotropy], axis=1)
    if ceiling == "numbers":
        return plain_numbers(cohort)
    if ceiling == "maps":
        return map_means(cohort)
    return cohort.table[["mean_hu"]].to_numpy(np.float64)
