"""Throughput of training alone: compilation, validation and saving are not in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Images per second and device since the last report, and its share spent waiting for data.

    `tick` after each step; what runs inside `pause` is not counted, nor is the first step, which
    compiles.
    """

    def __init__(self, batch_size: int, num_devices: int) -> None:
        self._batch_size, self._num_devices = batch_size, num_devices
        self._start: float | None = None
        self._steps, self._waited, self._paused = 0, 0.0, 0.0

    def tick(self, waited_s: float) -> None:
        """Counts a step that waited `waited_s` seconds for its batch."""
        if self._start is None:
            self._start = time.perf_counter()
            return
        self._steps += 1
        self._waited += waited_s

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time in here is somebody else's."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def report(self) -> dict[str, float]:
        """Rates since the last report; call it when the last step's results have arrived."""
        if self._start is None or self._steps == 0:
            return {}
        elapsed = time.perf_counter() - self._start - self._paused
        rates = {
            "img/s/device": self._steps * self._batch_size / elapsed / self._num_devices,
            "data_wait_share": self._waited / elapsed,
        }
        self._start, self._steps, self._waited, self._paused = time.perf_counter(), 0, 0.0, 0.0
        return rates
