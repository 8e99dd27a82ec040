"""Prepares a whole cohort into a folder: resume, workers, shards, tables, manifest.

settings.json     written first: tables and settings that the folder is made from
items.json        items in order (`correction`)
parts/            one JSON per finished item, and its records until they are in a shard
shards/           ArrayRecord files
<table>, failures.csv, doubts.csv, excluded.csv
manifest.json     written last, when the folder is finished

The recipe defines items and records; this module knows no kind of data.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.correction import MOVED, finish_move, follow_tables
from data_prep.folder import claim, lock, names, remove_leftovers, write_table
from data_prep.parts import load_report, part_path, prepare_item, remove_parts, save_part
from data_prep.recipe import FAIL, KEEP, Cohort, Doubt, Item, Recipe, Report
from data_prep.shards import membership, merge_shard, shard_rows
from data_prep.workers import (
    Crew,
    InProcess,
    Task,
    WorkerDied,
    accelerator_here,
    in_thread,
    run_tasks,
    uninterrupted,
)
from osteojax import __version__
from osteojax.data.schema import Manifest
from osteojax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Built:
    """Content of the finished folder, for the summary.

    Attributes:
      manifest: as written.
      rows: of the table.
      failures: (case, reason, remedy).
      excluded: (case, patient_id, reason).
      doubts: of what was kept.
      num_moved: items finished by an earlier run that corrected tables put into another split.
    """

    manifest: Manifest
    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    excluded: list[tuple[str, str, str]]
    doubts: list[Doubt]
    num_moved: int = 0


def build(
    recipe: Recipe,
    cohort: Cohort,
    out: Path,
    items_per_shard: int,
    workers: int,
    scheduler: str | None = None,
    doubts: str = KEEP,
) -> Built:
    """Prepares a cohort into `out`, or resumes an earlier run.

    Items that failed are tried again on every run. Tables may have been corrected since
    (`correction`).

    Args:
      items_per_shard: number of items of a shard.
      workers: processes of this machine; 1 is this process.
      scheduler: address of a Dask scheduler whose workers are used instead.
      doubts: one of `recipe.DOUBTS`: whether an item that has doubts is kept or fails.

    Raises:
      UserError: `out` belongs to another cohort or other settings, or has foreign files; another
        process is preparing it; the workers cannot be used or are gone; a shard's worker died
        twice; no item of the cohort is usable.
      OSError: the disk is full. Finished items are kept.
    """
    out = out.resolve()
    settings = {"scans_per_shard": items_per_shard, **recipe.settings(), "cohort": cohort.digest}
    if doubts != KEEP:  # folders of earlier versions have no such setting and keep their doubts
        settings["doubts"] = doubts
    claimed = {"osteojax": __version__, "kind": recipe.kind, **settings}
    if (out / MOVED).is_dir():
        with lock(out):
            finish_move(out)
    other_tables = claim(out, claimed)
    with lock(out) as run:
        remove_leftovers(out)
        num_moved = follow_tables(recipe, cohort, out, claimed, other_tables)
        shards = membership(recipe.shard_prefix, len(cohort.items), items_per_shard)
        job = _Job(recipe, cohort, out, shards, doubts == FAIL)
        work = _remaining(job)
        if work.num_tasks:  # the folder changes, so it is not finished
            (out / "manifest.json").unlink(missing_ok=True)
            with _crew(job, run, min(workers, work.num_tasks), scheduler) as crew:
                _run(job, work, crew)
        return dataclasses.replace(_finish(job, settings), num_moved=num_moved)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The cohort, the recipe and the folder of a run.

    Attributes:
      shards: file name -> indices of items.
      doubts_fail: whether an item that has doubts fails.
    """

    recipe: Recipe
    cohort: Cohort
    out: Path
    shards: dict[str, range]
    doubts_fail: bool

    @property
    def shard_of(self) -> dict[int, str]:
        return {index: name for name, indices in self.shards.items() for index in indices}


@dataclasses.dataclass(frozen=True)
class _Work:
    """Work that is left: items to prepare, and shards to update whose items are all done."""

    items: list[Item]
    shards: list[str]

    @property
    def num_tasks(self) -> int:
        return len(self.items) + len(self.shards)


def _remaining(job: _Job) -> _Work:
    """Compares the cohort with the content of the folder.

    Folders are listed instead of testing for single files: if a network file system was asked for
    a file before another machine wrote it, it may report the file as missing for another minute.
    """
    parts, finished = names(job.out / "parts"), names(job.out / "shards")
    shard_of = job.shard_of

    def is_done(index: int) -> bool:
        """Whether an earlier run prepared the item without a failure, and its records exist."""
        if part_path(job.out, index, "json").name not in parts:
            return False
        report = load_report(job.out, index)
        in_shard = shard_of[index] in finished and report.complete
        in_place = part_path(job.out, index, "array_record").name in parts or in_shard
        return not report.failures and (in_place or not report.rows)

    todo = [item for item in job.cohort.items if not is_done(item.index)]
    if (job.out / "manifest.json").exists():  # all shards were up to date
        return _Work(todo, [])
    unfinished = {shard_of[item.index] for item in todo}
    return _Work(todo, [name for name in job.shards if name not in unfinished])


@contextlib.contextmanager
def _crew(job: _Job, run: str, workers: int, scheduler: str | None) -> Iterator[Crew]:
    """The workers of a run; records are completed on an accelerator if there is one."""
    accelerated = job.recipe.completion is not None and accelerator_here()
    with contextlib.ExitStack() as stack:
        if scheduler is None and workers == 1:
            yield Crew(InProcess(), InProcess() if accelerated else None)
            return
        with uninterrupted():
            from data_prep import cluster  # takes a second to import

        conditions = cluster.Conditions(str(job.out), run, cluster.versions())
        if scheduler is not None:
            yield stack.enter_context(cluster.cluster_crew(scheduler, conditions))
            return
        crew = stack.enter_context(cluster.local_crew(workers, conditions))
        if accelerated:  # only this process uses the accelerator
            crew = dataclasses.replace(crew, accelerator=stack.enter_context(in_thread()))
        yield crew


def _run(job: _Job, work: _Work, crew: Crew) -> None:
    """Prepares the items that are not done, and merges every shard as soon as its items are done.

    Without an accelerator, a task completes the records of its item, because a CPU gains nothing
    from batches across items, and so the items of one shard keep all workers busy.
    """
    complete = crew.accelerator is None or job.recipe.completion is None

    def merge(name: str) -> Task:
        arguments = (job.recipe, job.out, name, job.shards[name])
        return Task(name, merge_shard, arguments, accelerated=not complete)

    shard_of = job.shard_of
    waiting = Counter(shard_of[item.index] for item in work.items)
    tasks = deque(merge(name) for name in work.shards)
    for item in work.items:
        arguments = (job.recipe, item, job.out, complete, job.doubts_fail)
        tasks.append(Task(item.case, prepare_item, arguments))
    dead: list[str] = []
    total = len(job.cohort.items)
    done = total - len(work.items)
    with tqdm(total=total, initial=done, unit="scan", desc="prepare", smoothing=0.1) as bar:
        failed = 0
        for task, result in run_tasks(tasks, crew):
            if task.function is not prepare_item:
                if isinstance(result, WorkerDied):
                    dead.append(task.name)
                else:
                    remove_parts(job.out, job.shards[task.name])
                continue
            item = task.arguments[1]
            if isinstance(result, WorkerDied):
                result = _report_of_deaths(item)
                save_part(job.out, item.index, result, [])
            failed += bool(result.failures)
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            name = shard_of[item.index]
            waiting[name] -= 1
            if not waiting[name]:
                tasks.appendleft(merge(name))  # before other items, because parts take disk space
    if dead:
        raise UserError(
            f"the worker that wrote {', '.join(dead)} died, also when it was tried again. "
            "The usual cause is too little memory: rerun the same command with fewer workers or "
            "more memory for each; finished items are kept."
        )


def _report_of_deaths(item: Item) -> Report:
    """The report of an item whose worker died both times."""
    reason = "the worker that read it died, also when it was tried again."
    remedy = (
        "The usual cause is too little memory: give workers more, or use fewer. If the file does "
        "not open in a viewer either, leave it out."
    )
    return Report([], [(item.case, reason, remedy)], [])


def _finish(job: _Job, settings: dict[str, Any]) -> Built:
    """Writes tables, statistics and, last, the manifest."""
    recipe, cohort, out = job.recipe, job.cohort, job.out
    reports = {item.index: load_report(out, item.index) for item in cohort.items}
    if any(report.rows and not report.complete for report in reports.values()):
        raise UserError(
            f"{out}: a scan was prepared a second time while its shard was written. Rerun the same "
            "command."
        )
    failures = [(e.case, e.reason, e.remedy) for e in cohort.failures]
    failures += [failure for report in reports.values() for failure in report.failures]
    excluded = cohort.excluded + [row for report in reports.values() for row in report.excluded]
    doubts = cohort.doubts + [doubt for report in reports.values() for doubt in report.doubts]
    write_table(out / "failures.csv", ("case", "reason", "remedy"), failures)
    write_table(out / "doubts.csv", ("case", "reason", "remedy"), doubts)
    write_table(out / "excluded.csv", ("case", "patient_id", "reason"), excluded)
    rows_of = {name: shard_rows(name, indices, reports) for name, indices in job.shards.items()}
    rows = [row for own in rows_of.values() for row in own]
    if not rows:
        first = f" The first: {failures[0][0]}: {failures[0][1]}" if failures else ""
        raise UserError(
            f"no item of the cohort is usable: {len(failures)} failures, {len(excluded)} excluded "
            f"(see {out}/failures.csv and excluded.csv).{first}"
        )
    common = {
        "shards": tuple({"name": name, "items": len(own)} for name, own in rows_of.items() if own),
        "settings": settings,
        "code_version": __version__,
    }
    manifest = recipe.finish(cohort, list(reports.values()), rows, common)
    manifest = dataclasses.replace(manifest, doubts=len(doubts))
    columns = tuple(column.name for column in manifest.columns)
    write_table(out / manifest.table, columns, ([row[name] for name in columns] for row in rows))
    manifest.save(out)
    return Built(manifest, rows, failures, excluded, doubts)
