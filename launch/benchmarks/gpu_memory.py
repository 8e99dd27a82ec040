"""The part `memory` of `osteojax benchmark gpu`: what a step needs, and its longest kernels.

It is compiled ahead of time, so that the compiler says what it expects. This process is a fresh
one: where the compiled program is in JAX's cache, from the part before, XLA tries no algorithms
here, and their buffers are not among the peak.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from launch.benchmarks.experiment import Experiment
from launch.benchmarks.gpu_part import Sizes
from launch.benchmarks.gpu_steps import experiment
from launch.benchmarks.traces import longest_kernels
from launch.compiled.program import Kernel, kernels

WARM_UP_STEPS, TRACED_STEPS = 3, 3
LONGEST = 10

Row = dict[str, Any]


def memory(sizes: Sizes) -> Iterator[Row]:
    """What has been measured comes first: the program's text is that of another version's compiler
    than its reader was written for."""
    step = _Step(experiment(sizes, sizes.large, "box"))
    for _ in range(WARM_UP_STEPS):
        step.take()
    statistics = jax.local_devices()[0].memory_stats() or {}
    yield {
        "measurement": "memory",
        "image_size": sizes.large,
        "batch_size": sizes.batch,
        "peak_bytes_in_use": statistics.get("peak_bytes_in_use"),
        "compile_seconds": step.compile_seconds,
        **_expected(step.compiled),
    }
    with tempfile.TemporaryDirectory(prefix="osteojax-") as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED_STEPS):
                step.take()
        longest, busy = longest_kernels(Path(folder), LONGEST)
    yield {"measurement": "busy", "seconds": busy / TRACED_STEPS}
    found = kernels(step.compiled.as_text())
    yield {
        "measurement": "program",
        "image_size": sizes.large,
        "bytes_moved": sum(kernel.bytes for kernel in found),
        "kernels": sum(kernel.runs for kernel in found),
    }
    named = {kernel.name: kernel for kernel in found}
    for row in longest:
        yield _kernel_row(row, named.get(row["operation"]))


def _kernel_row(row: Row, kernel: Kernel | None) -> Row:
    """row: of `longest_kernels`; kernel: the operation of the program that it belongs to."""
    return {
        "measurement": "kernel",
        "kernel": row["kernel"],
        "operation": row["operation"],
        "layer": kernel.layer if kernel else "",
        "pass": ("backward" if kernel.backward else "forward") if kernel else "",
        "runs": row["runs"] / TRACED_STEPS,
        "seconds": row["seconds"] / TRACED_STEPS,
        "bytes": kernel.bytes if kernel else None,
    }


class _Step:
    """A compiled step and its state."""

    def __init__(self, one: Experiment) -> None:
        batch = one.synthetic_batch()
        self._placed, self._key = one.on_devices(batch), one.key
        self._state = one.new_state(batch)
        program = one.program(lambda data, batch: batch)
        start = time.perf_counter()
        lowered = program.lower(self._state, None, self._placed, self._key)
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def take(self) -> None:
        """Takes a step and waits for it."""
        self._state, metrics = self.compiled(self._state, None, self._placed, self._key)
        jax.block_until_ready(metrics)


def _expected(compiled: Any) -> Row:
    """What this compiler says of the step's memory; None for what this version does not tell."""
    analysis = compiled.memory_analysis()
    return {
        "compiler_peak_bytes": getattr(analysis, "peak_memory_in_bytes", None),
        "argument_bytes": getattr(analysis, "argument_size_in_bytes", None),
        "temporary_bytes": getattr(analysis, "temp_size_in_bytes", None),
    }
