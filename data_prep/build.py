"""A whole cohort -> a prepared folder: resume, workers, shards, statistics, manifest.

settings.json     written first: what the folder is being made from
.lock             held by the run at work; workers know the folder by what it says
parts/            one JSON per finished scan; its records until they are in a shard
shards/           ArrayRecord files
vertebrae.csv, failures.csv, excluded.csv
manifest.json     written last: the folder is finished
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.pipeline import ScanReport, part_path, prepare_scan, save_scan
from data_prep.shards import load_reports, merge_shard, remove_parts, shard_name, shard_rows
from data_prep.statistics import bmd_statistics, map_statistics, split_counts
from data_prep.vertebrae.cohort import Cohort, Scan
from data_prep.vertebrae.pool import RoiSettings, on_accelerator
from data_prep.vertebrae.scanners import DeviceTable
from data_prep.workers import Crew, Here, Task, WorkerDied, beside, run_tasks, uninterrupted
from osteojax import __version__
from osteojax.data import vertebrae
from osteojax.data.schema import Manifest
from osteojax.data.vertebrae import POOL, UNKNOWN_DEVICE, VERTEBRA_COLUMNS
from osteojax.errors import UserError
from osteojax.files import write_json, write_text


@dataclasses.dataclass(frozen=True)
class BuildSettings:
    """What decides a prepared folder's bytes, besides the cohort.

    Attributes:
      roi: of every scan.
      devices: DXA devices and references.
      scans_per_shard: membership of the shards.
      cohort: the options the cohort was read with (label scheme, split), for the manifest.
    """

    roi: RoiSettings
    devices: DeviceTable
    scans_per_shard: int
    cohort: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """A plain tree, the same for the same settings."""
        fields = {
            "size": self.roi.size,
            "keep_truncated": self.roi.keep_truncated,
            "texture": dataclasses.asdict(self.roi.texture),
            "store": "pool" if self.roi.stored == POOL else "image",
            "devices": {
                name: {sex: dataclasses.asdict(ref) for sex, ref in sorted(references.items())}
                for name, references in self.devices.items()
            },
            "scans_per_shard": self.scans_per_shard,
            **self.cohort,
        }
        return json.loads(json.dumps(fields))


@dataclasses.dataclass(frozen=True)
class Built:
    """The finished folder, for the summary.

    Attributes:
      manifest: as written.
      rows: of `vertebrae.csv`.
      failures: (case, reason, remedy).
      excluded: (case, patient_id, reason).
    """

    manifest: Manifest
    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    excluded: list[tuple[str, str, str]]


def build(
    cohort: Cohort,
    settings: BuildSettings,
    out: Path,
    workers: int,
    scheduler: str | None = None,
) -> Built:
    """Prepares a cohort into `out`, or goes on where an earlier run stopped.

    Scans that failed are tried again on every run.

    Args:
      workers: processes of this machine; 1 is this process.
      scheduler: address of a Dask scheduler whose workers do the work instead.

    Raises:
      UserError: `out` belongs to another cohort or other settings, or holds foreign files; another
        process is at work in it; the workers cannot be used or are gone; a shard's worker died
        again and again; nothing is left of the cohort.
      OSError: the disk is full. What is finished is kept.
    """
    out = out.resolve()
    _claim(out, cohort, settings)
    with _lock(out) as run:
        _remove_leftovers(out)
        shards = _membership(len(cohort.scans), settings.scans_per_shard)
        work = _remaining(cohort.scans, out, shards)
        if work.num_tasks:  # a folder that is being changed is not finished
            (out / "manifest.json").unlink(missing_ok=True)
            with _crew(out, run, settings, min(workers, work.num_tasks), scheduler) as crew:
                _run(cohort.scans, settings, out, shards, work, crew)
        return _finish(cohort, settings, out, shards)


def _claim(out: Path, cohort: Cohort, settings: BuildSettings) -> None:
    """Writes settings.json, or checks that the one there says the same."""
    wanted = {"osteojax": __version__, "cohort": cohort.digest, **settings.as_json()}
    path = out / "settings.json"
    if not path.exists():
        foreign = sorted(entry.name for entry in out.glob("*") if not entry.name.startswith("."))
        if foreign:
            raise UserError(
                f"{out} holds other files ({', '.join(foreign[:5])}). Name a new or empty folder."
            )
        write_json(path, wanted)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Name another folder.") from error
    changed = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if changed:
        named = "; ".join(
            "cohort.csv or dxa.csv has other contents"
            if key == "cohort"
            else f"{key} was {_short(found.get(key))}, now {_short(wanted.get(key))}"
            for key in changed
        )
        raise UserError(
            f"{out} was begun with another cohort or other settings: {named}. Name another --out, "
            "or delete the folder."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[str]:
    """Keeps a second `prepare` out; the kernel releases it however this process ends.

    Yields what the file says meanwhile, the run's own random name.
    """
    with (out / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another `osteojax prepare` is at work here.") from None
        run = uuid.uuid4().hex
        stream.truncate(0)
        stream.write(run)
        stream.flush()
        yield run
        stream.truncate(0)


def _remove_leftovers(out: Path) -> None:
    """Half-written temporary files of a killed run."""
    for folder in (out, out / "parts", out / "shards"):
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink()


def _membership(num_scans: int, scans_per_shard: int) -> dict[str, range]:
    """Shard name -> indices of its scans."""
    starts = range(0, num_scans, scans_per_shard)
    return {
        shard_name(i, len(starts)): range(start, min(start + scans_per_shard, num_scans))
        for i, start in enumerate(starts)
    }


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is left to do: scans to prepare, and shards to bring up to date whose scans are done."""

    scans: list[Scan]
    shards: list[str]

    @property
    def num_tasks(self) -> int:
        return len(self.scans) + len(self.shards)


def _remaining(scans: list[Scan], out: Path, shards: dict[str, range]) -> _Work:
    """Compares the cohort with what is in `out`.

    Folders are listed, not asked for single files: a network file system may go on denying for a
    minute a file that it was asked for before another machine wrote it.
    """
    parts, finished = _names(out / "parts"), _names(out / "shards")
    shard_of = {index: name for name, indices in shards.items() for index in indices}

    def is_done(index: int) -> bool:
        """By an earlier run, without a failure, its records in place."""
        path = part_path(out, index, "json")
        if path.name not in parts:
            return False
        report = ScanReport.load(path)
        in_shard = shard_of[index] in finished and bool(report.histograms)
        in_place = part_path(out, index, "array_record").name in parts or in_shard
        return not report.failures and (in_place or not report.rows)

    todo = [scan for scan in scans if not is_done(scan.index)]
    if (out / "manifest.json").exists():  # all shards were up to date
        return _Work(todo, [])
    unfinished = {shard_of[scan.index] for scan in todo}
    return _Work(todo, [name for name in shards if name not in unfinished])


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


@contextlib.contextmanager
def _crew(
    out: Path, run: str, settings: BuildSettings, workers: int, scheduler: str | None
) -> Iterator[Crew]:
    """Who does the work; maps are made on an accelerator where there is one."""
    with contextlib.ExitStack() as stack:
        if scheduler is None and workers == 1:
            yield Crew(Here(), Here() if on_accelerator(settings.roi) else None)
            return
        with uninterrupted():
            from data_prep import cluster  # a second, for those who need it

        conditions = cluster.Conditions(str(out), run, cluster.versions())
        if scheduler is not None:
            yield stack.enter_context(cluster.cluster_crew(scheduler, conditions))
            return
        crew = stack.enter_context(cluster.local_crew(workers, conditions))
        if on_accelerator(settings.roi):  # this process has it to itself
            crew = dataclasses.replace(crew, accelerator=stack.enter_context(beside()))
        yield crew


def _run(
    scans: list[Scan],
    settings: BuildSettings,
    out: Path,
    shards: dict[str, range],
    work: _Work,
    crew: Crew,
) -> None:
    """Prepares the scans that are not done and merges every shard as soon as its scans are.

    Without an accelerator the maps are made with the scan: a CPU gains nothing by batches, and the
    scans of one shard keep all workers busy. PyRadiomics takes minutes a vertebra; so do its maps.
    """
    with_maps = crew.accelerator is None or settings.roi.texture.engine == "pyradiomics"

    def merge(name: str) -> Task:
        arguments = (out, name, shards[name], settings.roi)
        return Task(name, merge_shard, arguments, texture=not with_maps)

    shard_of = {index: name for name, indices in shards.items() for index in indices}
    waiting = Counter(shard_of[scan.index] for scan in work.scans)
    tasks = deque(merge(name) for name in work.shards)
    for scan in work.scans:
        tasks.append(Task(scan.scan_id, prepare_scan, (scan, settings.roi, out, with_maps)))
    done = len(scans) - len(work.scans)
    dead: list[str] = []
    with tqdm(total=len(scans), initial=done, unit="scan", desc="prepare", smoothing=0.1) as bar:
        failed = 0
        for task, result in run_tasks(tasks, crew):
            if task.function is not prepare_scan:
                if isinstance(result, WorkerDied):
                    dead.append(task.name)
                else:
                    remove_parts(out, shards[task.name])
                continue
            scan = task.arguments[0]
            if isinstance(result, WorkerDied):
                result = _killer(scan)
                save_scan(out, scan.index, result, [])
            failed += bool(result.failures)
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            name = shard_of[scan.index]
            waiting[name] -= 1
            if not waiting[name]:
                tasks.appendleft(merge(name))  # before other scans: parts take room
    if dead:
        raise UserError(
            f"the worker that wrote {', '.join(dead)} died, and so did those that tried again. "
            "Often this is too little memory: rerun the same command with fewer workers or more "
            "memory for each; what is finished is kept."
        )


def _killer(scan: Scan) -> ScanReport:
    """The report of a scan that every worker died of."""
    reason = "the worker that read it died, and so did those that tried again."
    remedy = (
        "Often this is too little memory: give a worker more, or use fewer. If the CT opens in no "
        "viewer either, leave the scan out."
    )
    return ScanReport([], [(scan.scan_id, reason, remedy)], [])


def _finish(cohort: Cohort, settings: BuildSettings, out: Path, shards: dict[str, range]) -> Built:
    """Tables, statistics and, last, the manifest."""
    reports = load_reports(out, range(len(cohort.scans)))
    failures = [(e.case, e.reason, e.remedy) for e in cohort.failures]
    failures += [failure for report in reports.values() for failure in report.failures]
    excluded = cohort.excluded + [row for report in reports.values() for row in report.excluded]
    _write_table(out / "failures.csv", ("case", "reason", "remedy"), failures)
    _write_table(out / "excluded.csv", ("case", "patient_id", "reason"), excluded)
    rows_of = {name: shard_rows(name, indices, reports) for name, indices in shards.items()}
    rows = [row for own in rows_of.values() for row in own]
    if not rows:
        first = f" The first: {failures[0][0]}: {failures[0][1]}" if failures else ""
        raise UserError(
            f"nothing is left of the cohort: {len(failures)} failures, {len(excluded)} excluded "
            f"(see {out}/failures.csv and excluded.csv).{first}"
        )
    _write_table(
        out / "vertebrae.csv",
        VERTEBRA_COLUMNS,
        # Scans that an earlier version prepared lack its newest columns.
        [tuple(row.get(column) for column in VERTEBRA_COLUMNS) for row in rows],
    )
    training = [reports[scan.index] for scan in cohort.scans if scan.split == "train"]
    schemes = {scan.label_scheme for scan in cohort.scans}
    bmd_mean, bmd_std = bmd_statistics(rows)
    manifest = vertebrae.manifest_of(
        size=settings.roi.size,
        spacing_mm=settings.roi.spacing_mm,
        maps=map_statistics(settings.roi.map_specs(), training),
        devices=(*settings.devices, UNKNOWN_DEVICE),
        bmd_mean=bmd_mean,
        bmd_std=bmd_std,
        texture=settings.as_json()["texture"],
        shards=tuple({"name": name, "items": len(own)} for name, own in rows_of.items() if own),
        counts=split_counts(rows),
        settings=settings.as_json() | {"cohort": cohort.digest},
        label_scheme=schemes.pop() if len(schemes) == 1 else "mixed",
        code_version=__version__,
        stored=settings.roi.stored,
    )
    manifest.save(out)
    return Built(manifest, rows, failures, excluded)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # None is written as an empty field
    write_text(path, stream.getvalue())
