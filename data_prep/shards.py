"""Joins the parts of the scans into shards of fixed membership.

Which scans belong to a shard is fixed by their index before work starts, so the shards are the
same bytes whatever the number of workers and however often the work was interrupted.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from data_prep.pipeline import ScanReport, part_path
from data_prep.records import ShardReader, meta_record, write_records
from osteojax.errors import UserError


def shard_name(shard: int, num_shards: int) -> str:
    return f"pool-{shard:05d}-of-{num_shards:05d}.array_record"


def shard_rows(out: Path, name: str, scan_indices: range) -> list[dict[str, Any]]:
    """Rows of a shard's vertebrae in record order, complete with shard and position."""
    rows: list[dict[str, Any]] = []
    for index in scan_indices:
        for row in ScanReport.load(part_path(out, index, "json")).rows:
            rows.append(row | {"shard": name, "position": len(rows)})
    return rows


def merge_shard(out: Path, name: str, scan_indices: range) -> None:
    """Writes `shards/<name>` from the scans' parts, atomically, then removes the parts.

    Scans that an earlier run already put into the shard are copied from there, so a scan that
    failed then and succeeds now joins it. Does nothing where the shard is up to date.

    Raises:
      OSError: the disk is full.
      UserError: the existing shard is damaged.
    """
    path = out / "shards" / name
    rows = shard_rows(out, name, scan_indices)
    parts = {
        index: part
        for index in scan_indices
        if (part := part_path(out, index, "array_record")).exists()
    }
    old = ShardReader(path) if path.exists() else None
    if not parts and (not rows if old is None else list(old.metas()) == rows):
        return
    if rows:
        write_records(path, _vertebrae(out, rows, scan_indices, parts, old))
    else:
        path.unlink(missing_ok=True)
    for part in parts.values():
        part.unlink()


def _vertebrae(
    out: Path,
    rows: list[dict[str, Any]],
    scan_indices: range,
    parts: dict[int, Path],
    old: ShardReader | None,
):
    """Records of every vertebra in order, each scan from its part or from the old shard."""
    old_positions = defaultdict(list)
    for position, meta in enumerate(old.metas() if old else ()):
        old_positions[meta["scan_id"]].append(position)
    by_scan = defaultdict(list)
    for row in rows:
        by_scan[row["scan_id"]].append(row)
    for index in scan_indices:
        report = ScanReport.load(part_path(out, index, "json"))
        if not report.rows:
            continue
        own_rows = by_scan[report.rows[0]["scan_id"]]
        if index in parts:
            reader, positions = ShardReader(parts[index]), list(range(len(own_rows)))
        elif old is not None:
            reader, positions = old, old_positions[own_rows[0]["scan_id"]]
        else:
            raise UserError(f"{out}: a part of the work is gone. Prepare into a new folder.")
        for row, position in zip(own_rows, positions, strict=True):
            yield [meta_record(row), *reader.raw(position)[1:]]
