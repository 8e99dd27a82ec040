"""Write a simulated multi-site, multi-device cohort with known truth, in a user's own layout.

Simulated patients are for learning and testing this program. They are not clinical evidence.

Example:
  osteojax simulate --out runs/cohort --patients 40 --workers 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from data_prep.simulate.cohort_writer import simulate_cohort
from data_prep.simulate.patients import BONE_LEVELS, SITE_PATIENTS, Patient, Settings


def _sites(text: str) -> tuple[str, ...]:
    sites = tuple(part.strip() for part in text.split(","))
    if not set(sites) <= set(SITE_PATIENTS) or len(set(sites)) != len(sites):
        raise argparse.ArgumentTypeError(f"{text!r}: sites are A, B, C and D, each once")
    return sites


def _levels(text: str) -> tuple[str, ...]:
    top, _, bottom = text.partition("-")
    names = BONE_LEVELS[1:]  # T9 is drawn only where it shows above T10
    if top not in names or bottom not in names:
        raise argparse.ArgumentTypeError(f"{text!r}: a range within T10-L5, as T12-L5")
    chosen = names[names.index(top) : names.index(bottom) + 1]
    if not {"L1", "L2", "L3", "L4"} <= set(chosen):
        raise argparse.ArgumentTypeError(f"{text!r}: must hold L1-L4, the levels of a DXA")
    return chosen


def _between(low: float, high: float):
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: from {low:g} to {high:g}")
        return value

    number.__name__ = "number"  # argparse names the type in its message
    return number


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder, or one to resume")
    parser.add_argument(
        "--patients",
        type=_count,
        required=True,
        help="at least one a site; from two on, each site has both classes",
    )
    parser.add_argument("--sites", type=_sites, default="A,B,C,D", help="default: A,B,C,D")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--levels", type=_levels, default="T12-L5", help="default: T12-L5")
    parser.add_argument(
        "--spacing-mm", type=_between(0.5, 3.0), default=1.5, help="in plane; default: 1.5"
    )
    parser.add_argument(
        "--texture-signal",
        type=_between(0.0, 1.0),
        default=1.0,
        help="how much trabecular texture tells beyond mean HU; 0 is the control (default: 1)",
    )
    parser.add_argument("--workers", type=_count, default=1, help="processes; default: 1")


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: at least 0")
    return value


def run(args: argparse.Namespace) -> int:
    settings = Settings(
        sites=args.sites,
        seed=args.seed,
        levels=args.levels,
        spacing_mm=args.spacing_mm,
        texture_signal=args.texture_signal,
    )
    patients = simulate_cohort(args.out, settings, args.patients, args.workers)
    Console().print(_summary(patients, f"{args.out} (simulated)"))
    return 0


def _summary(patients: Iterable[Patient], title: str) -> Table:
    """Patients, scans, labelled vertebrae and positives by site."""
    counts: dict[str, list[int]] = {}
    devices: dict[str, set[str]] = {}
    for patient in patients:
        row = counts.setdefault(patient.site, [0, 0, 0, 0])
        positive = sum(result.osteoporosis for result in patient.dxa)
        for column, add in enumerate((1, len(patient.dxa), positive, int(positive > 0))):
            row[column] += add
        devices.setdefault(patient.site, set()).update(r.device for r in patient.dxa)
    table = Table(title=title)
    table.add_column("site")
    table.add_column("DXA devices")
    heads = (
        "patients",
        "scans",
        "labelled\nvertebrae",
        "positive\nvertebrae",
        "positive\npatients",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for site in sorted(counts):
        n, labelled, positive, ill = counts[site]
        share = f"{positive} ({positive / labelled:.0%})" if labelled else "0"
        table.add_row(
            site, ", ".join(sorted(devices[site])), str(n), str(n), str(labelled), share, str(ill)
        )
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    share = f"{total[2]} ({total[2] / total[1]:.0%})"
    table.add_section()
    table.add_row("all", "", str(total[0]), str(total[0]), str(total[1]), share, str(total[3]))
    return table
