"""Crops inside vertebral bodies: a row per level, with the body's outline and the crops' places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from launch.inspection import drawing
from launch.inspection.members import shown_planes, title
from osteojax.data.cohort import PreparedCohort
from osteojax.data.places import edge_voxels, find_places, fixed_ranks, share_text
from osteojax.data.vertebra_columns import CROP_MM
from osteojax.data.vertebrae import LEVELS

COUNT = 8
"""Fixed crops that are drawn, as many as make an embedding by default (`data.views`)."""
IN_SLICE, BEHIND = "#ffd500", "#9fd8ff"
"""Colours of crops that the slice cuts, and of others."""


def one_of_each_level(rows: pd.DataFrame) -> pd.DataFrame:
    """A vertebra of each level, from T1 downwards: the first one that the CT does not cut, if there
    is one."""
    order = rows["level"].map(LEVELS.index)
    ordered = rows.assign(order=order).sort_values(["order", "truncated"], kind="stable")
    return ordered.drop_duplicates("level").drop(columns="order")


def draw_crops(cohort: PreparedCohort, rows: pd.DataFrame, out: Path) -> None:
    """Writes a PNG: a row per vertebra, a column per plane through the centre of its body.

    The orange line is the vertebral body. Squares are the fixed crops of `CROP_MM`, projected onto
    the slice: yellow where the slice cuts the crop, pale and dashed where the crop lies before or
    behind it. A body that no crop fits into shows the one crop with the largest share of it.
    """
    about, names = cohort.about, list(drawing.PLANES)
    edge = edge_voxels(CROP_MM, about.spacing_mm)
    figure = drawing.new_figure(2.6 * len(names) + 0.6, 2.2 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for axes, number in zip(grid, rows.index, strict=True):
        _, inside, body = shown_planes(cohort, number)
        hu = about.maps[0].decode(cohort.members(number, ["image"])[0][about.window])
        hu = np.where(inside, hu, np.float32(np.nan))
        places, share = find_places(body, edge, body_share=1.0)
        crops = places[np.unique(fixed_ranks(len(places), COUNT))]
        for axis, name in zip(axes, names, strict=True):
            picture, outline = (drawing.plane(v, name, about.centre) for v in (hu, body))
            scale = drawing.norm(about.maps[0], [picture])
            drawing.draw_slice(axis, picture, outline, about.maps[0], scale)
            for first, cut in squares(crops, edge, name, about.shown, about.centre):
                _draw_square(axis, first, edge, cut)
            drawing.draw_directions(axis, name)
        found = f"{len(places)} places" if share == 1 else f"no place; {share_text(share)} body"
        axes[0].set_ylabel(f"{title(rows.loc[number])}\n{found}", fontsize=7, labelpad=10)
    for axis, name in zip(grid[0], names, strict=True):
        axis.set_title(f"{name}, crops of {edge * about.spacing_mm:g} mm", fontsize=8, pad=12)
    drawing.save(figure, out)


def squares(
    crops: np.ndarray,
    edge: int,
    name: str,
    shape: tuple[int, int, int],
    at: tuple[int, int, int],
) -> list[tuple[tuple[int, int], bool]]:
    """Crops as squares of a picture of `drawing.plane`.

    Args:
      crops: i32[N, 3], first voxels.
      edge: of the crops in voxels.
      name: of the plane.
      shape, at: of the drawn volume, and the voxel that the slice goes through.

    Returns:
      (row, column) of each square's upper left voxel, and whether the slice cuts the crop.
    """
    across = {"sagittal": 2, "coronal": 1, "axial": 0}[name]
    found = []
    for crop in crops.tolist():
        row, column = (first for axis, first in enumerate(crop) if axis != across)
        if name != "axial":  # the picture's first row is the volume's last
            row = shape[0] - row - edge
        found.append(((row, column), crop[across] <= at[across] < crop[across] + edge))
    return found


def _draw_square(axis: Axes, first: tuple[int, int], edge: int, cut: bool) -> None:
    row, column = first
    axis.add_patch(
        Rectangle(
            (column - 0.5, row - 0.5), edge, edge, fill=False, linewidth=1.0 if cut else 0.6,
            edgecolor=IN_SLICE if cut else BEHIND, linestyle="-" if cut else (0, (3, 2)),
        )
    )  # fmt: skip
