"""Writes metrics to `metrics.jsonl` and TensorBoard, in process 0 only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from osteojax.files import write_text


class Writer:
    """Writes one JSON object per line, `{"step": 10, "train/loss": ...}`; NaN becomes null."""

    def __init__(self, workdir: Path, first_step: int) -> None:
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = workdir / "metrics.jsonl"
        self._forget_after(first_step)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)

    def _forget_after(self, step: int) -> None:
        """Removes the lines after the restored step, which will be written again."""
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line, default=step + 1) <= step]
            write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, prefix: str, metrics: Mapping[str, float]) -> None:
        """Appends scalars under `prefix/name`."""
        if not self._active or not metrics:
            return
        values = {f"{prefix}/{name}": float(value) for name, value in metrics.items()}
        row = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._active:
            self._board.close()


def _step_of(line: str, default: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # an incomplete line of a killed run
        return default
