"""Worker processes that read CTs and draw pages. If a file kills one, only its case fails."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from data_prep.workers import InProcess, Place, WorkerDied


class Processes:
    """Processes of this machine, for `data_prep.workers.run_tasks`; new ones replace dead ones."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # "spawn", because JAX's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._count, mp_context=context, initializer=_ignore_interrupt)

    def capacity(self) -> int:
        return self._count

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        """Starts a task. The future raises what the task raises, or `WorkerDied`."""
        try:
            inner = self._pool.submit(function, *arguments)
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = self._start()
            inner = self._pool.submit(function, *arguments)
        outer: Future[Any] = Future()

        def done(finished: Future[Any]) -> None:
            error = None if finished.cancelled() else finished.exception()
            if isinstance(error, BrokenProcessPool):
                outer.set_exception(WorkerDied())
            elif error is not None:
                outer.set_exception(error)
            elif not finished.cancelled():
                outer.set_result(finished.result())

        inner.add_done_callback(done)
        return outer

    def stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ignores Ctrl-C, which reaches every process of a terminal; the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def start(count: int) -> Iterator[Place]:
    """Yields `count` processes, which end with the block; with 0, this process."""
    if not count:
        yield InProcess()
        return
    processes = Processes(count)
    try:
        yield processes
    finally:
        processes.stop()
