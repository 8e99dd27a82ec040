"""A whole cohort -> a prepared folder: resume, workers, shards, statistics, manifest.

settings.json     written first: what the folder is being made from
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
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.cohort import Cohort, Scan
from data_prep.devices import DeviceTable
from data_prep.pipeline import CODES, RoiSettings, ScanReport, part_path, prepare_scan
from data_prep.shards import merge_shard, shard_name, shard_rows
from data_prep.workers import Task, run_tasks
from osteojax import __version__
from osteojax.data.schema import (
    SPLITS,
    UNKNOWN_DEVICE,
    VERTEBRA_COLUMNS,
    Manifest,
    MapSpec,
)
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


def build(cohort: Cohort, settings: BuildSettings, out: Path, workers: int) -> Built:
    """Prepares a cohort into `out`, or goes on where an earlier run stopped.

    Scans that failed are tried again on every run.

    Raises:
      UserError: `out` belongs to another cohort or other settings, or holds foreign files; another
        process is at work in it; a worker died; nothing is left of the cohort.
      OSError: the disk is full. What is finished is kept.
    """
    _claim(out, cohort, settings)
    with _lock(out):
        _remove_leftovers(out)
        shards = _membership(len(cohort.scans), settings.scans_per_shard)
        _run(cohort.scans, settings, out, shards, workers)
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
def _lock(out: Path) -> Iterator[None]:
    """Keeps a second `prepare` out; the kernel releases it however this process ends."""
    with (out / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another `osteojax prepare` is at work here.") from None
        yield


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


def _run(
    scans: list[Scan],
    settings: BuildSettings,
    out: Path,
    shards: dict[str, range],
    workers: int,
) -> None:
    """Prepares the scans that are not done and merges every shard as soon as its scans are."""
    shard_of = {index: name for name, indices in shards.items() for index in indices}
    todo = [scan for scan in scans if not _is_done(out, scan.index, shard_of[scan.index])]
    if todo:  # a folder that is being changed is not finished
        (out / "manifest.json").unlink(missing_ok=True)
    waiting = Counter(shard_of[scan.index] for scan in todo)
    tasks: deque[Task] = deque(
        (name, merge_shard, (out, name, indices))
        for name, indices in shards.items()
        if not waiting[name]
    )
    tasks.extend((scan.scan_id, prepare_scan, (scan, settings.roi, out)) for scan in todo)
    workers = max(1, min(workers, len(todo)))
    with tqdm(
        total=len(scans), initial=len(scans) - len(todo), unit="scan", desc="prepare", smoothing=0.1
    ) as bar:
        failed = 0
        for (_, function, arguments), result in run_tasks(tasks, workers):
            if function is not prepare_scan:
                continue
            failed += bool(result.failures)
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            name = shard_of[arguments[0].index]
            waiting[name] -= 1
            if not waiting[name]:
                tasks.append((name, merge_shard, (out, name, shards[name])))


def _is_done(out: Path, index: int, shard: str) -> bool:
    """Finished by an earlier run, without a failure, its records in place."""
    path = part_path(out, index, "json")
    if not path.exists():
        return False
    report = ScanReport.load(path)
    if report.failures:
        return False
    in_place = part_path(out, index, "array_record").exists() or (out / "shards" / shard).exists()
    return in_place or not report.rows


def _finish(cohort: Cohort, settings: BuildSettings, out: Path, shards: dict[str, range]) -> Built:
    """Tables, statistics and, last, the manifest."""
    reports = [ScanReport.load(part_path(out, scan.index, "json")) for scan in cohort.scans]
    failures = [(e.case, e.reason, e.remedy) for e in cohort.failures]
    failures += [failure for report in reports for failure in report.failures]
    excluded = cohort.excluded + [row for report in reports for row in report.excluded]
    _write_table(out / "failures.csv", ("case", "reason", "remedy"), failures)
    _write_table(out / "excluded.csv", ("case", "patient_id", "reason"), excluded)
    rows_of = {name: shard_rows(out, name, indices) for name, indices in shards.items()}
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
        [tuple(row[column] for column in VERTEBRA_COLUMNS) for row in rows],
    )
    schemes = {scan.label_scheme for scan in cohort.scans}
    bmd_mean, bmd_std = _bmd_statistics(rows)
    manifest = Manifest(
        size=settings.roi.size,
        spacing_mm=settings.roi.spacing_mm,
        maps=_map_statistics(settings.roi.map_specs(), reports),
        devices=(*settings.devices, UNKNOWN_DEVICE),
        bmd_mean=bmd_mean,
        bmd_std=bmd_std,
        texture=settings.as_json()["texture"],
        shards=tuple({"name": name, "vertebrae": len(own)} for name, own in rows_of.items() if own),
        counts=_counts(rows),
        settings=settings.as_json() | {"cohort": cohort.digest},
        label_scheme=schemes.pop() if len(schemes) == 1 else "mixed",
        code_version=__version__,
    )
    manifest.save(out)
    return Built(manifest, rows, failures, excluded)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # None is written as an empty field
    write_text(path, stream.getvalue())


def _map_statistics(specs: tuple[MapSpec, ...], reports: list[ScanReport]) -> tuple[MapSpec, ...]:
    """Mean and SD of t over every voxel of the training vertebrae, exact from summed histograms.

    A map that does not vary, and a cohort without training vertebrae, keep an SD of 1.
    """
    described = []
    for spec in specs:
        counts = np.zeros(CODES, np.int64)
        for report in reports:
            counts += np.array(report.histograms.get(spec.name, 0), np.int64)
        if counts.sum():
            t = spec.offset + spec.step * np.arange(CODES)
            mean = float(np.average(t, weights=counts))
            std = float(np.sqrt(np.average((t - mean) ** 2, weights=counts)))
            spec = dataclasses.replace(spec, mean=mean, std=std if std > 0 else 1.0)
        described.append(spec)
    return tuple(described)


def _bmd_statistics(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean and SD of BMD over training vertebrae that have one; (0, 1) where none has."""
    bmd = [r["bmd_g_cm2"] for r in rows if r["split"] == "train" and r["bmd_g_cm2"] is not None]
    if not bmd:
        return 0.0, 1.0
    return float(np.mean(bmd)), float(np.std(bmd)) or 1.0


def _counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        counts[split] = {
            "patients": len({row["patient_id"] for row in own}),
            "vertebrae": len(own),
            "labelled": sum(row["osteoporosis"] is not None for row in own),
        }
    return counts
