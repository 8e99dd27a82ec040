"""CT + vertebra masks + DXA table -> ArrayRecord shards of texture pools.

example:
  osteojax prepare --cohort cohort.csv --dxa dxa.csv --out prepared --external-sites D

cohort.csv  patient_id, scan_id, site, ct, mask; optionally sex, age, split, label_scheme, ct_date,
            contrast, fracture, implant, poor_quality. Paths are relative to the table's folder.
dxa.csv     patient_id, level, device, bmd_g_cm2; optionally t_score, osteoporosis, dxa_date.

Rerunning the same command goes on where it stopped and tries failed scans again. Exit status 1
where failures.csv has a row.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.build import BuildSettings, Built, build
from data_prep.split import DEFAULT_FRACTIONS
from data_prep.vertebrae.cohort import EXCLUSIONS, read_cohort
from data_prep.vertebrae.label_schemes import SCHEMES
from data_prep.vertebrae.pool import SIZES, RoiSettings
from data_prep.vertebrae.scanners import read_devices
from data_prep.vertebrae.texture import TextureSettings
from osteojax.data.schema import SPLITS
from osteojax.data.vertebrae import IMAGE_ONLY, POOL
from osteojax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cohort", type=Path, required=True, help="table of scans (CSV)")
    parser.add_argument("--dxa", type=Path, help="table of DXA results (CSV)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--label-scheme", choices=list(SCHEMES), default="verse", help="of masks whose row has none"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--workers", type=_positive, default=None, help="processes; default: cores")
    place.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask scheduler whose workers do the work"
    )
    parser.add_argument(
        "--store",
        choices=("pool", "image"),
        default="pool",
        help="image: no maps, for training that makes them itself; their statistics are kept",
    )
    parser.add_argument("--size", type=int, choices=SIZES, default=96, help="ROI edge, voxels")
    parser.add_argument(
        "--external-sites", type=_names, default=frozenset(), metavar="A,B", help="never trained on"
    )
    parser.add_argument("--keep-truncated", action="store_true", help="keep cut vertebrae")
    parser.add_argument("--devices", type=Path, help="DXA devices and references (TOML)")
    parser.add_argument(
        "--include",
        type=_names,
        default=frozenset(),
        metavar="COLUMN,...",
        help=f"do not exclude scans for these: {', '.join(EXCLUSIONS)}",
    )
    parser.add_argument(
        "--split-fractions", type=_fractions, default=DEFAULT_FRACTIONS, metavar="TRAIN,VALID,TEST"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--scans-per-shard", type=_positive, default=64)
    parser.add_argument("--bin-width", type=float, default=25.0, help="grey level width, HU")
    parser.add_argument("--kernel-radius", type=_positive, default=3, help="window radius, voxels")
    parser.add_argument("--texture-domain", choices=("box", "vertebra"), default="box")
    parser.add_argument("--texture-engine", choices=("jax", "pyradiomics"), default="jax")
    parser.add_argument(
        "--patch-stride",
        type=_positive,
        metavar="VOXELS",
        help="patches this far apart, each with grey levels of its own; default: dense windows",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _fractions(text: str) -> tuple[float, float, float]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text}: three fractions that sum to 1, as 0.6,0.1,0.3")
    return values[0], values[1], values[2]


def run(args: argparse.Namespace) -> int:
    if args.include - set(EXCLUSIONS):
        raise UserError(
            f"--include {', '.join(sorted(args.include - set(EXCLUSIONS)))}: choose from "
            f"{', '.join(EXCLUSIONS)}."
        )
    roi = RoiSettings(
        size=args.size,
        keep_truncated=args.keep_truncated,
        texture=TextureSettings(
            bin_width=args.bin_width,
            kernel_radius=args.kernel_radius,
            domain=args.texture_domain,
            engine=args.texture_engine,
            patch_stride=args.patch_stride,
        ),
        stored=POOL if args.store == "pool" else IMAGE_ONLY,
    )
    devices = read_devices(args.devices)
    cohort = read_cohort(
        args.cohort,
        args.dxa,
        devices,
        args.label_scheme,
        args.external_sites,
        args.split_fractions,
        args.seed,
        args.include,
    )
    settings = BuildSettings(
        roi,
        devices,
        args.scans_per_shard,
        {
            "label_scheme": args.label_scheme,
            "external_sites": sorted(args.external_sites),
            "split_fractions": list(args.split_fractions),
            "seed": args.seed,
            "include": sorted(args.include),
            # `osteojax simulate` leaves this beside its cohort; reports say so ever after.
            "simulated": (args.cohort.parent / "simulation.json").is_file(),
        },
    )
    built = build(cohort, settings, args.out, args.workers or _cores(), args.scheduler)
    console = Console()
    console.print(summary_table(built.rows))
    for note in cohort.notes:
        console.print(f"Note: {note}", highlight=False)
    _print_outcome(console, built, args.out)
    return 1 if built.failures else 0


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def summary_table(rows: list[dict[str, Any]]) -> Table:
    """Patients, vertebrae, labels and positives of each split and site."""
    table = Table("split", "site", "patients", "vertebrae", "labelled", "positive")
    for column in table.columns[2:]:
        column.justify = "right"
    groups = sorted({(SPLITS.index(row["split"]), row["site"]) for row in rows})
    for split, site in groups:
        own = [r for r in rows if (SPLITS.index(r["split"]), r["site"]) == (split, site)]
        labels = [row["osteoporosis"] for row in own if row["osteoporosis"] is not None]
        patients = len({row["patient_id"] for row in own})
        numbers = (patients, len(own), len(labels), sum(labels))
        table.add_row(SPLITS[split], site, *(str(n) for n in numbers))
    return table


def _print_outcome(console: Console, built: Built, out: Path) -> None:
    if not built.manifest.counts["train"]["items"]:
        console.print("Note: no training vertebrae; statistics are not set.", highlight=False)
    reasons = Counter(reason for _, _, reason in built.excluded)
    for reason, count in reasons.most_common():
        console.print(f"Excluded: {count} {reason}", highlight=False)
    console.print(
        f"{len(built.rows)} vertebrae in {len(built.manifest.shards)} shards: {out}",
        highlight=False,
        soft_wrap=True,
    )
    for case, reason, remedy in built.failures[:10]:
        print(f"failed: {case}: {reason} {remedy}", file=sys.stderr)
    if built.failures:
        print(
            f"osteojax prepare: {len(built.failures)} failures, all listed in {out}/failures.csv",
            file=sys.stderr,
        )
