"""Prepare images, masks and tables as a folder of ArrayRecord shards, a table and a manifest.

Rerunning the same command resumes and tries failed scans again. Exit status 1 if failures.csv has a
row. Rows of doubts.csv look suspicious and are kept; with --doubts fail they are failures.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console

from data_prep.build import Built
from data_prep.kinds import DEFAULT_KIND, recipe_module
from data_prep.prepare import add_arguments, prepare
from osteojax.data.kinds import find_kind

__all__ = ["add_arguments", "add_kind_arguments", "run"]


def add_kind_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """The options and the help of the kind that `--kind` names."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--kind", default=DEFAULT_KIND)
    kind = peek.parse_known_args(argv)[0].kind
    module = recipe_module(kind)
    module.add_arguments(parser.add_argument_group(kind))
    head, _, rest = (module.__doc__ or "").strip().partition("\n")
    parser.description = head
    parser.epilog = f"{rest.strip()}\n\n{parser.epilog}"


def run(args: argparse.Namespace) -> int:
    recipe, cohort, built = prepare(args)
    console = Console()
    console.print(recipe.summary(built.rows))
    for note in cohort.notes:
        console.print(f"Note: {note}", highlight=False)
    _print_outcome(console, built, find_kind(args.kind).ITEMS, args.out)
    return 1 if built.failures else 0


def _print_outcome(console: Console, built: Built, noun: str, out: Path) -> None:
    """Prints notes, counts, doubts and failures. noun: what a row is, in the plural."""
    if not built.manifest.counts["train"]["items"]:
        console.print(f"Note: no training {noun}; statistics are not set.", highlight=False)
    if built.num_moved:
        console.print(
            f"Note: the corrected tables put {built.num_moved} finished scans into another split. "
            "A model that was trained before has seen other patients: train again.",
            highlight=False,
        )
    reasons = Counter(reason for _, _, reason in built.excluded)
    for reason, count in reasons.most_common():
        console.print(f"Excluded: {count} {reason}", highlight=False)
    console.print(
        f"{len(built.rows)} {noun} in {len(built.manifest.shards)} shards: {out}",
        highlight=False,
        soft_wrap=True,
    )
    _print_listed("doubt", built.doubts, out / "doubts.csv")
    _print_listed("failed", built.failures, out / "failures.csv")


def _print_listed(word: str, rows: list[tuple[str, str, str]], path: Path) -> None:
    """Prints the first rows of a list of (case, reason, remedy), and where all are."""
    for case, reason, remedy in rows[:10]:
        print(f"{word}: {case}: {reason} {remedy}", file=sys.stderr)
    if rows:
        print(f"osteojax prepare: {len(rows)} {path.stem}, all listed in {path}", file=sys.stderr)
