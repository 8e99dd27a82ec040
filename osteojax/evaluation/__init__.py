"""Evaluates a model's predictions: metrics, tables and a report.

An objective that `osteojax evaluate` can score has `evaluation() -> Evaluation`, which defines what
its predictions mean. The one for vertebrae is `vertebrae.VertebraEvaluation`;
`targets.TargetEvaluation` is for any kind of data whose manifest names targets.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from osteojax.evaluation.report.cells import Shown


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions of a run.

    Attributes:
      rows: i64[N] of the cohort's table: validation, and the splits that are reported.
      outputs: of `Evaluation.predict` for these rows.
      training_outputs: the same for `Evaluation.training_sample`.
      variables: of the run, {"params": ..., "batch_stats": ...} and other state of the model.
    """

    rows: np.ndarray
    outputs: dict[str, np.ndarray]
    training_outputs: dict[str, np.ndarray]
    variables: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """Files and results of an evaluation.

    Attributes:
      paths: name -> file; "report", "metrics" and "predictions" are among them.
      metrics: content of metrics.json.
      tables: the main ones, narrow enough for a terminal.
      warnings: sentences that a reader must know first.
    """

    paths: dict[str, Path]
    metrics: dict[str, Any]
    tables: tuple[Shown, ...]
    warnings: tuple[str, ...]


class Evaluation(Protocol):
    """The interface that `osteojax evaluate` needs of an objective."""

    def predict(
        self, params: Any, model_state: Any, rows: np.ndarray, devices: Any
    ) -> dict[str, np.ndarray]:
        """Outputs [N, ...] for some rows of the cohort, in the units of the report."""

    def training_sample(self) -> np.ndarray:
        """i64[M] rows of the split "train" that the report needs predicted too; may be empty."""

    def table(self, rows: np.ndarray, outputs: dict[str, np.ndarray]) -> pd.DataFrame:
        """The table predictions.csv: for each of `rows`, columns of the cohort and of the model;
        patient_id and split are among them."""

    def write(self, out: Path, predicted: Predicted, context: dict[str, Any]) -> Report:
        """Fits on the rows of validation, reports the others, and writes everything into `out`.

        Args:
          context: facts about the run: simulated, version, config, checkpoint, checkpoint_step,
            which, data, command.
        """
