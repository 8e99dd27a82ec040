"""Fields and targets of the pictures: a picture, the direction of its stripes, their width.

meta      UTF-8 JSON, the picture's row of `pictures.csv`
picture   uint8[H, W]
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from osteojax.data.schema import META, SPLITS, Column, Field, Manifest, Rows, Target

ITEMS = "pictures"
DIRECTIONS = ("across", "along")
COLUMNS = (
    Column("patient_id", required=True),
    Column("picture_id", required=True),
    Column("split", "choice", SPLITS, required=True),
    Column("direction", "choice", DIRECTIONS),
    Column("width_px", "number", low=0),
    Column("shard"),
    Column("position", "number"),
)


def fields(size: int) -> tuple[Field, ...]:
    return META, Field("picture", "uint8", (size, size))


def targets(mean: float, std: float) -> tuple[Target, ...]:
    return (
        Target("direction", "class", "direction", classes=DIRECTIONS),
        Target("width", "number", "width_px", "px", mean=mean, std=std),
    )


def about(manifest: Manifest) -> dict[str, float]:
    """Mean and SD of the training pictures' values."""
    return {name: float(manifest.about[name]) for name in ("mean", "std")}


def table_fault(table: pd.DataFrame) -> str | None:
    return None


def labels(rows: Rows) -> Any:
    return rows.targets
