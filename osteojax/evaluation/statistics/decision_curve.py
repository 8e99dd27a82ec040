"""Decision curve: the net benefit of treating by the model, against treating all or none.

A. Vickers and E. Elkin, Medical Decision Making 26:565 (2006).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Threshold probabilities 0.05 to 0.95: the risk from which a patient would be sent to DXA."""


def net_benefit(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS
) -> pd.DataFrame:
    """Net benefit TP/n - FP/n * t / (1 - t) per case at each threshold probability t.

    Args:
      labels: int[N], 1 = osteoporosis.
      probabilities: float[N]; they must be calibrated, or the curve is not valid.
      thresholds: in the open interval 0-1.

    Returns:
      threshold, model (treat where p >= t), all (treat everybody), none (0).
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    cut = np.asarray(thresholds, np.float64)
    called = probabilities[None, :] >= cut[:, None]
    odds = cut / (1 - cut)
    true = (called & (labels == 1)).mean(axis=1)
    false = (called & (labels == 0)).mean(axis=1)
    prevalence = np.mean(labels == 1)
    return pd.DataFrame(
        {
            "threshold": cut,
            "model": true - false * odds,
            "all": prevalence - (1 - prevalence) * odds,
            "none": 0.0,
        }
    )
