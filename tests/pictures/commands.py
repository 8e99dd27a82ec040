"""Command lines of `osteojax` for the pictures."""

from __future__ import annotations

from pathlib import Path


def prepare(folder: Path, out: Path, workers: int = 1) -> list[str]:
    options = ["--kind", "tests.pictures", "--scans-per-shard", "5", "--workers", str(workers)]
    return ["prepare", "--pictures", str(folder / "pictures.csv"), "--out", str(out), *options]


def train(workdir: Path, data: Path) -> list[str]:
    config = ["--config", "tests/pictures/config.py"]
    return ["train", *config, "--workdir", str(workdir), "--data", str(data)]
