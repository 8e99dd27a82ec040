"""Shared by all benchmarks: timing (warm up, block, median and spread), environment, JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from osteojax.files import write_json


def seconds(run: Callable[[], Any], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Wall seconds of `run()`, blocked until its arrays are ready.

    Returns {"median", "min", "max"} of `repeats` runs after `warmup` uncounted ones (compile), and
    "processor", the median of the seconds that this process had a processor, all threads together:
    on a shared machine it says what a run costs when wall time says how busy the others are.
    """
    for _ in range(warmup):
        jax.block_until_ready(run())
    times, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {
        "median": statistics.median(times),
        "min": min(times),
        "max": max(times),
        "processor": statistics.median(processor),
    }


WINDOW_SECONDS = 1.0


def seconds_per_call(
    call: Callable[[], Any], repeats: int, window_seconds: float = WINDOW_SECONDS
) -> dict[str, float]:
    """Wall seconds per call when calls are dispatched without waiting, as in training.

    Returns {"median", "min", "max"} over `repeats` windows of at least `window_seconds` (or one
    call), and "first", the first call with its compilation. Each window ends when its arrays are
    ready.
    """
    return seconds_in_turn([call], repeats, window_seconds)[0]


def seconds_in_turn(
    calls: Sequence[Callable[[], Any]], repeats: int, window_seconds: float = WINDOW_SECONDS
) -> list[dict[str, float]]:
    """`seconds_per_call` of each call, with their windows in turn.

    So a busy minute of the machine is one of all of them. Each result after the first also has
    "of_first", "of_first_min" and "of_first_max": the first call's seconds divided by this one's,
    the median and the range over the pairs of windows.
    """
    first, counts = [], []
    for call in calls:
        start = time.perf_counter()
        jax.block_until_ready(call())
        first.append(time.perf_counter() - start)
        once = seconds(call, 1, warmup=0)["median"]
        counts.append(max(1, round(window_seconds / once)))
    rounds = [
        [_window(call, count) for call, count in zip(calls, counts, strict=True)]
        for _ in range(repeats)
    ]
    results = []
    for number, began in enumerate(first):
        taken = [own[number] for own in rounds]
        result = {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}
        result["first"] = began
        if number:
            ratios = [own[0] / own[number] for own in rounds]
            result |= {
                "of_first": statistics.median(ratios),
                "of_first_min": min(ratios),
                "of_first_max": max(ratios),
            }
        results.append(result)
    return results


def _window(call: Callable[[], Any], count: int) -> float:
    """Seconds per call of `count` calls, of which only the last is waited for."""

    def calls() -> Any:
        for _ in range(count - 1):
            call()
        return call()

    return seconds(calls, 1, warmup=0)["median"] / count


def environment(*packages: str) -> dict[str, Any]:
    """Hardware, versions and date, written with all results."""
    versions = {}
    for package in ("jax", "jaxlib", "numpy", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_results(path: str | Path, env: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes {"environment", "rows"} as JSON, atomically."""
    write_json(path, {"environment": env, "rows": rows})
