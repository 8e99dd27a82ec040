"""Command lines of `osteojax` for the pictures, and a training run of it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from launch.cli import main
from osteojax.train.parallel import DataParallel


def prepare(folder: Path, out: Path, workers: int = 1) -> list[str]:
    options = ["--kind", "tests.pictures", "--scans-per-shard", "5", "--workers", str(workers)]
    return ["prepare", "--pictures", str(folder / "pictures.csv"), "--out", str(out), *options]


def train(workdir: Path, data: Path) -> list[str]:
    config = ["--config", "tests/pictures/config.py"]
    return ["train", *config, "--workdir", str(workdir), "--data", str(data)]


def run_training(workdir: Path, data: Path, devices: int = 1) -> Path:
    """Trains on the first so many of the fake devices."""
    some = functools.partial(DataParallel.create, num_devices=devices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataParallel, "create", some)
        assert main(train(workdir, data)) == 0
    return workdir
