"""Layouts of shards: writes shards, drops them from the page cache, and reads them at random."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from osteojax.data.pipeline import READ_THREADS
from osteojax.data.vertebrae import POOL

RUNS_SECONDS = 10.0
"""Time for all timed runs of one number; slow runs are repeated less often, but at least twice."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of a shard.

    Attributes:
      record: "map" (a record per map), "vertebra" (one record for all maps), or "image" (a record
        of the image only; training computes the maps). Each layout includes the mask.
      compression: as ArrayRecord names it: "uncompressed", "zstd:1", "brotli:3", ...
      group_size: records that are compressed together.
      stored_as: "uint8", "uint16" or "float16".
    """

    record: str = "map"
    compression: str = "zstd:1"
    group_size: int = 1
    stored_as: str = "uint8"

    @property
    def options(self) -> str:
        return f"group_size:{self.group_size},{self.compression}"

    def records(self, pool: np.ndarray, planes: bytes) -> list[bytes]:
        """The records of one vertebra: pool[len(POOL), D, H, W] in POOL order, and its mask."""
        if self.record == "vertebra":
            return [pool.tobytes() + planes]
        members = pool if self.record == "map" else pool[:1]
        return [*(member.tobytes() for member in members), planes]

    def read(
        self, source: ArrayRecordDataSource, position: int, members: list[int], shape: tuple
    ) -> np.ndarray:
        """dtype[len(members), D, H, W]: a copy of some members of the pool of one vertebra."""
        dtype = np.dtype(self.stored_as)
        if self.record == "vertebra":
            data = source.__getitems__([position])[0]
            pool = np.frombuffer(data, dtype, len(POOL) * int(np.prod(shape)))
            return pool.reshape(len(POOL), *shape)[members]
        per_vertebra = len(POOL) + 1 if self.record == "map" else 2
        records = source.__getitems__([position * per_vertebra + m for m in members])
        volumes = np.empty((len(members), *shape), dtype)
        for volume, record in zip(volumes, records, strict=True):
            volume[...] = np.frombuffer(record, dtype).reshape(shape)
        return volumes


def write_shard(path: Path, records: list[bytes], options: str) -> None:
    """Writes and closes an ArrayRecord file, without waiting for the disk (no fsync)."""
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def drop_from_cache(path: Path) -> bool:
    """Writes a file out and asks the kernel to forget its pages (POSIX_FADV_DONTNEED).

    Returns False where the system has no such call.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def share_in_cache(path: Path, samples: int = 64) -> float | None:
    """Share of some evenly spread pages that are in the page cache; None where the system cannot
    tell.

    A folder in memory (tmpfs) always gives 1.0: its pages cannot be dropped.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    held, size = 0, path.stat().st_size
    with path.open("rb") as stream:
        # From the back, because a failed read may start read-ahead, which loads later pages.
        for offset in np.linspace(0, max(size - 4096, 0), samples).astype(int)[::-1]:
            try:
                os.preadv(stream.fileno(), [bytearray(1)], int(offset), os.RWF_NOWAIT)
                held += 1
            except BlockingIOError:
                pass
            except OSError:  # this file system does not support the query
                return None
    return held / samples


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[ArrayRecordDataSource]:
    """The data source that training reads from, with its index loaded."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # hides its warnings of group sizes other than 1
    try:
        with ArrayRecordDataSource([str(path)]) as source:
            source[0]
            yield source
    finally:
        logger.setLevel(level)


def read_seconds(
    path: Path, layout: Layout, vertebrae: int, shape: tuple, *, cold: bool, repeats: int
) -> list[float]:
    """Seconds of each run of random reads of a shard; a run reads every vertebra once.

    Each read takes two distinct members of one vertebra's pool, uniformly drawn (the image in the
    layout with images only), as `osteojax.data.views.PoolPair` does, from as many threads as
    training uses. cold: after `drop_from_cache`; otherwise from the page cache.
    """
    rng = np.random.default_rng(0)
    with open_shard(path) as source, ThreadPoolExecutor(READ_THREADS) as threads:
        todo: list[tuple[int, list[int]]] = []

        def prepare() -> None:
            todo.clear()
            for position in rng.permutation(vertebrae).tolist():
                members = rng.choice(len(POOL), 2, replace=False).tolist()
                todo.append((position, [0] if layout.record == "image" else members))
            if cold:
                drop_from_cache(path)

        def run() -> None:
            list(threads.map(lambda read: layout.read(source, read[0], read[1], shape), todo))

        return _timed(run, repeats, prepare)


def write_seconds(path: Path, records: list[bytes], options: str, repeats: int) -> list[float]:
    """Seconds of each `write_shard`."""
    return _timed(lambda: write_shard(path, records, options), repeats)


def _timed(
    run: Callable[[], None], repeats: int, prepare: Callable[[], None] = lambda: None
) -> list[float]:
    """Seconds of `repeats` runs, or of fewer within RUNS_SECONDS, after an uncounted one;
    `prepare()` runs before each, untimed."""
    seconds: list[float] = []
    while len(seconds) <= repeats:
        prepare()
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            repeats = min(repeats, max(2, int(RUNS_SECONDS / seconds[0])))
    return seconds[1:]


def rate(amount: float, seconds: list[float]) -> dict[str, float]:
    """{"median", "spread", "runs"} of amount per second; spread is (max - min) / median time."""
    median = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / median
    return {"median": amount / median, "spread": spread, "runs": len(seconds)}
