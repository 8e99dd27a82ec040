"""The contact sheet: a row per vertebra, for a quick check of the boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.inspection import drawing
from launch.inspection.members import shown_codes, shown_planes, title
from osteojax.data.codes import MapSpec
from osteojax.data.cohort import PreparedCohort


def draw_contact_sheet(cohort: PreparedCohort, rows: pd.DataFrame, out: Path) -> None:
    """Writes a PNG: a row per vertebra with its shown window through the centre of the body,
    sagittal image and maps, and the axial image.

    Sagittal pictures have superior on top and posterior on the right; axial ones have anterior on
    top and the patient's right on the left, by radiological convention. The line is the mask;
    voxels outside the CT are blue.
    """
    specs, at = cohort.about.maps, cohort.about.centre
    columns = len(specs) + 1
    figure = drawing.new_figure(2.3 * columns, 1.75 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, number in zip(grid, rows.index, strict=True):
        volumes, (mask, inside) = shown_codes(cohort, number), shown_planes(cohort, number)[:2]
        views = [*((spec, "sagittal") for spec in specs), (specs[0], "axial")]
        for axis, (spec, name), codes in zip(axes, views, [*volumes, volumes[0]], strict=True):
            values = drawing.plane(spec.decode(codes), name, at)
            values = np.where(drawing.plane(inside, name, at), values, np.float32(np.nan))
            _picture(figure, axis, values, drawing.plane(mask, name, at), spec)
        drawing.draw_directions(axes[0], "sagittal")
        drawing.draw_directions(axes[-1], "axial")
        axes[0].set_ylabel(title(rows.loc[number]), fontsize=7, labelpad=10)
    for axis, name in zip(
        grid[0], [*(f"{spec.name}, sagittal" for spec in specs), "image, axial"], strict=True
    ):
        axis.set_title(name, fontsize=7, pad=11)
    drawing.save(figure, out)


def _picture(figure: Any, axis: Any, values: np.ndarray, mask: np.ndarray, spec: MapSpec) -> None:
    drawn = drawing.draw_slice(axis, values, mask, spec, drawing.norm(spec, [values]))
    drawing.draw_bar(figure, drawn, axis, spec, shrink=0.75, pad=0.07)
