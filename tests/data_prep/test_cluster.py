"""Dask workers as separate processes: deaths, mistakes, and always the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from distributed import LocalCluster

import data_prep.build
from data_prep import cluster
from data_prep.cluster import Conditions, cluster_crew, versions
from data_prep.parts import prepare_item
from osteojax.errors import UserError
from tests.data_prep.prepared import NUM_SCANS, contents, prepare


@contextlib.contextmanager
def dask(role: str, folder: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen]:
    """A `dask scheduler` or `dask worker`, known by a scheduler file; killed at the end."""
    command = [
        sys.executable,
        "-m",
        f"distributed.cli.dask_{role}",
        "--no-dashboard",
        "--dashboard-address",
        "127.0.0.1:0",
    ]
    command += ["--scheduler-file", str(folder / "scheduler.json"), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.DEVNULL, env=os.environ | environment, cwd=folder
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def worker(folder: Path, *options: str, **environment: str):
    """A worker without nanny: killed, it is gone."""
    return dask("worker", folder, "--nthreads", "1", "--no-nanny", *options, **environment)


def wait_until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[Path]:
    """Folder of a running scheduler."""
    folder = tmp_path_factory.mktemp("cluster")
    with dask("scheduler", folder, "--port", "0"):
        wait_until((folder / "scheduler.json").exists)
        yield folder


def readers(path: Path, processes: list[subprocess.Popen]) -> list[subprocess.Popen]:
    """Those that have a file open."""
    found = []
    for process in processes:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if entry.readlink() == path:
                    found.append(process)
    return found


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_no_byte(
    scheduler, cohort_folder, prepared, tmp_path
):
    """One CT is a pipe: its reader stands still until it is killed; then the pipe is the file.

    Both workers advertise an accelerator, so that the maps are made by shard here, and with the
    scan in `prepared`.
    """
    folder, out = tmp_path / "cohort", tmp_path / "out"
    shutil.copytree(cohort_folder, folder)
    pipe = folder / "s3_ct.nii.gz"
    pipe.unlink()
    os.mkfifo(pipe)
    with contextlib.ExitStack() as stack:
        options = ("--resources", "accelerator=1")
        workers = [stack.enter_context(worker(scheduler, *options)) for _ in range(2)]
        killed: list[subprocess.Popen] = []

        def kill_the_reader() -> None:
            end = os.open(pipe, os.O_RDWR)  # a reader's open returns, its read waits
            wait_until(
                lambda: (
                    readers(pipe, workers)
                    and (out / "shards" / "pool-00000-of-00003.array_record").exists()
                )
            )
            killed.extend(readers(pipe, workers))
            whole = folder / "whole"
            shutil.copy(cohort_folder / pipe.name, whole)
            whole.replace(pipe)
            killed[0].send_signal(signal.SIGKILL)
            os.close(end)

        killer = threading.Thread(target=kill_the_reader, daemon=True)
        killer.start()
        status = prepare(folder, out, "--scheduler", str(scheduler / "scheduler.json"))
        assert status == 0
        assert [process.wait() for process in killed] == [-signal.SIGKILL]
        assert contents(out) == contents(prepared)


def test_workers_that_cannot_be_used_are_told(scheduler, tmp_path):
    """Another folder, other versions, no package: one line each, before any work."""
    address = str(scheduler / "scheduler.json")

    def problem(conditions: Conditions) -> str:
        with pytest.raises(UserError) as caught, cluster_crew(address, conditions):
            pass
        return str(caught.value)

    with worker(scheduler, XLA_FLAGS=""):  # without the fake devices, each of a thread
        here = Conditions(str(tmp_path), "run", versions())
        assert "does not see the folder" in problem(here)
        assert f"{tmp_path}. Name an --out folder" in problem(here)
        (tmp_path / ".lock").write_text("another run")
        assert "does not see the folder" in problem(here)
        (tmp_path / ".lock").write_text("run")
        other = Conditions(str(tmp_path), "run", versions() | {"jax": "0.1"})
        assert f"runs jax {versions()['jax']} (here 0.1)" in problem(other)
        with cluster_crew(address, here) as crew:
            assert crew.workers.capacity() == 1
            assert crew.accelerator is None
            assert crew.workers.submit(abs, (-1,)).result(timeout=60) == 1
            threads = (
                "__import__('jax').numpy.ones(9).sum() and sum('XLAEigen' in open(comm).read() "
                "for comm in __import__('glob').glob('/proc/self/task/*/comm'))"
            )
            assert crew.workers.submit(eval, (threads,)).result(timeout=60) == 1
            with pytest.raises(OSError, match="No such file"):
                crew.workers.submit(os.stat, (str(tmp_path / "gone"),)).result(timeout=60)
    without = tmp_path / "without"
    (without / "data_prep").mkdir(parents=True)
    (without / "data_prep" / "__init__.py").write_text("raise ImportError('not installed here')")
    with worker(scheduler, PYTHONPATH=str(without)):
        assert "a worker cannot import what it needs" in problem(here)
        assert "not installed here" in problem(here)


def test_no_scheduler_is_one_line(cohort_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"tcp://127.0.0.1:{port}", "nowhere", "tls://127.0.0.1:1", "absent.json"):
        assert prepare(cohort_folder, tmp_path / "out", "--scheduler", address) == 1
        error = capsys.readouterr().err
        assert f"no Dask scheduler answers at {address}" in error
        assert "Start one with `dask scheduler`" in error
        assert len(error.strip().splitlines()) == 1


def test_something_else_at_the_address_is_no_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(UserError, match="no Dask scheduler answers"),
            cluster_crew(address, Conditions(str(tmp_path), "run", versions())),
        ):
            pass


@pytest.mark.parametrize(
    ("workers", "threads", "told"),
    [(0, 1, "has no workers. Start some: `dask worker tcp://"), (1, 2, "has 2 threads")],
)
def test_no_workers_and_workers_with_threads_are_told(
    tmp_path, monkeypatch, workers, threads, told
):
    monkeypatch.setattr(cluster, "WORKERS_SECONDS", 0.5)
    conditions = Conditions(str(tmp_path), "run", versions())
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=False,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
        ) as running,
        pytest.raises(UserError, match=told),
        cluster_crew(running.scheduler_address, conditions),
    ):
        pass


def dies_of_s1(recipe, scan, *arguments):
    """A scan that takes its process with it."""
    if scan.scan_id == "s1":
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare_item(recipe, scan, *arguments)


def test_a_scan_that_kills_its_worker_is_a_failure_and_the_others_go_on(
    cohort_folder, prepared, tmp_path, monkeypatch, capfd
):
    out = tmp_path / "out"
    monkeypatch.setattr(data_prep.build, "prepare_item", dies_of_s1)
    assert prepare(cohort_folder, out, "--workers", "2") == 1
    failures = pd.read_csv(out / "failures.csv")
    assert failures.case.tolist() == ["s1"]
    assert "the worker that read it died" in failures.reason[0]
    assert "too little memory" in failures.remedy[0]
    assert len(pd.read_csv(out / "vertebrae.csv")) == 2 * (NUM_SCANS - 1)
    output = capfd.readouterr()
    assert "patient_s" not in output.out + output.err  # Dask would log a task's arguments
    assert "Traceback" not in output.err
    monkeypatch.undo()
    assert prepare(cohort_folder, out) == 0
    assert contents(out) == contents(prepared)
