"""Merges the parts of items into shards, and completes their records.

The index of an item determines its shard, so shards have the same bytes for any number of workers
and after any interruption.

A task may run twice at a time (a cluster may consider a slow worker dead), so tasks remove nothing:
the process that submitted a task calls `parts.remove_parts` when it has succeeded.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.parts import load_report, open_part, part_path, save_report
from data_prep.recipe import Completion, Recipe, Report
from data_prep.records import ShardReader, meta_record, write_records
from osteojax.errors import UserError

_Sums = dict[str, np.ndarray]
"""Name of a histogram -> i64[...] counts."""


def membership(prefix: str, num_items: int, items_per_shard: int) -> dict[str, range]:
    """File name of each shard -> indices of its items."""
    starts = range(0, num_items, items_per_shard)
    return {
        f"{prefix}-{number:05d}-of-{len(starts):05d}.array_record": range(
            start, min(start + items_per_shard, num_items)
        )
        for number, start in enumerate(starts)
    }


def shard_rows(name: str, indices: range, reports: dict[int, Report]) -> list[dict[str, Any]]:
    """Rows of a shard in record order, each with its shard and position."""
    rows: list[dict[str, Any]] = []
    for index in indices:
        for row in reports[index].rows:
            rows.append(row | {"shard": name, "position": len(rows)})
    return rows


def merge_shard(recipe: Recipe, out: Path, name: str, indices: range) -> None:
    """Writes `shards/<name>` from the items' parts, atomically, and completes records.

    Items that an earlier run already put into the shard are copied from there, so that an item that
    failed before and succeeds now is added. Does nothing if the shard is up to date.

    Raises:
      OSError: the disk is full.
      UserError: the existing shard is damaged.
    """
    path = out / "shards" / name
    reports = {index: load_report(out, index) for index in indices}
    rows = shard_rows(name, indices, reports)
    parts = [i for i in indices if part_path(out, i, "array_record").exists()]
    old = ShardReader(path, len(recipe.fields)) if path.exists() else None
    if not parts and (not rows if old is None else list(old.metas()) == rows):
        return
    if not rows:
        path.unlink(missing_ok=True)
        return
    sums: dict[int, _Sums] = {}
    sources = _sources(recipe, out, reports, parts, old)
    write_records(path, _with_metas(_completed(sources, recipe.completion, sums), rows))
    for index, own in sums.items():
        histograms = {key: values.tolist() for key, values in own.items()}
        report = dataclasses.replace(reports[index], histograms=histograms, complete=True)
        save_report(out, index, report)


@dataclasses.dataclass(frozen=True)
class _Source:
    """The records of a row as they were read; the first is "meta".

    Attributes:
      index: of its item.
      complete: whether the records are final.
    """

    index: int
    records: list[bytes]
    complete: bool


def _sources(
    recipe: Recipe,
    out: Path,
    reports: dict[int, Report],
    parts: list[int],
    old: ShardReader | None,
) -> Iterator[_Source]:
    """Yields every row in order, from its item's part or from the old shard."""
    old_positions = defaultdict(list)
    for position, meta in enumerate(old.metas() if old else ()):
        old_positions[meta[recipe.item_column]].append(position)
    for index, report in reports.items():
        if not report.rows:
            continue
        case = report.rows[0][recipe.item_column]
        if index in parts:
            reader, positions = open_part(out, index, len(report.rows)), [*range(len(report.rows))]
            complete = report.complete and reader.per_row == len(recipe.fields)
        elif old is not None:
            reader, positions, complete = old, old_positions[case], True
        else:
            raise UserError(f"{out}: a file below parts/ is missing. Prepare into a new folder.")
        if len(positions) != len(report.rows):
            raise UserError(
                f"{out}: the shard and its report disagree about {case}. Prepare into a new folder."
            )
        for position in positions:
            yield _Source(index, reader.records(position), complete)


def _with_metas(
    records: Iterator[list[bytes]], rows: list[dict[str, Any]]
) -> Iterator[list[bytes]]:
    for own, row in zip(records, rows, strict=True):
        yield [meta_record(row), *own[1:]]


def _completed(
    sources: Iterator[_Source], completion: Completion | None, sums: dict[int, _Sums]
) -> Iterator[list[bytes]]:
    """Final records of every row, completed in batches across items.

    At most one batch of rows is in memory. sums: item -> histograms; filled in for the items that
    are completed here.
    """
    batch: list[_Source] = []
    size = completion.batch_size() if completion else 1
    for source in sources:
        batch.append(source)
        if len(batch) == size:
            yield from _complete(batch, completion, sums)
            batch = []
    yield from _complete(batch, completion, sums)


def _complete(
    batch: list[_Source], completion: Completion | None, sums: dict[int, _Sums]
) -> list[list[bytes]]:
    """Final records of a batch."""
    records = [source.records for source in batch]
    incomplete = [i for i, source in enumerate(batch) if not source.complete]
    if not incomplete:
        return records
    if completion is None:
        raise UserError("a file below parts/ is damaged. Prepare into a new folder.")
    completed = completion.complete([records[i] for i in incomplete])
    for i, (final, histograms) in zip(incomplete, completed, strict=True):
        records[i] = final
        own = sums.setdefault(batch[i].index, {})
        for name, counts in histograms.items():
            own[name] = own.get(name, 0) + counts
    return records
