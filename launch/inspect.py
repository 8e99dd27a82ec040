"""Print the content of a prepared folder; draw vertebrae, their maps and the maps' histograms.

example:
  osteojax inspect prepared --vertebrae 6 --slices P1-CT/L1,P2-CT/L3

contact_sheet.png            a row per vertebra
crops.png                    a row per level: the vertebral body, and crops of 18 mm inside it
histograms.png               codes of every map, and how many are at either end of their range
slices_<scan_id>_<level>.png sagittal, coronal and axial slices of every map of one vertebra

Look at them before training: vertebrae upright, spinous process on the right of the sagittal
pictures, whole body in the frame, no map at an end of its range.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
from rich.console import Console
from rich.table import Table

from launch.inspection import items
from osteojax.data.cohort import PreparedCohort, open_cohort
from osteojax.data.schema import Manifest
from osteojax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="written by osteojax prepare")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the pictures, or file name of the contact sheet (*.png), in whose folder "
        "the others are written; default: DIR",
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
    cohort = open_cohort(args.directory)
    shown = inspection_of(cohort.manifest.kind)
    sheet, folder = _places(args.directory, args.out)
    drawn = shown.pictures(cohort, args.vertebrae, args.slices, sheet, folder)
    console = Console()
    console.print(summary(cohort, shown.facts(cohort)))
    for table in (fields_table(cohort.manifest), *shown.tables(cohort)):
        console.print(table)
    console.print(shards_table(cohort))
    for name in ("failures", "doubts", "excluded"):  # earlier versions wrote no doubts.csv
        path = args.directory / f"{name}.csv"
        if path.is_file():
            count = len(pd.read_csv(path, dtype=str))
            console.print(f"{count} {name}: {path}", highlight=False, soft_wrap=True)
    for what, picture in drawn:
        if isinstance(picture, Path):
            console.print(f"{what}: {picture}", highlight=False, soft_wrap=True)
        else:
            console.print(picture)
    return 0


def inspection_of(kind: str) -> ModuleType:
    """The module that shows a kind of data: `launch/inspection/<kind>.py`, or the module
    `inspection` of a dotted name; `launch/inspection/items.py` for a kind that has none."""
    name = f"{kind}.inspection" if "." in kind else f"launch.inspection.{kind}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else items


def _places(directory: Path, out: Path | None) -> tuple[Path, Path]:
    """(contact sheet, folder of the other pictures)."""
    out = out or directory
    return (out, out.parent) if out.suffix.lower() == ".png" else (out / "contact_sheet.png", out)


def summary(cohort: PreparedCohort, facts: list[tuple[str, str]]) -> Table:
    """Table of the kind's facts, targets and counts."""
    table = Table("cohort", "", show_header=False, title="manifest")
    manifest, known = cohort.manifest, cohort.kind.ITEMS
    of_numbers = [
        (f"{target.name} of training", f"{target.mean:.4f} +- {target.std:.4f} {target.unit}")
        for target in manifest.targets
        if target.kind == "number"
    ]
    of_classes = [
        (target.name, f"{len(target.classes)} classes")
        for target in manifest.targets
        if target.kind == "class"
    ]
    counts = [
        (
            split,
            f"{count['patients']} patients, {count['items']} {known}, {count['labelled']} labelled",
        )
        for split, count in manifest.counts.items()
    ]
    written = ("written by", f"osteojax {manifest.code_version}")
    for name, value in (
        ("kind", manifest.kind),
        *facts,
        *of_numbers,
        *of_classes,
        *counts,
        written,
    ):
        table.add_row(name, value)
    return table


def fields_table(manifest: Manifest) -> Table:
    """Table of the records that every item has."""
    table = Table("field", "dtype", "shape", "codec", title="records of an item")
    for field in manifest.fields:
        shape = "each its own" if field.shape is None else " x ".join(map(str, field.shape))
        json_text = field.codec == "json"
        table.add_row(
            field.name, "" if json_text else field.dtype, "" if json_text else shape, field.codec
        )
    return table


def shards_table(cohort: PreparedCohort) -> Table:
    """Table of the first ten shards with their numbers of items."""
    shards = cohort.manifest.shards
    table = Table("shard", cohort.kind.ITEMS, title=f"{len(shards)} shards")
    for shard in shards[:10]:
        table.add_row(shard["name"], str(shard["items"]))
    return table
