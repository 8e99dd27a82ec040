"""The boxes of prepared folders: bytes a vertebra, and where crops fit into bodies, by level.

Every number is of the folders that are given, for instance one of each --box of `prepare`.
Vertebrae that the CT cuts are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data_prep.records import row_records, write_records
from launch.benchmarks import measure
from osteojax.data.cohort import PreparedCohort
from osteojax.data.places import BODY_PLANE, edge_voxels, find_places
from osteojax.data.vertebrae import KIND, LEVELS, fields
from osteojax.errors import UserError

EDGES_MM = (12.0, 18.0, 24.0)
PAPER_VERTEBRAE = 30_256
"""Of the paper's cohort."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="prepared folders")
    parser.add_argument(
        "--edges-mm", type=float, nargs="+", default=EDGES_MM, help="of crops (12 18 24)"
    )
    parser.add_argument("--json", type=Path, help="write the results; tables beside them as .md")


def run(args: argparse.Namespace) -> int:
    if min(args.edges_mm) <= 0:
        raise UserError(f"--edges-mm {min(args.edges_mm):g}: a length in mm is needed.")
    cohorts = [_opened(folder) for folder in args.folders]
    rows = [bytes_row(cohort) for cohort in cohorts]
    for cohort in cohorts:
        rows += place_rows(cohort, tuple(args.edges_mm))
    sections = [_section(rows, kind) for kind in ("bytes", "places")]
    for title, heads, lines in sections:
        table = Table(*heads, title=title)
        for line in lines:
            table.add_row(*line)
        Console().print(table)
    if args.json:
        measure.write_results(args.json, measure.environment("array-record"), rows)
        args.json.with_suffix(".md").write_text(_markdown(sections), encoding="utf-8")
    return 0


def _opened(folder: Path) -> PreparedCohort:
    cohort = PreparedCohort(folder)
    if cohort.manifest.kind != KIND or not cohort.about.has_body:
        raise UserError(
            f"{folder} has no masks of vertebral bodies. Prepare the cohort again with this "
            "version."
        )
    if not len(_whole(cohort)):
        raise UserError(f"{folder}: the CTs cut every vertebra. Choose another folder.")
    return cohort


def _whole(cohort: PreparedCohort) -> np.ndarray:
    """i64[...] rows of vertebrae that their CT does not cut."""
    return np.flatnonzero(cohort.table["truncated"].to_numpy() == 0)


def bytes_row(cohort: PreparedCohort) -> dict[str, Any]:
    """Bytes on disk a vertebra, as stored and of the shown windows alone.

    Shards are written again from the stored volumes, without the rows of the table.
    """
    about, rows = cohort.about, _whole(cohort)
    shown = fields(about.shown, about.stored)

    def records(window: tuple[Any, ...]) -> Iterable[list[bytes]]:
        own = shown if window else cohort.manifest.fields
        for row in tqdm(rows, desc=cohort.directory.name, unit="vertebra", leave=False):
            arrays = {f.name: cohort.array(int(row), f.name)[window] for f in own[1:]}
            yield row_records(own, arrays)

    sizes = []
    for window in ((), (..., *about.window)):
        with tempfile.TemporaryDirectory(prefix="osteojax-boxes-") as folder:
            path = Path(folder) / "boxes.array_record"
            write_records(path, records(window))
            sizes.append(path.stat().st_size / len(rows))
    return {
        "kind": "bytes",
        "folder": cohort.directory.name,
        "box": about.box,
        "spacing_mm": about.spacing_mm,
        "stored": list(about.shape),
        "shown": list(about.shown),
        "fields": len(about.stored),
        "vertebrae": len(rows),
        "bytes_stored": sizes[0],
        "bytes_shown": sizes[1],
    }


def place_rows(cohort: PreparedCohort, edges_mm: tuple[float, ...]) -> list[dict[str, Any]]:
    """One row for each level and edge: how many crops lie wholly inside the body."""
    spacing_mm, window = cohort.about.spacing_mm, cohort.about.window
    found: dict[tuple[str, float], list[tuple[int, float]]] = {}
    for row in _whole(cohort):
        body = cohort.array(int(row), "mask")[BODY_PLANE][window]
        level = str(cohort.table["level"].iloc[row])
        for edge_mm in edges_mm:
            own = _places_of(body, edge_voxels(edge_mm, spacing_mm))
            found.setdefault((level, edge_mm), []).append(own)
    order = sorted(found, key=lambda of: (LEVELS.index(of[0]), of[1]))
    rows = []
    for level, edge_mm in order:
        places, shares = np.array(found[level, edge_mm]).T
        rows.append(
            {
                "kind": "places",
                "folder": cohort.directory.name,
                "spacing_mm": spacing_mm,
                "level": level,
                "edge_mm": edge_mm,
                "vertebrae": len(places),
                "with_place": int((places > 0).sum()),
                "places_median": float(np.median(places)),
                "places_min": int(places.min()),
                "places_max": int(places.max()),
                "smallest_largest_share": float(shares.min()),
            }
        )
    return rows


def _places_of(body: np.ndarray, edge: int) -> tuple[int, float]:
    """(number of crops wholly inside a body, largest share of it in any crop)."""
    if edge > min(body.shape):
        return 0, 0.0
    places, share = find_places(body, edge, body_share=1.0)
    return (len(places) if share == 1 else 0), share


Section = tuple[str, list[str], list[list[str]]]
"""Title, heads and lines of a table."""


def _section(rows: list[dict[str, Any]], kind: str) -> Section:
    own = [row for row in rows if row["kind"] == kind]
    if kind == "bytes":
        cohort_gb = [row["bytes_stored"] * PAPER_VERTEBRAE / 1e9 for row in own]
        return (
            "Bytes a vertebra",
            ["folder", "box", "voxel mm", "shown", "stored", "shown kB", "stored kB", "30,256, GB"],
            [
                [
                    row["folder"], row["box"], f"{row['spacing_mm']:g}", _edges(row["shown"]),
                    _edges(row["stored"]), f"{row['bytes_shown'] / 1e3:.0f}",
                    f"{row['bytes_stored'] / 1e3:.0f}", f"{gb:.0f}",
                ]
                for row, gb in zip(own, cohort_gb, strict=True)
            ],
        )  # fmt: skip
    edges = sorted({row["edge_mm"] for row in own})
    groups = list(dict.fromkeys((row["folder"], row["level"]) for row in own))
    lines = []
    for folder, level in groups:
        cells = [row for row in own if (row["folder"], row["level"]) == (folder, level)]
        lines.append([folder, level, str(cells[0]["vertebrae"]), *map(_places, cells)])
    heads = [f"{edge:g} mm" for edge in edges]
    return "Places for crops, wholly inside the body", ["folder", "level", "n", *heads], lines


def _edges(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _places(row: dict[str, Any]) -> str:
    """Median and range; where some body has no place, how many have one and the smallest share."""
    low, high = row["places_min"], row["places_max"]
    text = f"{row['places_median']:.0f}" + (f" ({low} to {high})" if low != high else "")
    if row["with_place"] == row["vertebrae"]:
        return text
    share = f"share {row['smallest_largest_share']:.3f}"
    if not row["with_place"]:
        return f"none, {share}"
    return f"{text}; {row['with_place']} of {row['vertebrae']}, {share}"


def _markdown(sections: list[Section]) -> str:
    parts = []
    for title, heads, lines in sections:
        table = [heads, ["---"] * len(heads), *lines]
        parts.append(f"# {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table))
    return "\n\n".join(parts) + "\n"
