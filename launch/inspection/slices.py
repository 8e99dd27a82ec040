"""Orthogonal slices of every map of one vertebra, through the centre of its body."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from launch.inspection import drawing
from launch.inspection.members import shape_text, shown_codes, shown_planes, stores_maps, title
from osteojax.data.cohort import PreparedCohort


def slices_path(folder: Path, row: pd.Series) -> Path:
    """`slices_<scan_id>_<level>.png`; characters not allowed in file names are percent-encoded."""
    return folder / f"slices_{quote(row['scan_id'], safe=' ')}_{row['level']}.png"


def draw_slices(cohort: PreparedCohort, number: int, out: Path) -> None:
    """Writes a PNG of one row of the folder's table: a column per map, a row per plane.

    A map's three pictures share one colour scale, in its unit, linear or logarithmic as it is
    stored. The line is the mask; voxels outside the CT are blue.
    """
    about, row = cohort.about, cohort.table.iloc[number]
    volumes, (mask, inside) = shown_codes(cohort, number), shown_planes(cohort, number)[:2]
    figure = drawing.new_figure(2.1 * len(about.maps), 7.4)
    grid = figure.subplots(len(drawing.PLANES), len(about.maps), squeeze=False)
    for column, (spec, codes) in enumerate(zip(about.maps, volumes, strict=True)):
        values = np.where(inside, spec.decode(codes), np.float32(np.nan))
        pictures = {name: drawing.plane(values, name, about.centre) for name in drawing.PLANES}
        scale = drawing.norm(spec, pictures.values())
        for axis, (name, picture) in zip(grid[:, column], pictures.items(), strict=True):
            outline = drawing.plane(mask, name, about.centre)
            drawn = drawing.draw_slice(axis, picture, outline, spec, scale)
            if column == 0:
                drawing.draw_directions(axis, name)
        drawing.draw_bar(
            figure, drawn, grid[:, column], spec, location="bottom", shrink=0.92, pad=0.01
        )
        grid[0, column].set_title(spec.name, fontsize=9, pad=12)
    for axis, name in zip(grid[:, 0], drawing.PLANES, strict=True):
        axis.set_ylabel(name, fontsize=9, labelpad=12)
    box = f"{about.box} of {shape_text(about.shown)} voxels of {about.spacing_mm:g} mm"
    heading = f"{title(row, ', ')}; {box}"
    if not stores_maps(about):
        heading += "\nmaps made for this picture: the folder stores the image alone"
    figure.suptitle(heading, fontsize=9)
    drawing.save(figure, out)
