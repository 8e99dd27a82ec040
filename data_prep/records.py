"""ArrayRecord files: writes and reads the records of rows (`osteojax.data.schema`).

Files are complete or absent, and their bytes depend only on the records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from osteojax.data.schema import Field
from osteojax.disk import disk_error
from osteojax.errors import UserError
from osteojax.files import atomic_path

WRITER_OPTIONS = "group_size:1,zstd:1"
"""One record per chunk: training reads two fields of a row at random. Level 1 writes 359 MB/s
and halves the size; level 9 writes 81 MB/s for the same size."""


def row_records(fields: Sequence[Field], arrays: dict[str, np.ndarray]) -> list[bytes]:
    """The records of a row, in the order of `fields`; the first one ("meta") is empty.

    Args:
      fields: the first is `META`.
      arrays: name -> array, for every other field.
    """
    return [b"", *(field.encode(arrays[field.name]) for field in fields[1:])]


def meta_record(row: dict[str, Any]) -> bytes:
    """A row of the folder's table as UTF-8 JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


def write_records(path: Path, rows: Iterable[list[bytes]]) -> None:
    """Writes the records of some rows, atomically.

    Raises:
      OSError: the disk is full, or the folder cannot be written (made from ArrayRecord's
        RuntimeError, which has the reason only as text).
    """
    with atomic_path(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
            try:
                for records in rows:
                    for record in records:
                        writer.write(record)
            finally:
                writer.close()
        except RuntimeError as error:
            number = disk_error(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error


class ShardReader:
    """Random access to the rows of a shard.

    per_row: number of records of a row; the first is "meta".

    The constructor and every read raise UserError if the file is damaged.
    """

    def __init__(self, path: Path, per_row: int) -> None:
        self.path, self.per_row = path, per_row
        self._reader = _open(path)
        self._num_records = self._reader.num_records()
        if self._num_records == 0 or self._num_records % per_row:
            raise self._damaged(f"{self._num_records} records are not a multiple of {per_row}")

    @property
    def num_rows(self) -> int:
        return self._num_records // self.per_row

    def metas(self) -> Iterator[dict[str, Any]]:
        """The meta record of every row, without reading the others."""
        for position in range(self.num_rows):
            try:
                yield json.loads(self._read([position * self.per_row])[0])
            except ValueError as error:
                raise self._damaged(f"meta record {position} is not JSON") from error

    def records(self, position: int) -> list[bytes]:
        """All records of one row, in order."""
        first = position * self.per_row
        return self._read(list(range(first, first + self.per_row)))

    def _read(self, indices: list[int]) -> list[bytes]:
        try:
            records = self._reader.read(indices)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(str(error)) from error
        if len(records) != len(indices):
            raise self._damaged(f"{len(indices) - len(records)} records are missing")
        return records

    def _damaged(self, reason: str) -> UserError:
        return _damaged(self.path, reason)


def count_records(path: Path) -> int:
    """Number of records of a file. Raises UserError if it is damaged."""
    return _open(path).num_records()


def _open(path: Path) -> ArrayRecordReader:
    if not path.is_file():
        raise _damaged(path, "it does not exist")
    try:
        reader = ArrayRecordReader(str(path))
        reader.num_records()
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    return reader


def _damaged(path: Path, reason: str) -> UserError:
    line = reason.split(";")[0].replace("\n", " ")
    return UserError(
        f"{path}: the shard is damaged ({line}). Remove it and prepare the cohort again "
        "into a new folder, or copy the folder again."
    )
