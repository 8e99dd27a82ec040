"""Reads a trace of `jax.profiler`: which kernels took longest.

It is the file `*.trace.json.gz`, in Chrome's format of trace events, which needs no TensorFlow.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

DEVICE = "/device:"
NOT_KERNELS = ("XLA ", "Steps", "Framework", "TensorFlow", "Source")
"""First words of a device's lines that only group kernels of its others."""


def longest_kernels(folder: Path, count: int) -> tuple[list[dict[str, Any]], float]:
    """The kernels of a trace that took longest, all their runs together.

    On a GPU these are kernels of its streams. On a CPU, which has no such lines, operations of XLA.

    Args:
      folder: that the trace was written to.

    Returns:
      rows kernel, operation (of the compiled program; "" where the trace does not say), runs,
      seconds; and the seconds of all kernels together.

    Raises:
      RuntimeError: no trace, or none with a kernel.
    """
    files = sorted(folder.rglob("*.trace.json.gz"))
    if not files:
        raise RuntimeError("the profiler wrote no *.trace.json.gz")
    with gzip.open(files[-1], "rt", encoding="utf-8") as stream:
        events = json.load(stream)["traceEvents"]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for event in _kernels(events):
        operation = event.get("args", {}).get("hlo_op", "")
        row = rows.setdefault(
            (event["name"], operation),
            {"kernel": event["name"], "operation": operation, "runs": 0, "seconds": 0.0},
        )
        row["runs"] += 1
        row["seconds"] += 1e-6 * event["dur"]  # of microseconds
    if not rows:
        raise RuntimeError("the trace has no kernel")
    found = sorted(rows.values(), key=lambda row: -row["seconds"])
    return found[:count], sum(row["seconds"] for row in found)


def _kernels(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    processes = _names(events, "process_name")
    lines = _names(events, "thread_name")
    on_device = {key[0] for key, name in processes.items() if name.startswith(DEVICE)}
    timed = [event for event in events if event.get("ph") == "X"]
    if not on_device:
        return [event for event in timed if "hlo_op" in event.get("args", {})]
    return [
        event
        for event in timed
        if event["pid"] in on_device
        and not lines.get((event["pid"], event["tid"]), "").startswith(NOT_KERNELS)
    ]


def _names(events: list[dict[str, Any]], kind: str) -> dict[tuple[int, int | None], str]:
    """(process, thread) -> its name; the thread of a process's own name is None."""
    return {
        (event["pid"], event.get("tid") if kind == "thread_name" else None): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event.get("name") == kind
    }
