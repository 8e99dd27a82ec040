"""Runs a study: trains unfinished rows, scores finished ones, and writes the tables."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.readouts import page
from launch.readouts.plan import ReadoutStudy
from launch.studies import plots, scores, study_report
from launch.studies.folders import reason_of, slug
from launch.studies.plan import Row, Study
from launch.studies.predictions import Stored, keep, true_bmd
from launch.studies.runs import Runs
from osteojax.errors import UserError
from osteojax.evaluation.report.plots import save
from osteojax.train.stop import Stopped

RESULTS = "results"
"""Folder of a study's workdir with study.md and the other tables."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """A message of a running study: a line of text, and whether it reports a failed row."""

    text: str
    failed: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of a study so far.

    Attributes:
      results: scores, contrasts, failures.
      grids: the tables of study.md.
      stopped: the signal that ended the training early, or None.
    """

    results: study_report.Results | page.Results
    grids: list[study_report.Grid]
    stopped: Stopped | None = None


def run_study(
    study: Study | ReadoutStudy,
    workdir: str | Path,
    *,
    seeds: int | None = None,
    rows: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Trains every row that is not finished, then writes WORKDIR/results.

    A row that fails does not stop the others. A second call resumes.

    Args:
      study: of `plan.load_study`.
      workdir: folder of the study.
      seeds: number of its training seeds to use, from the first; None is all.
      rows: only these rows and what they need, by name or by folder, of a study of readouts also by
        part; empty is all.
      progress: called with a message at every step and failure.

    Raises:
      UserError: more seeds than the study has, or a row that it lacks.
    """
    if seeds and seeds > len(study.seeds):
        raise UserError(f"--seeds {seeds}: the study has {len(study.seeds)}: {study.seeds}.")
    if isinstance(study, ReadoutStudy):
        from launch.readouts.run import run_readouts

        return run_readouts(study, Path(workdir), seeds, rows, progress)
    folders = {slug(row.name): row.name for row in study.rows}
    wanted = [study.row(folders.get(name, name)) for name in rows or folders]
    runs = Runs(study, Path(workdir), lambda text: progress(Progress(text)))
    failures: list[dict[str, Any]] = []
    stopped = None
    try:
        _train_all(runs, _units(study, wanted, study.seeds[:seeds]), failures, progress)
    except Stopped as signal:
        stopped = signal
    out = runs.workdir / RESULTS
    keep(runs, out / "predictions")
    results = _results(Stored(study, out / "predictions"), failures)
    return Outcome(results, _write(study, out, results), stopped)


def page_again(study: Study, folder: str | Path, out: str | Path) -> Outcome:
    """Writes the page from the tables of `launch.studies.predictions` in `folder`, into `out`.
    Raises UserError where there are none."""
    results = _results(Stored(study, folder), [])
    if not results.scores:
        raise UserError(f"{folder}: no predictions of the rows of study {study.name}.")
    return Outcome(results, _write(study, Path(out), results))


def _units(study: Study, rows: Sequence[Row], seeds: Sequence[int]) -> list[tuple[Row, int]]:
    """The pairs of row and seed to train, ordered by seed, so that a table of all rows is available
    early. Ceilings are not random, so they have one seed."""
    wanted = list(dict.fromkeys(study.trained(row).name for row in rows))
    return [
        (study.row(name), seed)
        for seed in seeds
        for name in wanted
        if seed == seeds[0] or not study.row(name).ceiling
    ]


def _train_all(
    runs: Runs,
    units: Sequence[tuple[Row, int]],
    failures: list[dict[str, Any]],
    progress: Callable[[Progress], None],
) -> None:
    """Trains every unfinished unit and appends failures to `failures`. Raises Stopped."""
    began, spent = time.perf_counter(), []
    for number, (row, seed) in enumerate(units, start=1):
        start = time.perf_counter()
        reason = ""
        try:
            if runs.done(row, seed):
                continue
            progress(Progress(f"-- {number} of {len(units)}: {row.name}, seed {seed}"))
            runs.do(row, seed)
        except Stopped:
            raise
        except Exception as error:  # any error: the other rows are still trained
            reason = reason_of(error, runs.folder(row, seed))
        if reason:
            failures.append({"row": row.name, "seed": seed, "reason": reason})
            progress(Progress(f"failed: {row.name}, seed {seed}: {reason}", failed=True))
        spent.append(time.perf_counter() - start)
        left = (len(units) - number) * sum(spent) / len(spent)
        hours = (time.perf_counter() - began) / 3600
        progress(
            Progress(
                f"-- {row.name}, seed {seed}: {spent[-1] / 60:.1f} minutes; {hours:.2f} hours so "
                f"far, about {left / 3600:.2f} to go if the rest is alike"
            )
        )


def _results(stored: Stored, failures: list[dict[str, Any]]) -> study_report.Results:
    """Scores of every row that has a finished seed."""
    study = stored.study
    answers: dict[str, scores.Answers] = {}
    lines: list[dict[str, Any]] = []
    swaps: list[dict[str, Any]] = []
    hours: dict[str, float] = {}
    for row in study.rows:
        if not (seeds := stored.seeds(row)):
            continue
        predicted = [stored.predictions(row, seed) for seed in seeds]
        answers[row.name] = scores.Answers(
            row.name, seeds, predicted, bool(row.ceiling), study.trains_bmd(row)
        )
        about = {"row": row.name, "cohort": study.trained(row).cohort, "seeds": seeds}
        found = scores.scores(answers[row.name], study.resamples)
        lines += [{**about, **line} for line in found]
        if not row.like:
            hours[row.name] = sum(stored.seconds(row, seed) for seed in seeds) / 3600
        if row.swap:
            told = [stored.told(row, seed) for seed in seeds]
            found = scores.device_swap(told, true_bmd, study.resamples)
            swaps += [{"row": row.name, **line} for line in found]
    contrasts = scores.contrast_results(study.contrasts, answers, study.contrast_resamples)
    return study_report.Results(lines, contrasts, swaps, failures, hours)


def _write(study: Study, out: Path, results: study_report.Results) -> list[study_report.Grid]:
    """Writes the page into `out`; returns the tables for a terminal."""
    grids = study_report.write(out, study, results)
    if (figure := plots.contrasts(results.contrasts)) is not None:
        save(figure, out / "contrasts.png")
    return grids
