"""Stopping on SIGTERM (from a scheduler or a spot instance) and on SIGINT (Ctrl-C).

After either, the run finishes its step, saves and exits. A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

REQUEUE_STATUS = 75
"""Exit status after SIGTERM (BSD's EX_TEMPFAIL): everything is saved, and the same command resumes.
launch/slurm.sbatch and launch/k8s_jobset.yaml requeue on it."""

INTERRUPT_STATUS = 130
"""Exit status after SIGINT, by the shell's convention."""


class Stopped(Exception):
    """The run was stopped by a signal, after saving a checkpoint.

    Attributes:
      step: of the checkpoint.
      status: exit status of the process.
    """

    def __init__(self, step: int, received: signal.Signals) -> None:
        super().__init__(
            f"{received.name}: stopped and saved at step {step}; rerun the same command to go on"
        )
        self.step = step
        self.status = INTERRUPT_STATUS if received == signal.SIGINT else REQUEUE_STATUS


class StopSignals:
    """Catches signals inside its `with` block; call `received()` after every dispatch of steps.

    With several processes the signal may reach one before the others, and all must save the same
    step. jax.distributed handles SIGTERM itself and makes all processes agree on the call of
    `received()` after which to stop; SIGINT is turned into SIGTERM.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._asked = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        # Python handles signals in the main thread only; in another thread, none are caught.
        if threading.current_thread() is threading.main_thread():
            wanted = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
            for number in wanted:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _take(self, number: int, _: FrameType | None) -> None:
        self.__exit__()  # a second signal goes to the previous handlers
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._received = signal.Signals(number)

    def received(self) -> signal.Signals | None:
        """The signal that the run must stop for, or None to continue. Equal on all processes."""
        self._asked += 1
        if self._several:
            # Calls are counted instead of steps, because a dispatch can be several steps; all
            # processes make the same calls.
            reached = multihost_utils.reached_preemption_sync_point(self._asked)
            return signal.SIGTERM if reached else None
        return self._received
