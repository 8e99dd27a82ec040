"""ArrayRecord shards: writes, reads and merges the records of `osteojax.data.schema`.

Files appear whole or not at all, and their bytes depend on the vertebrae alone.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from osteojax.data.schema import record_position
from osteojax.data.vertebrae import POOL, record_keys
from osteojax.errors import UserError
from osteojax.files import atomic_path

WRITER_OPTIONS = "group_size:1,zstd:1"
"""One record per chunk: training reads two maps of a vertebra at random. Level 1 writes 359 MB/s
and halves the size; level 9 writes 81 MB/s for the same size."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS)


def encode_vertebra(
    codes: dict[str, np.ndarray], mask: np.ndarray, valid: np.ndarray
) -> list[bytes]:
    """The records of one vertebra, in the order of `record_keys`, with an empty meta record.

    Args:
      codes: member of `POOL` -> uint8[D, H, W], for the members that are stored.
      mask, valid: bool[D, H, W], the vertebra and the inside of the CT.
    """
    planes = np.packbits(np.stack([mask, valid])).tobytes()
    stored = [name for name in POOL if name in codes]
    return [b"", *(np.ascontiguousarray(codes[name]).tobytes() for name in stored), planes]


def decode_mask(planes: bytes, size: int) -> np.ndarray:
    """bool[2, size, size, size] of a mask record: the vertebra, and the inside of the CT."""
    bits = np.unpackbits(np.frombuffer(planes, np.uint8), count=2 * size**3)
    return bits.astype(bool).reshape(2, size, size, size)


def meta_record(row: dict[str, Any]) -> bytes:
    """A vertebra's row of `vertebrae.csv` as UTF-8 JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


def write_records(path: Path, vertebrae: Iterable[list[bytes]]) -> None:
    """Writes the records of some vertebrae, atomically.

    Raises:
      OSError: the disk is full, or the folder cannot be written (ArrayRecord's own RuntimeError
        carries the reason as text only).
    """
    with atomic_path(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
            try:
                for records in vertebrae:
                    for record in records:
                        writer.write(record)
            finally:
                writer.close()
        except RuntimeError as error:
            for number in DISK_ERRORS:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(path)) from error
            raise


class ShardReader:
    """Random access to the vertebrae of a shard, with every length checked.

    stored: the members of the pool that the folder stores (`Manifest.stored`).

    Raises UserError, from the constructor and every read, where the file is damaged.
    """

    def __init__(self, path: Path, stored: tuple[str, ...] = POOL) -> None:
        self.path, self.stored, self.keys = path, stored, record_keys(stored)
        self._reader = _open(path)
        self._num_records = self._reader.num_records()
        if self._num_records == 0 or self._num_records % len(self.keys):
            raise self._damaged(f"{self._num_records} records are no multiple of {len(self.keys)}")

    @property
    def num_vertebrae(self) -> int:
        return self._num_records // len(self.keys)

    def metas(self) -> Iterator[dict[str, Any]]:
        """The meta record of every vertebra, without reading its maps."""
        for position in range(self.num_vertebrae):
            try:
                yield json.loads(self._read([record_position(position, "meta", self.keys)])[0])
            except ValueError as error:
                raise self._damaged(f"meta record {position} is not JSON") from error

    def raw(self, position: int) -> list[bytes]:
        """All records of one vertebra, in the order of `keys`."""
        first = record_position(position, "meta", self.keys)
        return self._read(list(range(first, first + len(self.keys))))

    def volumes(self, position: int, size: int) -> dict[str, np.ndarray]:
        """One vertebra's arrays: each stored member of the pool as uint8[size, size, size] codes,
        and "mask" and "valid" as bool[size, size, size]."""
        records = dict(zip(self.keys, self.raw(position), strict=True))
        voxels = size**3
        lengths = dict.fromkeys(self.stored, voxels) | {"mask": -(-2 * voxels // 8)}
        for name, expected in lengths.items():
            if len(records[name]) != expected:
                raise self._damaged(
                    f"{name} of vertebra {position} has {len(records[name])} bytes, not {expected}"
                )
        shape = (size, size, size)
        arrays = {
            name: np.frombuffer(records[name], np.uint8).reshape(shape) for name in self.stored
        }
        arrays["mask"], arrays["valid"] = decode_mask(records["mask"], size)
        return arrays

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
    """How many records a file holds. Raises UserError where it is damaged."""
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
