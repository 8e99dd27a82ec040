"""Throughput of training, without compilation, validation and saving; and the time to the first
step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Stopwatch:
    """Images per second and device since the last report, and the share of time spent waiting for
    data.

    Call `tick` after each dispatch of steps. Time inside `pause` is not counted, nor is the first
    dispatch of each number of steps, which compiles.
    """

    def __init__(self, batch_size: int, num_devices: int) -> None:
        self._batch_size, self._num_devices = batch_size, num_devices
        self._start: float | None = None
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._compiled: set[int] = set()
        self._last = 0.0

    def tick(self, waited_s: float, steps: int = 1) -> None:
        """Counts a dispatch of some steps that waited `waited_s` seconds for its data."""
        before, self._last = self._last, time.perf_counter()
        compiled = steps not in self._compiled
        self._compiled.add(steps)
        if self._start is None:
            self._start = self._last
        elif compiled:
            self._paused += self._last - before
        else:
            self._steps += steps
            self._waited += waited_s

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside the block does not count as training."""
        start = time.perf_counter()
        yield
        self._last = time.perf_counter()
        if self._start is not None:
            self._paused += self._last - start

    def report(self) -> dict[str, float]:
        """Rates since the last report. Call it when the last step's results are on the host."""
        if self._start is None or self._steps == 0:
            return {}
        elapsed = time.perf_counter() - self._start - self._paused
        rates = {
            "img/s/device": self._steps * self._batch_size / elapsed / self._num_devices,
            "data_wait_share": self._waited / elapsed,
        }
        self._start, self._steps, self._waited, self._paused = time.perf_counter(), 0, 0.0, 0.0
        return rates


class Start:
    """Measures the time from the start of the program's work to the end of its first step.

    Compilation time includes the initialisation and a first validation.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._compile_s = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILE_EVENT:
            self._compile_s += duration_secs

    def report(self) -> dict[str, float]:
        """Call once, when the first step has finished."""
        jax.monitoring.unregister_event_duration_listener(self._count)
        return {
            "time_to_first_step_s": time.perf_counter() - self._start,
            "compile_s": self._compile_s,
        }


def device_memory() -> dict[str, float]:
    """Peak memory of this process's first device in GiB; empty where the platform does not report
    it (CPU)."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in statistics:
        return {}
    return {"device_memory_gib": statistics["peak_bytes_in_use"] / 2**30}
