"""Prints what a prepared folder holds and draws a contact sheet of vertebrae and their maps.

example:
  osteojax inspect prepared --vertebrae 6

Look at the sheet before training: vertebrae upright, spinous process on the right of the sagittal
pictures, whole body in the frame.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from osteojax.data.cohort import PreparedCohort
from osteojax.data.schema import HU_MIN, Manifest, MapSpec
from osteojax.errors import UserError
from osteojax.files import atomic_path

WINDOW_HU = (HU_MIN, 600.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="written by osteojax prepare")
    parser.add_argument("--out", type=Path, help="PNG; default: DIR/contact_sheet.png")
    parser.add_argument("--vertebrae", type=int, default=6, help="rows of the contact sheet")


def run(args: argparse.Namespace) -> int:
    if args.vertebrae < 1:
        raise UserError(f"--vertebrae {args.vertebrae}: draw at least one.")
    cohort = PreparedCohort(args.directory)
    manifest = cohort.manifest
    console = Console()
    for table in (summary(manifest), maps_table(manifest), shards_table(manifest)):
        console.print(table)
    for name, file in (("failures", "failures.csv"), ("excluded", "excluded.csv")):
        path = args.directory / file
        if path.is_file():
            count = len(pd.read_csv(path, dtype=str))
            console.print(f"{count} {name}: {path}", highlight=False, soft_wrap=True)
    out = args.out or args.directory / "contact_sheet.png"
    draw_contact_sheet(cohort, choose(cohort.table, args.vertebrae), out)
    console.print(f"contact sheet: {out}", highlight=False, soft_wrap=True)
    return 0


def summary(manifest: Manifest) -> Table:
    """Geometry, texture, labels and counts."""
    table = Table("cohort", "", show_header=False, title="manifest")
    size, counts = manifest.size, manifest.counts
    texture = ", ".join(f"{key} {value}" for key, value in manifest.texture.items())
    for name, value in (
        ("ROI", f"{size}^3 voxels of {manifest.spacing_mm:g} mm"),
        ("texture", texture),
        ("label scheme", manifest.label_scheme),
        ("devices", ", ".join(manifest.devices)),
        ("BMD of training", f"{manifest.bmd_mean:.4f} +- {manifest.bmd_std:.4f} g/cm^2"),
        *(
            (
                split,
                f"{count['patients']} patients, {count['vertebrae']} vertebrae, "
                f"{count['labelled']} labelled",
            )
            for split, count in counts.items()
        ),
        ("written by", f"osteojax {manifest.code_version}"),
    ):
        table.add_row(name, value)
    return table


def maps_table(manifest: Manifest) -> Table:
    """Storage and statistics of each member of the pool."""
    table = Table("map", "unit", "stored as", "range", "step", "mean", "std", title="texture pool")
    for spec in manifest.maps:
        low, high = spec.decode(np.array([0, spec.codes - 1], np.uint8))
        table.add_row(
            spec.name,
            spec.unit,
            spec.transform,
            f"{low:g} to {high:g}",
            f"{spec.step:.4g}",
            f"{spec.mean:.4g}",
            f"{spec.std:.4g}",
        )
    table.caption = "step, mean and std of the transformed value"
    return table


def shards_table(manifest: Manifest) -> Table:
    """Files and their vertebrae; the first ten."""
    table = Table("shard", "vertebrae", title=f"{len(manifest.shards)} shards")
    for shard in manifest.shards[:10]:
        table.add_row(shard["name"], str(shard["vertebrae"]))
    return table


def choose(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Vertebrae spread evenly over the folder, in record order; labelled ones where enough."""
    labelled = rows[rows["osteoporosis"].notna()]
    rows = labelled if len(labelled) >= count else rows
    positions = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    return rows.iloc[positions]


def draw_contact_sheet(cohort: PreparedCohort, rows: pd.DataFrame, out: Path) -> None:
    """Writes a PNG: a row per vertebra, mid-sagittal image and maps, and the mid-axial image.

    Sagittal pictures have superior on top and posterior on the right; axial ones have anterior on
    top and the patient's right on the left, as radiologists look at them. The line is the mask.
    """
    manifest = cohort.manifest
    names = [spec.name for spec in manifest.maps]
    # A Figure of its own, not pyplot: no global backend is touched.
    columns = len(manifest.maps) + 1
    figure = Figure(figsize=(2.3 * columns, 1.75 * len(rows) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    middle = manifest.size // 2
    for axes, number in zip(grid, rows.index, strict=True):
        volumes, mask = cohort.members(number, names), cohort.masks(number)[0]
        for axis, spec, codes in zip(axes, manifest.maps, volumes, strict=False):
            values = spec.decode(codes[:, :, middle])[::-1]
            _picture(figure, axis, values, mask[:, :, middle][::-1], spec)
        image = manifest.maps[0]
        _picture(figure, axes[-1], image.decode(volumes[0][middle]), mask[middle], image)
        axes[0].set_ylabel(_title(rows.loc[number]), fontsize=7)
    for axis, name in zip(
        grid[0],
        [*(f"{name}, sagittal" for name in names), "image, axial"],
        strict=True,
    ):
        axis.set_title(name, fontsize=7)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})


def _picture(figure: Any, axis: Any, values: np.ndarray, mask: np.ndarray, spec: MapSpec) -> None:
    low, high = WINDOW_HU if spec.name == "image" else (float(values.min()), float(values.max()))
    colours = "gray" if spec.name == "image" else "viridis"
    drawn = axis.imshow(values, cmap=colours, vmin=low, vmax=high if high > low else low + 1)
    if mask.any() and not mask.all():
        axis.contour(mask, levels=[0.5], colors=["tab:red"], linewidths=0.6)
    axis.set_xticks([])
    axis.set_yticks([])
    bar = figure.colorbar(drawn, ax=axis, shrink=0.75, pad=0.01)
    bar.set_label(spec.unit, fontsize=6)
    bar.ax.tick_params(labelsize=5)


def _title(row: Any) -> str:
    device = row["device"] or "no DXA"
    label = {0: "no osteoporosis", 1: "osteoporosis"}.get(row["osteoporosis"], "no label")
    flags = " (truncated)" if row["truncated"] else ""
    return f"{row['scan_id']}\n{row['level']}{flags}, {device}\n{label}"
