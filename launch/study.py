"""Run a study: many trainings on simulated cohorts with shared splits, and one table of them.

A file of configs/studies/ is the study: its cohorts, rows, and the contrasts that were fixed before
the first run. Rows share pre-training where they name the same. Rerunning goes on where it was:
finished rows are not done again, failed ones are. Exit status 1 where a row failed.

Examples:
  osteojax study configs/studies/paper_ladder.py --workdir ladder --seeds 1
  osteojax study configs/studies/paper_ladder.py --workdir ladder --seeds 3       # two more
  osteojax study configs/studies/leave_one_device_out.py --workdir devices
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osteojax.errors import UserError

if TYPE_CHECKING:
    from launch.studies.plan import Row, Study
    from launch.studies.runs import Runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a file of configs/studies/, FILE.py or FILE.py:full")
    parser.add_argument("--workdir", required=True, help="where the study lives; rerun to resume")
    parser.add_argument("--seeds", type=_count, help="only the first so many of its training seeds")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help="only these rows and what they need, by name or by folder; default: all",
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def run(args: argparse.Namespace) -> int:
    from launch.studies.plan import load_study
    from launch.studies.runs import Runs, slug
    from osteojax.train.stop import Stopped

    study = load_study(args.config)
    if args.seeds and args.seeds > len(study.seeds):
        raise UserError(f"--seeds {args.seeds}: the study has {len(study.seeds)}: {study.seeds}.")
    seeds = study.seeds[: args.seeds]
    folders = {slug(row.name): row.name for row in study.rows}
    rows = [study.row(folders.get(name, name)) for name in args.rows or folders]
    runs = Runs(study, Path(args.workdir), _run_verb)
    status, failures = 0, []
    try:
        failures = _do_all(runs, _units(study, rows, seeds))
    except Stopped as stopped:
        print(f"osteojax study: {stopped}", file=sys.stderr)
        status = stopped.status
    report(runs, failures)
    return status or (1 if failures else 0)


def _run_verb(command: list[str]) -> int:
    """Shows and runs a command of `osteojax` that makes a cohort."""
    from launch.studies.cohorts import run_verb

    print(f"osteojax {shlex.join(command)}", flush=True)
    return run_verb(command)


def _units(study: Study, rows: Any, seeds: tuple[int, ...]) -> list[tuple[Row, int]]:
    """What there is to train, seed by seed, so that a table of all rows is there early. A ceiling
    has nothing to draw: one seed is all."""
    wanted = list(dict.fromkeys(study.trained(row).name for row in rows))
    return [
        (study.row(name), seed)
        for seed in seeds
        for name in wanted
        if seed == seeds[0] or not study.row(name).ceiling
    ]


def _do_all(runs: Runs, units: list[tuple[Row, int]]) -> list[dict[str, Any]]:
    """Every unit that is not finished; failures do not stop the others."""
    from osteojax.train.stop import Stopped

    failures: list[dict[str, Any]] = []
    began, spent = time.perf_counter(), []
    for number, (row, seed) in enumerate(units, start=1):
        start = time.perf_counter()
        try:
            if runs.done(row, seed):
                continue
            print(f"-- {number} of {len(units)}: {row.name}, seed {seed}", flush=True)
            runs.do(row, seed)
        except Stopped:
            raise
        except UserError as error:
            failures.append({"row": row.name, "seed": seed, "reason": str(error)})
            print(f"failed: {row.name}, seed {seed}: {error}", file=sys.stderr)
        except Exception as error:  # the other rows' hours must not go with it
            failures.append(
                {"row": row.name, "seed": seed, "reason": _keep(runs, row, seed, error)}
            )
            print(f"failed: {row.name}, seed {seed}: {failures[-1]['reason']}", file=sys.stderr)
        spent.append(time.perf_counter() - start)
        left = (len(units) - number) * sum(spent) / len(spent)
        print(
            f"-- {row.name}, seed {seed}: {spent[-1] / 60:.1f} minutes; "
            f"{(time.perf_counter() - began) / 3600:.2f} hours so far, about {left / 3600:.2f} to "
            "go if the rest is alike",
            flush=True,
        )
    return failures


def _keep(runs: Runs, row: Row, seed: int, error: Exception) -> str:
    """Writes the traceback of an error that is the program's; one line for the table."""
    from osteojax.files import write_text

    path = runs.folder(row, seed) / "error.txt"
    write_text(path, "".join(traceback.format_exception(error)))
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first} (see {path})"


def report(runs: Runs, failures: list[dict[str, Any]]) -> None:
    """Scores every row that has a finished seed, writes WORKDIR/results, prints the tables."""
    from rich.console import Console

    from launch.studies import plots, scores, tables
    from osteojax.evaluation.report.plots import save

    study = runs.study
    answers, lines, swaps, hours = {}, [], [], {}
    for row in study.rows:
        trained = study.trained(row)
        if not (seeds := [seed for seed in study.seeds if _finished(runs, trained, seed)]):
            continue
        predicted = [runs.predictions(row, seed) for seed in seeds]
        answers[row.name] = scores.Answers(
            row.name, seeds, predicted, bool(row.ceiling), study.trains_bmd(row)
        )
        about = {"row": row.name, "cohort": trained.cohort, "seeds": seeds}
        found = scores.scores(answers[row.name], study.resamples)
        lines += [{**about, **line} for line in found]
        if not row.like:
            hours[row.name] = sum(runs.seconds(row, seed) for seed in seeds) / 3600
        if row.swap:
            found = scores.device_swap(
                [runs.told(row, seed) for seed in seeds], runs.true_bmd(row), study.resamples
            )
            swaps += [{"row": row.name, **line} for line in found]
    contrasts = scores.contrast_results(study.contrasts, answers, study.resamples)
    out = runs.workdir / "results"
    results = tables.Results(lines, contrasts, swaps, failures, hours)
    grids = tables.write(out, study, results)
    if (figure := plots.contrasts(contrasts)) is not None:
        save(figure, out / "contrasts.png")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for grid in grids:
        console.print(grid.terminal())
    print(f"{tables.SIMULATED}\nresults: {out / 'study.md'} and, beside it, .json, .csv, .png")


def _finished(runs: Runs, row: Row, seed: int) -> bool:
    """A row that another version of the study made is among the failures, not in the table."""
    try:
        return runs.done(row, seed)
    except UserError:
        return False
