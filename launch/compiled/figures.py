"""The figures of a compiled step: memory, bytes, bounds, collectives, what stands out.

A figure is a compiler's or a bound; none is measured. `bytes_moved` is the sum over the kernels on
NVIDIA, where the compiler states none, and the compiler's own count on a TPU. The estimate is the
sum of a TPU compiler's cycles; a kernel that it gives none for enters at its bytes over the
memory's bandwidth and is listed, prefetches apart, which run beside others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from launch.compiled.chips import Chip
from launch.compiled.program import LARGE_BYTES, Kernel, convolution_dtypes, kernels
from osteojax.errors import UserError
from osteojax.train.costs import StepCost

LARGEST = 10
PREFETCH = ("copy-start", "slice-start", "async-start")
OUT_OF_MEMORY = ("Ran out of memory", "RESOURCE_EXHAUSTED", "CompileTimeHbmOom", "out of memory")

Figures = dict[str, Any]


class OutOfMemory(UserError):
    """The step does not fit on the chip, by its compiler."""


def compiled_figures(
    lower: Callable[[], Any], chip: Chip, cost: StepCost, dtype: str
) -> tuple[Figures, str]:
    """Compiles a step.

    Args:
      lower: makes the `jax.stages.Lowered`.
      cost: our own count for one device.
      dtype: of the computation, for the FLOP bound.

    Returns:
      figures of one device, and the program's text.

    Raises:
      OutOfMemory: the compiler finds no room.
    """
    start = time.perf_counter()
    try:
        compiled = lower().compile()
    except Exception as error:  # of as many kinds as there are compilers
        if any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise OutOfMemory(f"no room on a {chip.kind}: {_first_line(error)}") from error
        raise
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if memory.peak_memory_in_bytes > chip.room_bytes:
        raise OutOfMemory(
            f"no room on a {chip.kind}: {memory.peak_memory_in_bytes / 1e9:.1f} GB needed, "
            f"{chip.room_bytes / 1e9:.1f} GB there."
        )
    found = kernels(text)
    moved = bytes_moved(compiled, found)
    figures: Figures = {
        "peak_bytes": memory.peak_memory_in_bytes,
        "room_bytes": chip.room_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_moved": moved,
        "least_bytes": cost.bytes,
        "flops": cost.flops,
        "flop_bound_ms": 1e3 * cost.flops / chip.flops_per_second[dtype],
        "byte_bound_ms": 1e3 * moved / chip.bytes_per_second,
        **_estimate(found, chip),
        "kernels": sum(kernel.runs for kernel in found),
        "largest": [_line(kernel) for kernel in _by_bytes(found)[:LARGEST]],
        "layers": _layers(found),
        "collectives": _collectives(found),
        "large_copies": [
            _line(kernel)
            for kernel in _by_bytes(found)
            if kernel.moves_only and kernel.bytes >= 2 * LARGE_BYTES
        ],
        "convolutions": convolution_dtypes(text),
        "wide_arrays": sum(kernel.wide for kernel in found),
        "compile_seconds": round(seconds, 1),
    }
    return figures, text


def bytes_moved(compiled: Any, found: Iterable[Kernel]) -> int:
    """The compiler's own count, or where it has none the sum over the program's kernels."""
    counted = (compiled.cost_analysis() or {}).get("bytes accessed")
    return int(counted) if counted else sum(kernel.bytes for kernel in found)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


def _by_bytes(found: Iterable[Kernel]) -> list[Kernel]:
    return sorted(found, key=lambda kernel: -kernel.bytes)


def _line(kernel: Kernel) -> dict[str, Any]:
    return {
        "layer": kernel.layer,
        "pass": "backward" if kernel.backward else "forward",
        "operation": "convolution" if kernel.convolution else kernel.operation,
        "name": kernel.name,
        "bytes": kernel.bytes,
    }


def _estimate(found: list[Kernel], chip: Chip) -> Figures:
    """Estimate in ms, and the kernels that have none of the compiler."""
    if chip.clock_hz is None:
        return {"estimate_ms": None, "without_estimate": []}
    cycles = sum(kernel.cycles or 0 for kernel in found)
    without = [k for k in found if k.cycles is None and not k.operation.startswith(PREFETCH)]
    listed = [
        {**_line(kernel), "ms": 1e3 * kernel.bytes / chip.bytes_per_second}
        for kernel in _by_bytes(without)
    ]
    total = 1e3 * cycles / chip.clock_hz + sum(line["ms"] for line in listed)
    return {"estimate_ms": total, "without_estimate": listed}


def _layers(found: list[Kernel]) -> list[dict[str, Any]]:
    """Bytes of convolutions and of what is between them, by part of the network."""
    rows: dict[str, dict[str, int]] = {}
    for kernel in found:
        row = rows.setdefault(_part(kernel.layer), {"convolutions": 0, "between": 0})
        row["convolutions" if kernel.convolution else "between"] += kernel.bytes
    return [{"layer": name, **row} for name, row in sorted(rows.items(), key=_most_first)]


def _most_first(row: tuple[str, dict[str, int]]) -> int:
    return -sum(row[1].values())


def _part(layer: str) -> str:
    """ "backbone/stage1_block2/norm1" -> "stage1", "backbone/stem_norm" -> "stem"."""
    inner = layer.removeprefix("backbone/").split("/")[0].split("_")[0]
    return {"": "rest", "backbone": "pools"}.get(inner, inner)


def _collectives(found: list[Kernel]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for kernel in found:
        if kernel.collective:
            row = rows.setdefault(
                kernel.collective,
                {"kind": kernel.collective, "count": 0, "bytes": 0, "overlapped_bytes": 0},
            )
            row["count"] += kernel.runs
            row["bytes"] += kernel.read_bytes
            row["overlapped_bytes"] += kernel.read_bytes if kernel.overlapped else 0
    return list(rows.values())
