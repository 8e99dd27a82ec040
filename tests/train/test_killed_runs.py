"""SIGKILL at random moments changes nothing but the time a run takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def killed_runs(pool: Path, out: Path, kills: int, steps: int) -> dict:
    # One device, and XLA at its quickest: nothing here depends on how fast the steps are.
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "tests.train.killed_runs"]
    done = subprocess.run(
        [*command, str(pool), str(out), str(kills), str(steps)],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_that_is_killed_twice_is_bit_identical(tiny_pool: Path, tmp_path: Path) -> None:
    result = killed_runs(tiny_pool, tmp_path, kills=2, steps=5)
    assert result["kills"] == 2
    assert result["bit_identical"]
    assert result["arrays"] > 100


@pytest.mark.slow
def test_runs_that_are_killed_twenty_times_are_bit_identical(tiny_pool, tmp_path: Path) -> None:
    result = killed_runs(tiny_pool, tmp_path, kills=20, steps=40)
    assert result["kills"] == 20
    assert result["bit_identical"]
    assert len(set(result["newest_step_at_each_kill"])) > 5  # not all at one place
