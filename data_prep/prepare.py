"""Prepares a folder from command-line options, for `osteojax prepare` and for studies."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from data_prep.arguments import positive
from data_prep.build import Built, build
from data_prep.kinds import DEFAULT_KIND, recipe_module
from data_prep.recipe import DOUBTS, KEEP, Cohort, Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--kind",
        default=DEFAULT_KIND,
        metavar="NAME",
        help="kind of data (%(default)s); --help shows its options",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--workers", type=positive, default=None, help="processes; default: cores")
    place.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask scheduler whose workers do the work"
    )
    parser.add_argument("--scans-per-shard", type=positive, default=64)
    parser.add_argument(
        "--doubts",
        choices=DOUBTS,
        default=KEEP,
        help="scans and rows that look suspicious: keep and list them, or fail (%(default)s)",
    )


def prepare(args: argparse.Namespace) -> tuple[Recipe, Cohort, Built]:
    """Prepares the cohort that the options name, or resumes an earlier call.

    Args:
      args: of `add_arguments` and of the kind's recipe.

    Raises:
      UserError: tables that cannot be read, or a folder made with other options. Items that fail
        are listed in the result.
    """
    kind = recipe_module(args.kind)
    recipe, cohort = kind.recipe(args), kind.read(args)
    workers = args.workers or _cores()
    built = build(
        recipe, cohort, args.out, args.scans_per_shard, workers, args.scheduler, args.doubts
    )
    return recipe, cohort, built


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
