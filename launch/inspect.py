"""Prints what a prepared folder holds and draws vertebrae, their maps and the maps' histograms.

example:
  osteojax inspect prepared --vertebrae 6 --slices P1-CT/L1,P2-CT/L3

contact_sheet.png            a row per vertebra
histograms.png               codes of every map, and how many are at either end of their range
slices_<scan_id>_<level>.png sagittal, coronal and axial slices of every map of one vertebra

Look at them before training: vertebrae upright, spinous process on the right of the sagittal
pictures, whole body in the frame, no map at an end of its range.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from launch.inspection.contact_sheet import draw_contact_sheet
from launch.inspection.histograms import Histograms, count_codes, draw_histograms, ends
from launch.inspection.members import choose, named, stores_maps
from launch.inspection.slices import draw_slices, slices_path
from osteojax.data.cohort import PreparedCohort
from osteojax.data.schema import Manifest
from osteojax.data.vertebrae import About
from osteojax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="written by osteojax prepare")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the pictures, or the contact sheet's own name (*.png), the others go "
        "beside it; default: DIR",
    )
    parser.add_argument("--vertebrae", type=int, default=6, help="rows of the contact sheet (6)")
    parser.add_argument(
        "--slices",
        default="2",
        metavar="N|SCAN_ID/LEVEL,...",
        help="vertebrae whose slices are drawn: a number, evenly spread, or their names (2)",
    )


def run(args: argparse.Namespace) -> int:
    if args.vertebrae < 1:
        raise UserError(f"--vertebrae {args.vertebrae}: draw at least one.")
    cohort = PreparedCohort(args.directory)
    sliced = _sliced(cohort.table, args.slices)
    manifest, about = cohort.manifest, cohort.about
    console = Console()
    for table in (summary(manifest, about), maps_table(about), shards_table(manifest)):
        console.print(table)
    for name, file in (("failures", "failures.csv"), ("excluded", "excluded.csv")):
        path = args.directory / file
        if path.is_file():
            count = len(pd.read_csv(path, dtype=str))
            console.print(f"{count} {name}: {path}", highlight=False, soft_wrap=True)
    sheet, folder = _places(args.directory, args.out)

    def tell(what: str, path: Path) -> None:
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)

    draw_contact_sheet(cohort, choose(cohort.table, args.vertebrae), sheet)
    tell("contact sheet", sheet)
    histograms = count_codes(cohort)
    draw_histograms(cohort, histograms, folder / "histograms.png")
    console.print(ends_table(about, histograms))
    tell("histograms", folder / "histograms.png")
    for number, row in sliced.iterrows():
        draw_slices(cohort, int(str(number)), slices_path(folder, row))
        tell("slices", slices_path(folder, row))
    return 0


def _places(directory: Path, out: Path | None) -> tuple[Path, Path]:
    """(contact sheet, folder of the other pictures)."""
    out = out or directory
    return (out, out.parent) if out.suffix.lower() == ".png" else (out / "contact_sheet.png", out)


def _sliced(rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """The rows that --slices asks for."""
    if not wanted.isdecimal():
        return named(rows, wanted.split(","))
    return choose(rows, int(wanted)) if int(wanted) else rows.head(0)


def summary(manifest: Manifest, about: About) -> Table:
    """Geometry, texture, labels and counts."""
    table = Table("cohort", "", show_header=False, title="manifest")
    size, counts = about.size, manifest.counts
    texture = ", ".join(f"{key} {value}" for key, value in about.texture.items())
    for name, value in (
        ("ROI", f"{size}^3 voxels of {about.spacing_mm:g} mm"),
        ("stored", _stored(about)),
        ("texture", texture),
        ("label scheme", about.label_scheme),
        ("devices", ", ".join(about.devices)),
        ("BMD of training", f"{about.bmd_mean:.4f} +- {about.bmd_std:.4f} g/cm^2"),
        *(
            (
                split,
                f"{count['patients']} patients, {count['items']} vertebrae, "
                f"{count['labelled']} labelled",
            )
            for split, count in counts.items()
        ),
        ("written by", f"osteojax {manifest.code_version}"),
    ):
        table.add_row(name, value)
    return table


def _stored(about: About) -> str:
    if stores_maps(about):
        return "image and maps"
    return f"{', '.join(about.stored)} only: training makes the maps (data.textures=online)"


def maps_table(about: About) -> Table:
    """Storage and statistics of each member of the pool."""
    table = Table(title="texture pool")
    table.add_column("map", no_wrap=True)
    for head in ("unit", "stored as", "range", "step", "mean", "std"):
        table.add_column(head)
    for spec in about.maps:
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


def ends_table(about: About, found: Histograms) -> Table:
    """Share of voxels at either end of each map's stored range."""
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


def shards_table(manifest: Manifest) -> Table:
    """Files and their vertebrae; the first ten."""
    table = Table("shard", "vertebrae", title=f"{len(manifest.shards)} shards")
    for shard in manifest.shards[:10]:
        table.add_row(shard["name"], str(shard["items"]))
    return table
