"""Joins the parts of the scans into shards of fixed membership, with the maps that are missing.

Which scans belong to a shard is fixed by their index before work starts, so the shards are the
same bytes whatever the number of workers and however often the work was interrupted.

A task may run twice at once (a cluster takes a worker for dead that is only slow), so it removes
nothing: whoever handed it out calls `remove_parts` once it has succeeded.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.pipeline import ScanReport, open_part, part_path
from data_prep.records import (
    ShardReader,
    decode_mask,
    encode_vertebra,
    meta_record,
    write_records,
)
from data_prep.vertebrae.pool import CODES, RoiSettings, batch_size, histogram, map_codes
from osteojax.data.vertebrae import POOL
from osteojax.errors import UserError


def shard_name(shard: int, num_shards: int) -> str:
    return f"pool-{shard:05d}-of-{num_shards:05d}.array_record"


def shard_rows(
    name: str, scan_indices: range, reports: dict[int, ScanReport]
) -> list[dict[str, Any]]:
    """Rows of a shard's vertebrae in record order, complete with shard and position."""
    rows: list[dict[str, Any]] = []
    for index in scan_indices:
        for row in reports[index].rows:
            rows.append(row | {"shard": name, "position": len(rows)})
    return rows


def load_reports(out: Path, scan_indices: range) -> dict[int, ScanReport]:
    """Report of each scan, by its index."""
    return {index: ScanReport.load(part_path(out, index, "json")) for index in scan_indices}


def merge_shard(out: Path, name: str, scan_indices: range, settings: RoiSettings) -> None:
    """Writes `shards/<name>` from the scans' parts, atomically; makes the maps that they lack.

    Scans that an earlier run already put into the shard are copied from there, so a scan that
    failed then and succeeds now joins it. Does nothing where the shard is up to date.

    Raises:
      OSError: the disk is full.
      UserError: the existing shard is damaged.
    """
    path = out / "shards" / name
    reports = load_reports(out, scan_indices)
    rows = shard_rows(name, scan_indices, reports)
    parts = [i for i in scan_indices if part_path(out, i, "array_record").exists()]
    old = ShardReader(path, settings.stored) if path.exists() else None
    if not parts and (not rows if old is None else list(old.metas()) == rows):
        return
    if not rows:
        path.unlink(missing_ok=True)
        return
    counts: dict[int, dict[str, np.ndarray]] = {}
    sources = _sources(out, reports, parts, old, settings)
    write_records(path, _completed(sources, rows, settings, counts))
    for index, histograms in counts.items():
        named = {name: histograms[name].tolist() for name in POOL}
        report = dataclasses.replace(reports[index], histograms=named)
        report.save(part_path(out, index, "json"))


def remove_parts(out: Path, scan_indices: range) -> None:
    """Removes the records that are in the shard now; the reports stay."""
    for index in scan_indices:
        part_path(out, index, "array_record").unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a vertebra's records come from.

    Attributes:
      scan_index: of its scan.
      records: as read, the first being the meta record.
      lacks_maps: they are image and mask of a pool whose maps are still to be made.
    """

    scan_index: int
    records: list[bytes]
    lacks_maps: bool


def _sources(
    out: Path,
    reports: dict[int, ScanReport],
    parts: list[int],
    old: ShardReader | None,
    settings: RoiSettings,
) -> Iterator[_Source]:
    """Every vertebra in order, each scan from its part or from the old shard."""
    old_positions = defaultdict(list)
    for position, meta in enumerate(old.metas() if old else ()):
        old_positions[meta["scan_id"]].append(position)
    for index, report in reports.items():
        if not report.rows:
            continue
        if index in parts:
            reader, positions = open_part(out, index, len(report.rows)), [*range(len(report.rows))]
            lacks_maps = reader.stored != settings.stored or not report.histograms
        elif old is not None:
            reader, positions = old, old_positions[report.rows[0]["scan_id"]]
            lacks_maps = False
        else:
            raise UserError(f"{out}: a part of the work is gone. Prepare into a new folder.")
        if len(positions) != len(report.rows):
            raise UserError(
                f"{out}: the shard and its report disagree about scan "
                f"{report.rows[0]['scan_id']}. Prepare into a new folder."
            )
        for position in positions:
            yield _Source(index, reader.raw(position), lacks_maps)


def _completed(
    sources: Iterator[_Source],
    rows: list[dict[str, Any]],
    settings: RoiSettings,
    counts: dict[int, dict[str, np.ndarray]],
) -> Iterator[list[bytes]]:
    """The records of every vertebra as stored, the missing maps made in batches across scans.

    At most a batch of vertebrae is held. counts: scan -> map -> histogram; is filled for the scans
    whose maps are made here.
    """
    metas = iter(rows)
    batch: list[_Source] = []
    size = batch_size(settings)
    for source in sources:
        batch.append(source)
        if len(batch) == size:
            for records in _with_maps(batch, settings, counts):
                yield [meta_record(next(metas)), *records[1:]]
            batch = []
    for records in _with_maps(batch, settings, counts):
        yield [meta_record(next(metas)), *records[1:]]


def _with_maps(
    batch: list[_Source], settings: RoiSettings, counts: dict[int, dict[str, np.ndarray]]
) -> list[list[bytes]]:
    """The records of a batch, with maps where they lacked."""
    records = [source.records for source in batch]
    lacking = [i for i, source in enumerate(batch) if source.lacks_maps]
    if not lacking:
        return records
    shape = (settings.size,) * 3
    images = np.stack([np.frombuffer(records[i][1], np.uint8).reshape(shape) for i in lacking])
    planes = np.stack([decode_mask(records[i][-1], settings.size) for i in lacking])
    codes = {"image": images} | map_codes(images, planes[:, 0], settings)
    for k, i in enumerate(lacking):
        own = counts.setdefault(batch[i].scan_index, {n: np.zeros(CODES, np.int64) for n in POOL})
        for name in POOL:
            own[name] += histogram(codes[name][k])
        kept = {name: codes[name][k] for name in POOL if name in settings.stored}
        records[i] = encode_vertebra(kept, *planes[k])
    return records
