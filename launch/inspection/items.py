"""What `osteojax inspect` shows for a kind without an inspection module of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from launch.inspection import drawing
from launch.inspection.members import spread
from osteojax.data.cohort import PreparedCohort


def facts(cohort: PreparedCohort) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in cohort.manifest.about.items()]


def tables(cohort: PreparedCohort) -> list[Table]:
    return []


def pictures(
    cohort: PreparedCohort, count: int, wanted: str, sheet: Path, folder: Path
) -> Iterator[tuple[str, Path | Table]]:
    """Draws a row per item, evenly spread over the folder, and a column per field; of a volume the
    middle plane. `wanted` and `folder` are for kinds that draw more."""
    names = [field.name for field in cohort.manifest.fields[1:]]
    rows = spread(count, len(cohort))
    figure = drawing.new_figure(2.3 * len(names), 1.9 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        for axis, name in zip(axes, names, strict=True):
            axis.imshow(_plane(cohort.array(int(row), name)), cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].set_ylabel(_title(cohort, int(row)), fontsize=7)
    for axis, name in zip(grid[0], names, strict=True):
        axis.set_title(name, fontsize=8)
    drawing.save(figure, sheet)
    yield "contact sheet", sheet


def _plane(values: np.ndarray) -> np.ndarray:
    """[H, W] of an array: the middle plane of a volume, index 0 along further leading axes."""
    while values.ndim > 3:
        values = values[0]
    return values[len(values) // 2] if values.ndim == 3 else np.atleast_2d(values)


def _title(cohort: PreparedCohort, row: int) -> str:
    """The patient and the known targets."""
    table = cohort.table.iloc[row]
    values = {target.name: table[target.column] for target in cohort.manifest.targets}
    known = [
        f"{name} {'unknown' if value == '' or pd.isna(value) else value}"
        for name, value in values.items()
    ]
    return "\n".join([table["patient_id"], *known])
