"""Run a study: many trainings on simulated cohorts with shared splits, compared in one table.

A file of configs/studies/ defines the study: its cohorts, rows, and the contrasts that were fixed
before the first run. Rows with the same pre-training share it. Rerunning resumes: finished rows are
kept, failed ones are tried again. Exit status 1 if a row failed.

The page is made from small tables of predictions, also without a workdir (--predictions). A study
of frozen readouts may be run by several processes in one workdir: each takes what no other is at.

Examples:
  osteojax study configs/studies/paper_ladder.py --workdir ladder --seeds 1
  osteojax study configs/studies/paper_ladder.py --workdir ladder --seeds 3       # two more
  osteojax study configs/studies/leave_one_device_out.py --workdir devices
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.studies.run import Outcome, Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a file of configs/studies/, FILE.py or FILE.py:full")
    parser.add_argument("--workdir", required=True, help="where the study lives; rerun to resume")
    parser.add_argument("--seeds", type=_count, help="only the first so many of its training seeds")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="only these rows and what they need, by name or by folder; for a study of readouts "
        "also by part; default: all",
    )
    parser.add_argument(
        "--predictions",
        metavar="DIR",
        help="train nothing, write the page into --workdir from the tables in this folder "
        "(WORKDIR/results/predictions, or one of benchmarks/)",
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from launch.studies.plan import load_study
    from launch.studies.run import RESULTS, run_study
    from launch.studies.study_report import SIMULATED

    study = load_study(args.config)
    if args.predictions is not None:
        outcome = _page_again(study, args.predictions, Path(args.workdir) / RESULTS)
    else:
        rows = args.rows or ()
        outcome = run_study(study, args.workdir, seeds=args.seeds, rows=rows, progress=_print)
    if outcome.stopped:
        print(f"osteojax study: {outcome.stopped}", file=sys.stderr)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for grid in outcome.grids:
        console.print(grid.terminal())
    written = Path(args.workdir) / RESULTS / "study.md"
    print(f"{SIMULATED}\nresults: {written}; .json, .csv and .png are in the same folder")
    if outcome.stopped:
        return outcome.stopped.status
    return 1 if outcome.results.failures else 0


def _page_again(study: Any, predictions: str, out: Path) -> Outcome:
    from launch.readouts.plan import ReadoutStudy
    from launch.readouts.run import page_again as page_of_readouts
    from launch.studies.run import page_again

    again = page_of_readouts if isinstance(study, ReadoutStudy) else page_again
    return again(study, predictions, out)


def _print(progress: Progress) -> None:
    print(progress.text, file=sys.stderr if progress.failed else sys.stdout, flush=True)
