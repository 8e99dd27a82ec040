"""Columns of `vertebrae.csv`, the table of a prepared folder of vertebrae."""

from __future__ import annotations

from collections.abc import Sequence

from osteojax.data.schema import SPLITS, Column

LEVELS = tuple([f"T{i}" for i in range(1, 13)] + [f"L{i}" for i in range(1, 7)])
"""Vertebral levels; the class of a level is its position here plus one (1-18)."""

UNKNOWN_DEVICE = "unknown"
"""Name for a DXA scanner that is not known; always the last entry of `devices`."""

LARGEST_BMD_G_CM2 = 5.0

BODY_LAGS = (1, 2, 3)
"""Distances of the voxels that `BODY_NUMBERS` compare, in voxels."""

BODY_NUMBERS = (
    "body_mean_hu",
    "body_sd_hu",
    *(f"body_msd_{axis}{lag}" for axis in ("si", "ap", "rl") for lag in BODY_LAGS),
)
"""The plain numbers of a body: mean and SD of its HU, and the mean square HU difference of its
voxels 1, 2 and 3 apart along each axis (docs/data.md)."""

CROP_MM = 18.0
"""Edge of the crops that `body_places` and `body_share` count."""


def columns(devices: Sequence[str]) -> tuple[Column, ...]:
    """Columns of `vertebrae.csv`. devices: DXA scanners by index, `UNKNOWN_DEVICE` last."""
    return (
        Column("patient_id", required=True),
        Column("scan_id"),
        Column("site"),
        Column("split", "choice", SPLITS, required=True),
        Column("level", "choice", LEVELS, required=True),
        Column("level_class", "number", required=True, whole=True, low=1, high=len(LEVELS)),
        Column("device", "choice", tuple(devices)),  # empty where there is no DXA result
        Column("bmd_g_cm2", "number", low=0.001, high=LARGEST_BMD_G_CM2),
        Column("t_score", "number"),
        Column("osteoporosis", "number", whole=True, low=0, high=1),
        Column("sex"),
        Column("age", "number"),
        Column("truncated", "number"),  # 1 where the mask touches the border of the CT
        Column("posterior_rule"),  # "elements" or "header": where the posterior axis came from
        Column("axial_rule"),  # "neighbours" or "header"
        # Mean unclipped HU of the label's voxels inside the box, in the original CT.
        Column("mean_hu", "number"),
        Column("mask_volume_mm3", "number"),  # of the label in the original CT
        Column("slice_mm", "number", added_later=True),  # distance of the original CT's slices
        # Of the vertebral body; empty where the folder or the vertebra has none (docs/data.md).
        Column("body_places", "number", whole=True, low=0, added_later=True),
        Column("body_share", "number", low=0, high=1, added_later=True),
        Column("texture_number", "number", added_later=True),  # ln HU^2
        *(Column(name, "number", added_later=True) for name in BODY_NUMBERS),  # HU, HU^2
        Column("shard"),  # file name
        # Index of the vertebra in its shard; its first record is position * number of fields.
        Column("position", "number"),
    )


VERTEBRA_COLUMNS = tuple(column.name for column in columns(()))
