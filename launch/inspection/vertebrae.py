"""What `osteojax inspect` shows for vertebrae: their texture pool, and pictures of some of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from launch.inspection.contact_sheet import draw_contact_sheet
from launch.inspection.crops import draw_crops, one_of_each_level
from launch.inspection.histograms import Histograms, count_codes, draw_histograms, ends
from launch.inspection.members import choose, named, shape_text, stores_maps
from launch.inspection.slices import draw_slices, slices_path
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import About


def facts(cohort: PreparedCohort) -> list[tuple[str, str]]:
    """Geometry, texture and scanners, as (name, value)."""
    about: About = cohort.about
    return [
        ("box", _box(about)),
        ("stored", _stored(about)),
        ("texture", ", ".join(f"{key} {value}" for key, value in about.texture.items())),
        ("label scheme", about.label_scheme),
        ("devices", ", ".join(about.devices)),
    ]


def _box(about: About) -> str:
    text = f"{about.box}, {shape_text(about.shape)} voxels of {about.spacing_mm:g} mm"
    if about.margin:
        text += f" with a margin of {about.margin}; {shape_text(about.shown)} are shown"
    return text


def _stored(about: About) -> str:
    if stores_maps(about):
        return "image and maps"
    return f"{', '.join(about.stored)} only: training makes the maps (data.textures=online)"


def tables(cohort: PreparedCohort) -> list[Table]:
    """Tables of the texture pool."""
    return [maps_table(cohort.about), statistics_table(cohort.about)]


def pictures(
    cohort: PreparedCohort, count: int, wanted: str, sheet: Path, folder: Path
) -> Iterator[tuple[str, Path | Table]]:
    """Draws pictures; yields each written file, or a table about it, when it is done.

    Args:
      count: number of vertebrae of the contact sheet.
      wanted: vertebrae whose slices are drawn: a number, or SCAN_ID/LEVEL names with commas.
      sheet: file of the contact sheet.
      folder: for the other pictures.

    Raises:
      UserError: a name that the folder does not have.
    """
    sliced = _sliced(cohort.table, wanted)
    draw_contact_sheet(cohort, choose(cohort.table, count), sheet)
    yield "contact sheet", sheet
    histograms = count_codes(cohort)
    draw_histograms(cohort, histograms, folder / "histograms.png")
    yield "", ends_table(cohort.about, histograms)
    yield "histograms", folder / "histograms.png"
    if cohort.about.has_body:
        draw_crops(cohort, one_of_each_level(cohort.table), folder / "crops.png")
        yield "crops", folder / "crops.png"
    for number, row in sliced.iterrows():
        draw_slices(cohort, int(str(number)), slices_path(folder, row))
        yield "slices", slices_path(folder, row)


def _sliced(rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """The rows that `wanted` asks for."""
    if not wanted.isdecimal():
        return named(rows, wanted.split(","))
    return choose(rows, int(wanted)) if int(wanted) else rows.head(0)


def maps_table(about: About) -> Table:
    """Table of how each member of the pool is stored."""
    table = Table(title="texture pool")
    table.add_column("map", no_wrap=True)
    for head in ("unit", "stored as", "range", "step of the transformed value"):
        table.add_column(head)
    for spec in about.maps:
        low, high = spec.decode(np.array([0, spec.codes - 1], np.uint8))
        table.add_row(
            spec.name, spec.unit, spec.transform, f"{low:g} to {high:g}", f"{spec.step:.4g}"
        )
    return table


def statistics_table(about: About) -> Table:
    """Table of mean and SD of each member of the pool, by region."""
    table = Table(title="mean and SD")
    table.add_column("map", no_wrap=True)
    for region in about.statistics:
        table.add_column(region)
    for member, spec in enumerate(about.maps):
        pairs = [about.statistics[region][member] for region in about.statistics]
        table.add_row(spec.name, *(f"{mean:.4g}, {std:.4g}" for mean, std in pairs))
    table.caption = "of the transformed value, over the training split"
    return table


def ends_table(about: About, found: Histograms) -> Table:
    """Table of the shares of voxels at either end of each map's stored range."""
    table = Table(title=f"codes of {len(found.rows)} vertebrae")
    table.add_column("map", no_wrap=True)
    for region in found.counts:
        for end in ("lowest", "highest"):
            table.add_column(f"{region},\n{end}", justify="right")
    for member, spec in enumerate(about.maps):
        shares = [s for counts in found.counts.values() for s in ends(counts[member], spec)]
        table.add_row(spec.name, *(f"{share:.3%}" for share in shares))
    table.caption = "share of voxels in the lowest and in the highest code of the stored range"
    return table
