"""Dask workers: processes of this machine, or a cluster that the user started.

Every task runs inside `perform`, which makes sure that a worker uses one core, uses no accelerator
unless it advertises the resource `accelerator`, sees the same --out folder and runs the same
versions. Exceptions of a task are returned as values, because Dask would log the task's arguments,
which name cases.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, Security, Worker, get_worker, rpc

from data_prep.workers import Crew, WorkerDied, uninterrupted
from osteojax.errors import UserError

CONNECT_SECONDS = 10.0
WORKERS_SECONDS = 60.0
"""How long a run waits for a first worker when it begins."""

START_WORKERS = "dask worker {address} --nthreads 1 --nworkers CORES"
MALLOC = {-3: 32 << 20, -1: 64 << 20, -8: 1}
"""Options of `mallopt`: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes, at the values that glibc
adapts to by default, and M_ARENA_MAX."""
LOCAL = {"distributed.worker.profile.enabled": False}


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Conditions that a worker must meet before it runs a task.

    Attributes:
      out: absolute path of the --out folder, the same on every machine.
      run: content of `out/.lock` during this run.
      versions: of the packages that determine the written bytes.
    """

    out: str
    run: str
    versions: dict[str, str]

    def unmet(self, worker: Worker) -> str | None:
        """What is wrong with a worker and what to do about it; None if nothing is. Runs on it."""
        where = f"worker {worker.address}"
        if worker.state.nthreads != 1:
            return (
                f"{where} has {worker.state.nthreads} threads; it must run one task at a time. "
                f"Start it as `{START_WORKERS.format(address='ADDRESS')}`."
            )
        if different := [
            f"{name} {found} (here {self.versions[name]})"
            for name, found in versions().items()
            if found != self.versions[name]
        ]:
            return (
                f"{where} runs {', '.join(different)}. Start the workers in the same environment."
            )
        try:
            seen = (Path(self.out) / ".lock").read_text()
        except OSError:
            seen = ""
        if seen != self.run:
            return (
                f"{where} does not see the folder {self.out}. Name an --out folder, by the same "
                "path, on a file system that all machines share."
            )
        return None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that determine the written bytes or Dask's protocol."""
    packages = ("osteojax", "jax", "numpy", "SimpleITK", "array-record", "distributed")
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    return found | {name: importlib.metadata.version(name) for name in packages}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a task: a value, or the error that it raised."""

    value: Any = None
    error: Exception | None = None


def perform(
    conditions: Conditions, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Outcome:
    """Runs a task in a Dask worker."""
    if problem := conditions.unmet(get_worker()):
        return Outcome(error=UserError(problem))
    settle_worker()
    try:
        return Outcome(function(*arguments))
    except UserError as error:
        return Outcome(error=UserError(str(error)))  # a CaseError does not cross processes
    except OSError as error:
        return Outcome(error=error)
    except Exception:
        return Outcome(error=RuntimeError(f"in a worker:\n{traceback.format_exc()}"))


@functools.cache
def settle_worker() -> None:
    """Limits the process to one thread, and to the CPU unless its worker advertises an accelerator.

    Call it before JAX starts in the process.
    """
    import jax
    import SimpleITK as sitk
    import threadpoolctl

    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    os.environ["NPROC"] = "1"  # the size of XLA's thread pool on a CPU; no flag sets it
    if not get_worker().state.total_resources.get("accelerator"):
        jax.config.update("jax_platforms", "cpu")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpoolctl.threadpool_limits(1)
    _keep_pages()


def _keep_pages() -> None:
    """Makes glibc keep freed memory pages, as it does by default. Dask's nanny turns that off
    through the environment, and allocating new pages for every volume made `prepare` a third
    slower."""
    if platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in every libc
            for option, value in MALLOC.items():
                libc.mallopt(option, value)


class Workers:
    """A `Place`: the workers of a Dask scheduler, or only those with a resource."""

    def __init__(self, client: Client, conditions: Conditions, resource: str | None) -> None:
        resources = {resource: 1} if resource else None
        self._executor = client.get_executor(pure=False, resources=resources)
        self._client, self._conditions, self._resource = client, conditions, resource
        self._capacity, self._counted_at = 0, 0.0

    def capacity(self) -> int:
        """One task per worker. Workers may come and go, so they are counted every second."""
        if time.monotonic() - self._counted_at > 1:
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
            able = [w for w in workers if not self._resource or self._resource in w["resources"]]
            self._capacity, self._counted_at = len(able), time.monotonic()
        return self._capacity

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        inner = self._executor.submit(perform, self._conditions, function, arguments)
        inner.add_done_callback(lambda finished: _copy_result(finished, future))
        return future


def _copy_result(finished: Future[Any], future: Future[Any]) -> None:
    """Copies the result or error of a finished Dask future to the task's future."""
    if finished.cancelled():
        gone = "the scheduler is gone. Start it again, then rerun the same command; what is "
        future.set_exception(UserError(f"{gone}finished is kept."))
        return
    error = finished.exception()
    if isinstance(error, KilledWorker):
        future.set_exception(WorkerDied())
    elif isinstance(error, ImportError):
        future.set_exception(UserError(_cannot_import(error)))
    elif error is not None:
        future.set_exception(error)
    elif (outcome := finished.result()).error is not None:
        future.set_exception(outcome.error)
    else:
        future.set_result(outcome.value)


def _cannot_import(error: BaseException) -> str:
    return (
        f"a worker cannot import what it needs ({error}). Start the workers in the same "
        "environment, with osteojax installed."
    )


def _quiet() -> None:
    """Silences Dask's logs; this package reports a lost worker or scheduler in one line."""
    for name in [*logging.root.manager.loggerDict]:
        if name.split(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def local_crew(workers: int, conditions: Conditions) -> Iterator[Crew]:
    """Starts processes on this machine; they end with this process, even if it is killed."""
    _quiet()
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(LOCAL))
        with uninterrupted():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",  # None would be port 8787
                silence_logs=logging.CRITICAL,
                scheduler_kwargs={
                    "allowed_failures": 0,  # `run_tasks` does the retries
                    "dashboard": False,
                },
            )
            client = Client(stack.enter_context(cluster), set_as_default=False)
            stack.enter_context(client)
        yield Crew(Workers(client, conditions, None))


@contextlib.contextmanager
def cluster_crew(address: str, conditions: Conditions) -> Iterator[Crew]:
    """The workers of a running scheduler; they keep running afterwards.

    Raises:
      UserError: no scheduler, no worker, or a worker that does not meet the conditions.
    """
    _quiet()
    client = _connect(address)
    try:
        try:
            client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except TimeoutError:
            raise UserError(
                f"the scheduler at {address} has no workers. Start some: "
                f"`{START_WORKERS.format(address=address)}`."
            ) from None
        for found in client.run(_unmet, conditions, on_error="return").values():
            if isinstance(found, BaseException):
                raise UserError(_cannot_import(found))
            if found is not None:
                raise UserError(found)
        accelerator = Workers(client, conditions, "accelerator")
        yield Crew(
            Workers(client, conditions, None), accelerator if accelerator.capacity() else None
        )
    finally:
        client.close()


def _unmet(conditions: Conditions, dask_worker: Worker) -> str | None:
    return conditions.unmet(dask_worker)


def _connect(address: str) -> Client:
    """address: tcp://host:port, or the file that `dask scheduler --scheduler-file` wrote."""
    try:
        if address.endswith(".json"):
            address = json.loads(Path(address).read_text())["address"]
        asyncio.run(asyncio.wait_for(_wait_for_answer(address), CONNECT_SECONDS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of other versions; `Conditions` checks them
            return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no answer"
        raise UserError(
            f"no Dask scheduler answers at {address} ({reason}). Start one with `dask scheduler` "
            "and give the address that it prints, as tcp://host:8786, or its --scheduler-file."
        ) from None


async def _wait_for_answer(address: str) -> None:
    """Returns once a scheduler answers; `Client` would wait for ever on a port that never does."""
    security = Security().get_connection_args("client")
    async with rpc(address, connection_args=security) as scheduler:
        await scheduler.identity(n_workers=0)
