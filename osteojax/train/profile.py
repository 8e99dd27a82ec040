"""`--profile`: writes a trace of a few steps after the first, slower ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

WARM_UP_STEPS = 10
TRACED_STEPS = 3


class Profile:
    """Traces the dispatches of `TRACED_STEPS` steps into `workdir/profile`, after `WARM_UP_STEPS`
    others (fewer if the run is shorter). Does nothing if `wanted` is false.

    TensorBoard's profile plugin, Perfetto and XProf read the trace.
    """

    def __init__(self, workdir: Path, first_step: int, total_steps: int, wanted: bool) -> None:
        self._folder = workdir / "profile"
        left = total_steps - first_step
        self._start = first_step + 1 + max(0, min(WARM_UP_STEPS, left - TRACED_STEPS))
        self._end = min(self._start + TRACED_STEPS - 1, total_steps)
        self._wanted, self._tracing = wanted, False

    def before(self, step: int, previous: Any) -> None:
        """Call before the dispatch that ends with `step`, with the results of the previous one."""
        if self._wanted and not self._tracing and step >= self._start:
            jax.block_until_ready(previous)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, result: Any) -> bool:
        """Call after that dispatch. Returns True if the trace has just been written."""
        if not self._tracing or step < self._end:
            return False
        jax.block_until_ready(result)
        jax.profiler.stop_trace()
        self._wanted = self._tracing = False
        return True
