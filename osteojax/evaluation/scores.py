"""The metrics of a predictions table with their intervals, as one small table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from osteojax.evaluation.patients import cases_of
from osteojax.evaluation.statistics import bootstrap, metrics

BMD = ("MAE", "bias", "r")


def score_predictions(
    table: pd.DataFrame,
    unit: str = "vertebra",
    threshold: float = 0.5,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Metrics of the labelled cases, with 95% intervals of a bootstrap over patients.

    Args:
      table: of `predictions.read`; all rows are used, of one split or several.
      unit: "vertebra", "patient" (positive if any vertebra is) or "patient_mean".
      threshold: a case is called positive if its probability is at least this. `osteojax evaluate`
        uses Youden's threshold of the validation split.
      resamples, seed: of the bootstrap.

    Returns:
      Indexed by metric: n, estimate, low, high, note (why a number is NaN). AUROC, AUPRC, ACC, SEN,
      SPE, PPV, NPV, F1; of vertebrae also MAE, bias (g/cm^2) and r of BMD.
    """
    cases = cases_of(table, unit)
    labels = cases["osteoporosis"].to_numpy(np.int64)
    probabilities = cases["probability"].to_numpy(np.float64)
    found = metrics.classification(labels, probabilities, threshold)
    intervals, why = bootstrap.classification_intervals(
        labels, probabilities, cases["patient_id"].to_numpy(), threshold, resamples, seed
    )
    lines = _lines(metrics.DIAGNOSIS, found, intervals, why)
    if unit == "vertebra":
        measured = table[table["bmd_g_cm2"].notna()]
        truth, predicted = (measured[n].to_numpy() for n in ("bmd_g_cm2", "bmd_pred_g_cm2"))
        found = metrics.bmd_regression(truth, predicted)
        intervals, why = bootstrap.bmd_intervals(
            truth, predicted, measured["patient_id"].to_numpy(), resamples, seed
        )
        lines += _lines(BMD, found, intervals, why)
    return pd.DataFrame(lines).set_index("metric")


def _lines(
    names: tuple[str, ...], found: dict[str, Any], intervals: dict[str, Any], why: dict[str, str]
) -> list[dict[str, Any]]:
    lines = []
    for name in names:
        low, high = intervals[name] or (np.nan, np.nan)
        estimate = np.nan if found[name] is None else found[name]
        note = found["notes"].get(name, "") or why.get(name, "")
        line = {"metric": name, "n": found["n"], "estimate": estimate, "low": low, "high": high}
        lines.append({**line, "note": note})
    return lines
