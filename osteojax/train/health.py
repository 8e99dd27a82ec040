"""Stops a run whose loss is not finite or diverges, and writes what helps to find the cause."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from osteojax.files import write_json

REFERENCE_STEPS = 10
"""Number of first steps whose average is taken as the loss of an untrained network."""

SMOOTHING = 0.9
KEPT_STEPS = 200


class Health:
    """Watches the losses of a run.

    Attributes:
      recent: the last metrics, newest last, with their step.
    """

    def __init__(
        self, diverges_above: Callable[[float], float], saved: Mapping[str, float] | None = None
    ) -> None:
        """
        Args:
          diverges_above: `Objective.diverges_above`: loss of an untrained network -> smoothed loss
            above which the run has diverged.
          saved: result of `to_save` before the restart.
        """
        self._diverges_above = diverges_above
        saved = saved or {}
        self._count = int(saved.get("count", 0))
        self._reference = float(saved.get("reference_loss", 0.0))
        self._smoothed = float(saved.get("smoothed_loss", 0.0))
        self.recent: deque[dict[str, float]] = deque(maxlen=KEPT_STEPS)

    def to_save(self) -> dict[str, float]:
        """State that a checkpoint keeps."""
        return {
            "count": self._count,
            "reference_loss": self._reference,
            "smoothed_loss": self._smoothed,
        }

    def verdict(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """What is wrong after `step`, as text; None if nothing is wrong.

        Args:
          metrics: of the step, with "loss" and "gradient_norm".
        """
        self.recent.append({"step": step, **metrics})
        loss, norm = metrics["loss"], metrics["gradient_norm"]
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"the loss is {loss:.4g} at step {step} (gradient norm {norm:.3g})"
        self._count += 1
        if self._count <= REFERENCE_STEPS:
            self._reference += (loss - self._reference) / self._count
            self._smoothed = self._reference
            return None
        self._smoothed = SMOOTHING * self._smoothed + (1.0 - SMOOTHING) * loss
        if self._smoothed > self._diverges_above(self._reference):
            return (
                f"the loss diverges: {self._smoothed:.4g} around step {step}, "
                f"{self._reference:.4g} over the first {REFERENCE_STEPS} steps"
            )
        return None


def keep_evidence(
    path: Path, step: int, verdict: str, health: Health, state: Any, rows: np.ndarray
) -> None:
    """Writes evidence that a rerun would overwrite: the last metrics, the number of values of each
    array that are not finite, and the rows of the batch.

    Args:
      path: of a JSON file.
      verdict: of `Health.verdict`.
      state: the newest state, after the dispatch of `step` or the next one.
      rows: i32[b] rows of the table in process 0's share of the batch of `step`.
    """
    write_json(
        path,
        {
            "step": step,
            "verdict": verdict,
            "not_finite": _not_finite(state),
            "rows_of_the_batch": [int(row) for row in rows],
            "metrics": [
                {k: (v if math.isfinite(v) else str(v)) for k, v in row.items()}
                for row in health.recent
            ],
        },
    )


def _not_finite(state: Any) -> dict[str, str]:
    """Name of each array with NaN or infinity -> "number of such values of all values"."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            found[name] = f"{int((~np.isfinite(values)).sum())} of {values.size}"
    return found
