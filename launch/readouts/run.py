"""Runs a study of frozen readouts: makes unfinished rows, then writes the tables and the page.

Several processes may run one study in one workdir. Each takes what no other is at.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from launch.benchmarks.measure import environment
from launch.readouts import page, predictions, scores
from launch.readouts.locks import Busy, alone
from launch.readouts.plan import Readout, ReadoutStudy
from launch.readouts.rows import Rows
from launch.studies.folders import of_this_version, reason_of, slug
from launch.studies.run import RESULTS, Outcome, Progress
from launch.studies.study_report import Grid
from osteojax.errors import UserError
from osteojax.files import write_json, write_text
from osteojax.train.stop import Stopped

PAUSE_SECONDS = 2.0
"""How long a process waits before it asks again for what another one is at."""

Unit = tuple[Readout, int]


def run_readouts(
    study: ReadoutStudy,
    workdir: Path,
    seeds: int | None,
    rows: Sequence[str],
    progress: Callable[[Progress], None],
) -> Outcome:
    """`launch.studies.run.run_study` for a study of readouts, with its arguments."""
    made = Rows(study, workdir, lambda text: progress(Progress(text)))
    failures: list[dict[str, Any]] = []
    stopped = None
    try:
        _make_all(made, _units(study, study.chosen(list(rows)), seeds), failures, progress)
    except Stopped as signal:
        stopped = signal
    with alone(workdir / "locks" / "results", wait=True):
        results, grids = _write(made, failures)
    return Outcome(results, grids, stopped)


def page_again(study: ReadoutStudy, folder: str | Path, out: str | Path) -> Outcome:
    """Writes the page from the tables of `launch.readouts.predictions` in `folder`, into `out`.
    Raises UserError where there are none."""
    results = _results(study, Path(folder), [])
    if not results.scores:
        raise UserError(f"{folder}: no predictions of the rows of study {study.name}.")
    return Outcome(results, page.write(Path(out), study, results))


def _units(study: ReadoutStudy, rows: Sequence[Readout], seeds: int | None) -> list[Unit]:
    """Pairs of row and seed: by part, then by seed, so that a part's table is soon complete."""
    return [
        (row, seed)
        for part in study.parts
        for seed in study.seeds[:seeds]
        for row in rows
        if row.part == part and seed in study.seeds_of(row)
    ]


def _make_all(
    made: Rows,
    units: Sequence[Unit],
    failures: list[dict[str, Any]],
    progress: Callable[[Progress], None],
) -> None:
    """Makes every unfinished unit and appends failures to `failures`. Raises Stopped."""
    began, left = time.perf_counter(), list(units)
    while left:
        postponed = []
        for number, (row, seed) in enumerate(left, start=1):
            try:
                if made.done(row, seed):
                    continue
                progress(Progress(f"-- {number} of {len(left)}: {row.name}, seed {seed}"))
                made.do(row, seed)
            except Busy:
                postponed.append((row, seed))
                continue
            except Stopped:
                raise
            except Exception as error:  # any error: the other rows are still made
                reason = reason_of(error, made.folder(row, seed))
                failures.append({"row": row.name, "seed": seed, "reason": reason})
                text = f"failed: {row.name}, seed {seed}: {reason}"
                progress(Progress(text, failed=True))
            minutes = (time.perf_counter() - began) / 60
            progress(Progress(f"-- {row.name}, seed {seed}: {minutes:.1f} minutes so far"))
        if postponed and len(postponed) == len(left):
            time.sleep(PAUSE_SECONDS)
        left = postponed


def _write(made: Rows, failures: list[dict[str, Any]]) -> tuple[page.Results, list[Grid]]:
    """Writes WORKDIR/results: the tables of predictions, and the page from them."""
    study, out = made.study, made.workdir / RESULTS
    folder = out / "predictions"
    shutil.rmtree(folder, ignore_errors=True)  # a row may have been renamed
    for row in study.rows:
        seeds = [seed for seed in study.seeds_of(row) if of_this_version(made.done, row, seed)]
        if seeds:
            table = predictions.joined({seed: made.predicted(row, seed) for seed in seeds})
            predictions.write(folder / "rows" / f"{slug(row.name)}.csv", table)
    for path in sorted((made.workdir / "cases").glob("*.csv")):
        write_text(folder / "cases" / path.name, path.read_text(encoding="utf-8"))
    if encoders := _encoders(made):
        predictions.write(folder / "encoders.csv", pd.DataFrame(encoders))
    write_json(folder / "environment.json", environment("scikit-learn"))
    results = _results(study, folder, failures)
    return results, page.write(out, study, results)


def _results(study: ReadoutStudy, folder: Path, failures: list[dict[str, Any]]) -> page.Results:
    """Scores of every row that has predictions."""
    answers = predictions.read(study, folder)
    lines = []
    for name, found in answers.items():
        about = {"part": found.row.part, "row": name, "seeds": list(found.seeds)}
        lines += [{**about, **line} for line in scores.scores(found, study)]
    place = folder / "environment.json"
    return page.Results(
        scores=lines,
        contrasts=scores.contrast_results(study, answers),
        failures=failures,
        encoders=predictions.read_encoders(folder),
        environment=json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {},
    )


def _encoders(made: Rows) -> list[dict[str, Any]]:
    """Steps and minutes of every finished encoder."""
    lines = []
    for name in made.study.encoders:
        for seed in made.study.seeds:
            found = of_this_version(made.encoders.made, name, seed)
            if found is not None:
                minutes = found["seconds"] / 60
                known = {"encoder": name, "seed": seed, "steps": found["steps"]}
                lines.append({**known, "minutes": minutes})
    return lines
