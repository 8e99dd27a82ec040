"""Handing out tasks, on places made of futures that the test finishes itself."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections import deque
from concurrent.futures import Future

import pytest

from data_prep import workers
from data_prep.workers import Crew, InProcess, Task, WorkerDied, in_thread, run_tasks, uninterrupted
from osteojax.errors import UserError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(workers, "ASK_SECONDS", 0.005)


class Puppets:
    """A place whose tasks end at once, oldest or newest first; remembers what was in flight."""

    def __init__(self, capacity: int, newest_first: bool = False) -> None:
        self.room, self.newest_first = capacity, newest_first
        self.in_flight: dict[Future, tuple] = {}
        self.most = 0
        self.alone: list[bool] = []

    def capacity(self) -> int:
        self._finish_one()
        return self.room

    def submit(self, function, arguments) -> Future:
        future: Future = Future()
        self.in_flight[future] = (function, arguments)
        self.most = max(self.most, len(self.in_flight))
        return future

    def _finish_one(self) -> None:
        """Once the place is full, or nothing came since the last question."""
        waiting = [f for f in self.in_flight if not f.done()]
        if waiting:
            future = waiting[-1 if self.newest_first else 0]
            function, arguments = self.in_flight.pop(future)
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)


def named(numbers) -> deque[Task]:
    return deque(Task(str(n), abs, (-n,)) for n in numbers)


@pytest.mark.parametrize("newest_first", [False, True])
def test_every_task_once_and_no_more_in_flight_than_there_is_room(newest_first):
    place = Puppets(3, newest_first)
    results = {task.name: value for task, value in run_tasks(named(range(20)), Crew(place))}
    assert results == {str(n): n for n in range(20)}
    assert place.most <= 3


def test_the_caller_may_add_tasks_while_it_consumes():
    tasks, seen = named([1]), []
    for task, value in run_tasks(tasks, Crew(InProcess())):
        seen.append(value)
        if value < 5:
            tasks.append(Task(task.name, abs, (value + 1,)))
    assert seen == [1, 2, 3, 4, 5]


def test_texture_goes_to_the_accelerator_where_there_is_one():
    tasks = [Task("scan", abs, (-1,)), Task("maps", abs, (-2,), accelerated=True)]
    cpu, accelerator = Puppets(2), Puppets(2)
    assert len(list(run_tasks(deque(tasks), Crew(cpu, accelerator)))) == 2
    assert (cpu.most, accelerator.most) == (1, 1)
    alone = Puppets(2)
    assert len(list(run_tasks(deque(tasks), Crew(alone)))) == 2
    with in_thread() as thread:
        assert dict(run_tasks(deque(tasks), Crew(InProcess(), thread))) == {
            tasks[0]: 1,
            tasks[1]: 2,
        }


def test_a_task_whose_worker_died_is_tried_again_alone_and_last():
    place = Puppets(3)
    deaths = {"unlucky": 1, "deadly": 99}
    order, company = [], {}

    def work(name: str) -> str:
        company[name] = len(place.in_flight)
        order.append(name)
        if deaths.get(name, 0) > 0:
            deaths[name] -= 1
            raise WorkerDied
        return name

    names = ["deadly", "a", "unlucky", "b", "c"]
    tasks = deque(Task(name, work, (name,)) for name in names)
    results = {task.name: value for task, value in run_tasks(tasks, Crew(place))}
    assert sorted(order) == sorted([*names, "deadly", "unlucky"])
    assert set(order[-2:]) == {"deadly", "unlucky"}
    assert company["deadly"] == company["unlucky"] == 0
    assert isinstance(results.pop("deadly"), WorkerDied)
    assert results == {name: name for name in names[1:]}


def test_an_error_of_a_task_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(deque([Task("divide", divmod, (1, 0))]), Crew(InProcess())))


def test_workers_that_stay_away_end_the_run(monkeypatch):
    monkeypatch.setattr(workers, "LOST_SECONDS", 0.2)
    with pytest.raises(UserError, match="there has been no worker"):
        list(run_tasks(named([1]), Crew(Puppets(0))))
    gone = Puppets(1)
    gone.capacity = itertools.chain([1], itertools.repeat(0)).__next__
    with pytest.raises(UserError, match=r"Start workers, then rerun the same command"):
        list(run_tasks(named([1]), Crew(gone)))


def test_ctrl_c_waits_for_the_block_and_never_reaches_its_processes():
    reached = []
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it

    def block() -> None:
        with uninterrupted():
            child = subprocess.Popen(["sleep", "60"])
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(child.pid, signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.2)
            child.kill()
            child.wait()
            reached.append("end")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["end"]
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
