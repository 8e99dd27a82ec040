"""Being told to stop: SIGTERM (a scheduler, a spot instance) and SIGINT (Ctrl-C).

Both mean: finish this step, save, leave. A second SIGINT or SIGTERM ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

REQUEUE_STATUS = 75
"""Exit status after SIGTERM: everything is saved, run the same command again (BSD's EX_TEMPFAIL).
launch/slurm.sbatch and launch/k8s_jobset.yaml requeue on it."""

INTERRUPT_STATUS = 130
"""Exit status after SIGINT, as everywhere."""


class Stopped(Exception):
    """The run was told to stop, and saved itself.

    Attributes:
      step: that the checkpoint holds.
      status: exit status of the process.
    """

    def __init__(self, step: int, received: signal.Signals) -> None:
        super().__init__(
            f"{received.name}: stopped and saved at step {step}; rerun the same command to go on"
        )
        self.step = step
        self.status = INTERRUPT_STATUS if received == signal.SIGINT else REQUEUE_STATUS


class StopSignals:
    """Listens while it is entered; `received()` is asked after every dispatch of steps.

    With several processes the signal may reach one before the others, and all must save the same
    step. jax.distributed listens to SIGTERM by itself and lets them agree on the question
    after which to stop; SIGINT is turned into SIGTERM.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._asked = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        # Python handles signals in the main thread only: from another one nothing is installed.
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
        self.__exit__()  # a second signal goes to the handlers that were there before
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._received = signal.Signals(number)

    def received(self) -> signal.Signals | None:
        """The signal to stop for now; None to go on. Equal on all processes."""
        self._asked += 1
        if self._several:
            # Calls are counted, not steps: a dispatch can be several steps, and every process makes
            # every call.
            reached = multihost_utils.reached_preemption_sync_point(self._asked)
            return signal.SIGTERM if reached else None
        return self._received
