"""What a vertebra's record holds: its texture pool, levels, columns and how values are stored."""

from __future__ import annotations

import math

import numpy as np

from osteojax.data.codes import MapSpec

POOL = ("image", "Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")
"""The texture pool (paper, section 2.1), by PyRadiomics' own names; the order is the map id."""

IMAGE_ONLY = POOL[:1]
"""What a folder stores of the pool when training makes the maps itself."""

LEVELS = tuple([f"T{i}" for i in range(1, 13)] + [f"L{i}" for i in range(1, 7)])
"""Vertebral levels; the class of a level is its position here plus one (1-18)."""

UNKNOWN_DEVICE = "unknown"
"""The device of a vertebra whose DXA scanner is not known; always the last entry of `devices`."""

HU_MIN, HU_MAX = -200.0, 1000.0
"""HU are clipped to [HU_MIN, HU_MAX) (docs/method.md)."""
IMAGE_STEP_HU = 5.0
"""Width of an image code. It divides the GLCM bin width, so codes keep every grey level."""

VERTEBRA_COLUMNS = (
    "patient_id",
    "scan_id",
    "site",
    "split",
    "level",  # "L1"
    "level_class",  # 1-18
    "device",  # name, "unknown", or empty where there is no DXA result
    "bmd_g_cm2",  # empty where there is no DXA result
    "t_score",
    "osteoporosis",  # 1, 0, or empty
    "sex",
    "age",
    "truncated",  # 1 where the mask touches the border of the CT
    "posterior_rule",  # "elements" or "header": where the posterior axis came from
    "axial_rule",  # "neighbours" or "header"
    "mean_hu",  # mean unclipped HU of the label's voxels inside the ROI, in the original CT
    "mask_volume_mm3",  # of the label in the original CT
    "slice_mm",  # distance of the original CT's slices (`OPTIONAL_COLUMNS`)
    "shard",  # file name
    "position",  # of the vertebra in its shard; its first record is position * len(record_keys)
)

OPTIONAL_COLUMNS = ("slice_mm",)
"""Columns that folders of earlier versions lack; they are read as empty."""


def level_class(level: str) -> int:
    """The class 1-18 of a level's name, T1 to L6. Raises KeyError for another name."""
    if level not in LEVELS:
        raise KeyError(f"{level!r} is not a vertebral level; levels are T1-T12 and L1-L6")
    return LEVELS.index(level) + 1


def record_keys(stored: tuple[str, ...] = POOL) -> tuple[str, ...]:
    """Keys of a vertebra's records, in order, in a folder that stores these members of the pool."""
    return ("meta", *stored, "mask")


def image_spec() -> MapSpec:
    """The HU image: 240 half-open codes of 5 HU from -200, decoded at their middle."""
    return MapSpec("image", "HU", "linear", HU_MIN + IMAGE_STEP_HU / 2, IMAGE_STEP_HU, 240)


def map_spec(name: str, bin_width: float) -> MapSpec:
    """Fixed-range uint8 storage of a texture map over grey levels 1..(HU_MAX-HU_MIN)/bin_width.

    Ranges are known in advance, so nothing has to be read twice to write it (docs/method.md).
    Features of differences are small nearly everywhere: log1p spends the codes where values are.
    """
    levels = math.ceil((HU_MAX - HU_MIN) / bin_width)
    ranges = {
        "Autocorrelation": ("grey level^2", "log1p", np.log1p(1.0), np.log1p(levels**2)),
        "JointAverage": ("grey level", "linear", 1.0, float(levels)),
        "Contrast": ("grey level^2", "log1p", 0.0, np.log1p((levels - 1) ** 2)),
        "DifferenceAverage": ("grey level", "log1p", 0.0, np.log1p(levels - 1)),
    }
    unit, transform, low, high = ranges[name]
    return MapSpec(name, unit, transform, float(low), float((high - low) / 255), 256)
