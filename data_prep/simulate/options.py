"""The options of a simulated cohort, for `osteojax simulate` and for studies."""

from __future__ import annotations

import argparse

from data_prep.simulate.patients import SITE_PATIENTS, Settings
from data_prep.simulate.people import BONE_LEVELS
from data_prep.simulate.scanner import SITE_SCANNERS


def _sites(text: str) -> tuple[str, ...]:
    sites = tuple(part.strip() for part in text.split(","))
    if not set(sites) <= set(SITE_PATIENTS) or len(set(sites)) != len(sites):
        raise argparse.ArgumentTypeError(f"{text!r}: sites are A, B, C and D, each once")
    return sites


def _levels(text: str) -> tuple[str, ...]:
    top, _, bottom = text.partition("-")
    if top not in BONE_LEVELS or bottom not in BONE_LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r}: a range within T1-L5, as T12-L5")
    chosen = BONE_LEVELS[BONE_LEVELS.index(top) : BONE_LEVELS.index(bottom) + 1]
    if not {"L1", "L2", "L3", "L4"} <= set(chosen):
        raise argparse.ArgumentTypeError(f"{text!r}: must hold L1-L4, the levels of a DXA")
    return chosen


def _shares(text: str) -> tuple[float, float]:
    try:
        valid, test = (float(part) for part in text.split(","))
    except ValueError:
        valid = test = 0.0
    if min(valid, test) <= 0 or valid + test >= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: shares of validation and test, as 0.1,0.3; the rest trains"
        )
    return valid, test


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
        help="at least one per site; with two or more, each site has both classes",
    )
    parser.add_argument("--sites", type=_sites, default="A,B,C,D", help="default: A,B,C,D")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument(
        "--levels", type=_levels, default="T12-L5", help="within T1-L5; default: T12-L5"
    )
    parser.add_argument(
        "--spacing-mm", type=_between(0.5, 3.0), default=1.5, help="in plane; default: 1.5"
    )
    parser.add_argument(
        "--slice-mm",
        type=_between(0.7, 5.0),
        help="slice thickness of every scanner, at each one's dose; default: each its own",
    )
    parser.add_argument(
        "--scanners",
        choices=tuple(SITE_SCANNERS),
        default="usual",
        help="usual: slices of 1.5-3 mm at 120 and 140 kV; wide: 0.7-5 mm at 80-140 kV",
    )
    parser.add_argument(
        "--complete-labels",
        type=_shares,
        metavar="VALID,TEST",
        help="write the split with these shares of each site, D being external, and label all of "
        "L1-L4 outside training, as 0.1,0.3; default: some of L1-L4, the split left to prepare",
    )
    _add_controls(parser)
    parser.add_argument("--workers", type=_count, default=1, help="processes; default: 1")


def _add_controls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--texture-signal",
        type=_between(0.0, 1.0),
        default=1.0,
        help="information about bone in texture, beyond mean HU; 0 is the control (default: 1)",
    )
    parser.add_argument(
        "--hu-signal",
        type=_between(0.0, 1.0),
        default=1.0,
        help="information on BMD in HU, cortex, body size, age and sex; at 0 only texture has it "
        "(default: 1)",
    )
    parser.add_argument(
        "--identical-devices",
        action="store_true",
        help="every DXA scanner measures as Hologic does, under its own name",
    )


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: at least 0")
    return value


def settings(args: argparse.Namespace) -> Settings:
    """The settings of the patients from the options."""
    return Settings(
        sites=args.sites,
        seed=args.seed,
        levels=args.levels,
        spacing_mm=args.spacing_mm,
        slice_mm=args.slice_mm,
        scanners=args.scanners,
        texture_signal=args.texture_signal,
        hu_signal=args.hu_signal,
        identical_devices=args.identical_devices,
        complete_labels=args.complete_labels,
    )
