"""Pictures are trained on, killed, resumed and exported by the code that vertebrae use."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.cli import main
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import open_cohort
from osteojax.export.load import ExportedModel
from tests.pictures import commands


def leaves(workdir: Path) -> list[np.ndarray]:
    step, variables = load_variables(workdir, "last")
    assert step == 40
    return [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]


def test_four_devices_give_the_answer_of_one(trained, prepared, tmp_path):
    four = commands.run_training(tmp_path / "four", prepared, devices=4)
    for a, b in zip(leaves(trained), leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


RUN = """import pathlib, sys
from tests.pictures.commands import run_training
run_training(*map(pathlib.Path, sys.argv[1:]))
"""
"""As the run beside it, with the fake devices of the tests: XLA has more threads with more devices,
and sums in another order."""


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same_run(trained, prepared, tmp_path):
    workdir = tmp_path / "workdir"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(workdir), str(prepared)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    try:
        while not (workdir / "checkpoints" / "10").is_dir():
            assert time.monotonic() < end, "no checkpoint was written"
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    commands.run_training(workdir, prepared)
    for straight, resumed in zip(leaves(trained), leaves(workdir), strict=True):
        assert straight.tobytes() == resumed.tobytes()


def test_the_exported_program_tells_the_stripes_of_pictures_it_has_not_seen(
    trained, prepared, tmp_path
):
    assert main(["export", "--workdir", str(trained), "--out", str(tmp_path / "model")]) == 0
    model = ExportedModel(tmp_path / "model")
    assert model.kind == "tests.pictures"
    cohort = open_cohort(prepared)
    rows = cohort.rows("valid", "test", labelled=True)
    found = model.predict(np.stack([cohort.array(row, "picture") for row in rows]))
    told = found["direction_probabilities"].argmax(axis=1)
    assert (told == cohort.targets["direction"][rows]).mean() > 0.8
    error = np.abs(found["width_px"] - cohort.targets["width"][rows])
    assert error.mean() < np.std(cohort.targets["width"][rows])
