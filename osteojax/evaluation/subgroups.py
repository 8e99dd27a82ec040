"""Subgroups of vertebrae: by DXA scanner, sex, age, slice distance and level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from osteojax.data.vertebrae import LEVELS

NO_DEVICE = "no DXA"
"""Name in tables for rows with an empty device."""
UNKNOWN = "unknown"

Bands = Sequence[tuple[float, float, str]]

AGE_BANDS = (
    (0, 50, "under 50"),
    (50, 60, "50-59"),
    (60, 70, "60-69"),
    (70, 80, "70-79"),
    (80, np.inf, "80 and over"),
)
"""Age bands: from (inclusive), to (exclusive) years, name."""

SLICE_BANDS = (
    (0, 1.25, "up to 1.25 mm"),
    (1.25, 2.5, "1.25-2.5 mm"),
    (2.5, 5, "2.5-5 mm"),
    (5, np.inf, "over 5 mm"),
)
"""Bands of slice distance: from (exclusive), to (inclusive) mm, name."""


def age_band(age: float) -> str:
    """Name of the age band; "unknown" for NaN."""
    found = [name for low, high, name in AGE_BANDS if low <= age < high]
    return found[0] if found else UNKNOWN


def slice_band(slice_mm: float) -> str:
    """The name of the band of slice distances; "unknown" for NaN."""
    found = [name for low, high, name in SLICE_BANDS if low < slice_mm <= high]
    return found[0] if found else UNKNOWN


def device_names(table: pd.DataFrame) -> pd.Series:
    """The device column with a name for the empty one."""
    return table["device"].where(table["device"] != "", NO_DEVICE)


def groupings(table: pd.DataFrame, unit: str) -> tuple[dict[str, pd.Series], dict[str, str]]:
    """The subgroups of each row of a checked table.

    Args:
      unit: of `summary.UNITS`; levels are subgroups of vertebrae only.

    Returns:
      grouping -> str[N] name of the row's subgroup, and why a grouping cannot be made.
    """
    found = {
        "sex": table["sex"].where(table["sex"] != "", UNKNOWN),
        "age": table["age"].map(age_band),
        "device": device_names(table),
        "site": table["site"],
    }
    notes = {}
    if len(table) and table["slice_mm"].isna().all():
        notes["slice thickness"] = (
            "the prepared folder has no slice distances (an earlier version prepared it); "
            "prepare the cohort again"
        )
    else:
        found["slice thickness"] = table["slice_mm"].map(slice_band)
    if unit == "vertebra":
        found["level"] = table["level"]
    return found, notes


def in_order(names: set[str]) -> list[str]:
    """Sorts levels from the head down, bands from the smallest up, other names alphabetically."""
    known = [*LEVELS, *(band[-1] for band in (*AGE_BANDS, *SLICE_BANDS))]
    return sorted(names, key=lambda name: (known.index(name) if name in known else 99, name))
