"""Runs tasks in worker processes: bounded in flight, no orphans, no hang when a worker dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import SimpleITK as sitk

from osteojax.errors import UserError

Task = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""(name for messages, function, arguments); all of it crosses to the worker."""


def run_tasks(tasks: deque[Task], workers: int) -> Iterator[tuple[Task, Any]]:
    """Runs tasks and yields each with its result, in the order they finish.

    The caller may append to `tasks` while it consumes. With one worker everything runs in this
    process. At most twice as many tasks as workers are in flight, so memory is bounded.

    Raises:
      UserError: a worker died (killed, out of memory); names the tasks that were in flight.
      What a task raises.
    """
    pending: dict[Future[Any], Task] = {}
    pool = _InlineExecutor() if workers == 1 else _process_pool(workers)
    try:
        while tasks or pending:
            while tasks and len(pending) < 2 * workers:
                task = tasks.popleft()
                pending[pool.submit(task[1], *task[2])] = task
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: list(pending).index(f)):
                result = future.result()
                yield pending.pop(future), result
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker process died while one of these was in work: "
            f"{', '.join(task[0] for task in pending.values())}. Often this is too little memory: "
            "rerun the same command with fewer --workers; what is finished is kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _InlineExecutor(Executor):
    """Runs each task at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _process_pool(workers: int) -> Executor:
    # Spawned, not forked: JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """One thread per worker, and an end with the parent's end, however that came."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"  # read when JAX is imported, with the first task
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
