"""How much of the trabecular texture is left at each slice thickness, on simulated vertebrae.

Vertebrae come in pairs of the same body and mean HU, one with a structure one SD finer and one with
a structure one SD coarser than the mean. They are scanned at each slice thickness with noise at
equal dose, and made into ROIs and texture maps as in `prepare`. d is Cohen's d of a map's mean
inside the body; r is the correlation of that mean with the structure in the simulated population,
so that r * 0.8 is its correlation with BMD at a given HU at texture signal 1. This measures the
simulator, not patients.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data_prep.simulate.texture_survival import FEATURES, Sampling, survival
from launch.benchmarks import measure
from osteojax.errors import UserError

SLICES_MM = [0.7, 1.0, 1.5, 2.0, 3.0, 5.0]
SPACINGS_MM = [0.75, 1.5, 3.0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=40, help="of vertebrae (%(default)s)")
    parser.add_argument(
        "--slice-mm", type=float, nargs="+", default=SLICES_MM, help="(0.7 1 1.5 2 3 5)"
    )
    parser.add_argument(
        "--spacing-mm",
        type=float,
        nargs="+",
        default=[0.75, 1.5, 3.0],
        help="in plane (0.75 1.5 3)",
    )
    parser.add_argument(
        "--roi-mm", type=float, nargs="+", default=[1.0, 3.0], help="voxels of the ROI (1 3)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results; a table beside it as .md")


def run(args: argparse.Namespace) -> int:
    if args.pairs < 8:
        raise UserError(f"--pairs {args.pairs}: at least 8, for an interval.")
    sizes = (*args.slice_mm, *args.spacing_mm, *args.roi_mm)
    if min(sizes) < 0.5 or max(sizes) > 6:
        raise UserError("--slice-mm, --spacing-mm and --roi-mm are from 0.5 to 6 mm.")
    samplings = [Sampling(t, s) for s in args.spacing_mm for t in args.slice_mm]
    rows: list[dict[str, Any]] = []
    for sampling in tqdm(samplings, desc="texture survival", unit="CT"):
        rows += survival(sampling, tuple(args.roi_mm), args.pairs, args.seed)
    rows.sort(key=lambda row: (row["spacing_mm"], row["roi_mm"], row["slice_mm"]))
    Console().print(_terminal(rows))
    if args.json:
        measure.write_results(args.json, measure.environment("scipy"), rows)
        args.json.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    return 0


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: sampling, noise, then d and r of each feature."""
    first = [f"{row[name]:g}" for name in ("spacing_mm", "roi_mm", "slice_mm")]
    values = [
        f"{row[f'{name}_d']:.2f} ({row[f'{name}_d_low']:.2f} to {row[f'{name}_d_high']:.2f})"
        for name in FEATURES
    ]
    r = f"{row['DifferenceAverage_r']:.2f}"
    return [*first, f"{row['noise_hu']:.0f}", *values, r]


HEADS = ["in plane mm", "ROI mm", "slice mm", "noise HU", *FEATURES, "r"]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The signal at the thickest slices in words, then a table of all rows."""
    lines = [HEADS, ["---"] * len(HEADS), *(cells(row) for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        "# Trabecular texture through a simulated scanner\n\n"
        f"{rows[0]['pairs']} pairs of simulated vertebrae of one mean HU, one structure an SD "
        "coarser and one an SD finer than the mean. Cohen's d of each feature's mean inside the "
        "body (95% bootstrap interval); r is DifferenceAverage's correlation with structure, "
        "given HU.\n\n" + "\n".join(f"- {line}" for line in verdicts(rows)) + f"\n\n{table}\n"
    )


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """For each in-plane and ROI voxel, whether the thickest slices keep a signal in Contrast."""
    lines = []
    noisy = [row for row in rows if row["noise_hu"] > 0]
    for spacing, voxel in dict.fromkeys((row["spacing_mm"], row["roi_mm"]) for row in noisy):
        own = [row for row in noisy if (row["spacing_mm"], row["roi_mm"]) == (spacing, voxel)]
        thin, thick = (pick(own, key=lambda row: row["slice_mm"]) for pick in (min, max))
        left = thick["Contrast_d_low"] > 0 or thick["Contrast_d_high"] < 0
        lines.append(
            f"{spacing:g} mm in plane, ROI {voxel:g} mm: at {thick['slice_mm']:g} mm slices the "
            f"signal is {'there' if left else 'not to be told from none'}, d "
            f"{thick['Contrast_d']:.2f} against {thin['Contrast_d']:.2f} at "
            f"{thin['slice_mm']:g} mm."
        )
    return lines


def _terminal(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Cohen's d of structure, coarse minus fine (95% interval); r of the maps")
    for head in HEADS:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*cells(row))
    return table
