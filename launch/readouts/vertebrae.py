"""What studies know of a cohort's vertebrae: true values, and features without a network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from osteojax.data.cohort import PreparedCohort
from osteojax.data.places import BODY_PLANE
from osteojax.data.vertebra_columns import BODY_NUMBERS
from osteojax.data.vertebrae import POOL
from osteojax.errors import UserError
from osteojax.ops.body_numbers import log_squares


@dataclasses.dataclass(frozen=True)
class Truth:
    """True and measured values of every row of a cohort's table.

    Attributes:
      log_spacing: f64[N], natural log of the true trabecular spacing in mm.
      anisotropy: f64[N], true.
      label: i64[N], osteoporosis by the DXA result, -1 where there is none.
      bmd_g_cm2: f64[N] as measured, NaN where it was not.
      texture_number: f64[N] as `prepare` measured it, NaN where the body has none.
      patients: str[N].
    """

    log_spacing: np.ndarray
    anisotropy: np.ndarray
    label: np.ndarray
    bmd_g_cm2: np.ndarray
    texture_number: np.ndarray
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
        texture_number=table["texture_number"].to_numpy(np.float64),
        patients=table["patient_id"].to_numpy(str),
    )


def plain_numbers(cohort: PreparedCohort) -> np.ndarray:
    """f64[N, 11]: `BODY_NUMBERS`, mean squares as natural logarithms as models take them
    (`osteojax.ops.body_numbers.log_squares`); NaN where a body has none.

    Raises:
      UserError: a folder without them.
    """
    values = cohort.table[list(BODY_NUMBERS)].to_numpy(np.float64)
    if np.isnan(values).all():
        raise UserError(
            f"{cohort.directory}: has no numbers of bodies. Prepare the cohort again with this "
            "version."
        )
    return log_squares(values)


def map_statistics(cohort: PreparedCohort, rows: np.ndarray) -> np.ndarray:
    """Means and SDs of the texture maps over the body, in the scale that networks see (of grey
    levels, or log(1 + x) of them).

    Args:
      rows: i64[R] of the cohort.

    Returns:
      f64[R, 8]: the mean of each map, then the SD of each (divided by the number of voxels); NaN
      where a box shows no body.

    Raises:
      UserError: a folder without bodies, or without maps.
    """
    about = cohort.about
    if not about.has_body:
        raise UserError(f"{cohort.directory}: has no bodies. Prepare the cohort again.")
    scales = [(spec.offset, spec.step) for spec in about.maps[1:]]
    found = np.full((len(rows), 2 * len(scales)), np.nan)
    for place, row in enumerate(rows.tolist()):
        body = cohort.array(row, "mask")[BODY_PLANE][about.window]
        if body.any():
            codes = cohort.members(row, list(POOL[1:]))[(..., *about.window)][:, body]
            means = [o + s * c.mean() for (o, s), c in zip(scales, codes, strict=True)]
            deviations = [s * c.std() for (_, s), c in zip(scales, codes, strict=True)]
            found[place] = [*means, *deviations]
    return found


def map_means(cohort: PreparedCohort) -> np.ndarray:
    """f64[N, 4]: the means of `map_statistics` of every row. Raises UserError."""
    return map_statistics(cohort, np.arange(len(cohort)))[:, : len(POOL) - 1]


def ceiling_features(ceiling: str, cohort: PreparedCohort, truth: Truth) -> np.ndarray:
    """f64[N, P] of one of `plan.CEILINGS` but "glcm", which `launch.readouts.glcm` makes."""
    if ceiling == "truth":
        return np.stack([truth.log_spacing, truth.anisotropy], axis=1)
    if ceiling == "numbers":
        return plain_numbers(cohort)
    if ceiling == "maps":
        return map_means(cohort)
    return cohort.table[["mean_hu"]].to_numpy(np.float64)
