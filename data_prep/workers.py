"""Hands tasks to workers: a bounded number in flight, results in the order they finish.

Workers are this process (`--workers 1`), processes of this machine, or a Dask cluster
(`data_prep.cluster`); the tasks are the same functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.resource_tracker
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from osteojax.errors import UserError

LOST_SECONDS = 600.0
"""How long a run waits for a new worker after the last one is gone; a cluster's queue may start
one."""
ASK_SECONDS = 1.0
"""How often `run_tasks` checks whether there are workers, while no task finishes."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A function to run somewhere.

    Attributes:
      name: for messages.
      function, arguments: sent to the worker, so they must be picklable.
      accelerated: whether it should run on an accelerator, if there is one.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    accelerated: bool = False


class WorkerDied(Exception):
    """The worker of a task died, also when the task was tried again."""


class Place(Protocol):
    """A place where tasks run: this process, a thread, or workers."""

    def capacity(self) -> int:
        """How many tasks may be submitted at once; 0 while there is no worker."""

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        """Starts a task. The future raises what the task raises, or `WorkerDied`."""


@dataclasses.dataclass(frozen=True)
class Crew:
    """The places where a run's tasks run. accelerator: for accelerated tasks; if None, they run on
    `workers` too."""

    workers: Place
    accelerator: Place | None = None


class InProcess:
    """Runs tasks in this process; `submit` returns when the task is done."""

    def capacity(self) -> int:
        return 1

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class InThread:
    """Runs tasks in a thread of this process, on its accelerator, while other processes read
    files."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor

    def capacity(self) -> int:
        return 2  # one that runs, one that waits

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        return self._executor.submit(function, *arguments)


@contextlib.contextmanager
def in_thread() -> Iterator[InThread]:
    """Yields an `InThread` whose thread ends with the block."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="accelerator")
    try:
        yield InThread(executor)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C to the end of the block, and hides it from processes started in the block.

    A terminal sends Ctrl-C to every process, but this process should end its workers itself. An
    import or a cluster that is interrupted while it starts may ignore the exception.
    """
    pressed = []
    multiprocessing.resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # threads and processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def run_tasks(tasks: deque[Task], crew: Crew) -> Iterator[tuple[Task, Any]]:
    """Runs tasks and yields each with its result, in the order they finish.

    The caller may add to `tasks` between results. No more tasks are in flight than workers (and
    two for the accelerator), so memory is bounded, and few tasks are suspected when a worker dies.

    A task whose worker died is tried once more, alone, after all others, so that no other task can
    kill its worker or take its memory. If its worker dies again, the result is the `WorkerDied`.

    Raises:
      UserError: no worker is left.
      Any exception that a task raises.
    """
    pending: dict[Future[Any], tuple[Task, Place]] = {}
    suspects: deque[Task] = deque()
    trial: Future[Any] | None = None

    def start(queue: deque[Task]) -> Future[Any]:
        task = queue.popleft()
        place = _place(task, crew)
        future = place.submit(task.function, task.arguments)
        pending[future] = task, place
        return future

    last_sign = time.monotonic()
    while tasks or pending or suspects:
        while tasks and trial is None and _has_room(tasks[0], pending, crew):
            start(tasks)
        if suspects and not tasks and not pending and _has_room(suspects[0], pending, crew):
            trial = start(suspects)
        done, _ = wait(pending, timeout=ASK_SECONDS, return_when=FIRST_COMPLETED)
        if done or _has_workers(tasks, suspects, pending, crew):
            last_sign = time.monotonic()
        elif time.monotonic() - last_sign > LOST_SECONDS:
            raise UserError(
                f"there has been no worker for {LOST_SECONDS / 60:.0f} minutes. Start workers, "
                "then rerun the same command; what is finished is kept."
            )
        if not pending:
            time.sleep(ASK_SECONDS)  # there is no worker for the next task
        for future in [known for known in pending if known in done]:
            task, _ = pending.pop(future)
            try:
                result = future.result()
            except WorkerDied as death:
                if future is not trial:
                    suspects.append(task)
                    continue
                result = death
            trial = None if future is trial else trial
            yield task, result


def accelerator_here() -> bool:
    """Whether this process has an accelerator."""
    import jax

    return jax.default_backend() != "cpu"


def _place(task: Task, crew: Crew) -> Place:
    return crew.accelerator if task.accelerated and crew.accelerator else crew.workers


def _has_room(task: Task, pending: dict[Future[Any], tuple[Task, Place]], crew: Crew) -> bool:
    place = _place(task, crew)
    return sum(own is place for _, own in pending.values()) < place.capacity()


def _has_workers(
    tasks: deque[Task],
    suspects: deque[Task],
    pending: dict[Future[Any], tuple[Task, Place]],
    crew: Crew,
) -> bool:
    """Whether every place with tasks has a worker."""
    places = [place for _, place in pending.values()]
    places += [_place(queue[0], crew) for queue in (tasks, suspects) if queue]
    return all(place.capacity() > 0 for place in places)
