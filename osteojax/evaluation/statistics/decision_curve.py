"""Decision curve: is acting on the model better than acting on everybody or on nobody?

A. Vickers and E. Elkin, Medical Decision Making 26:565 (2006).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Threshold probabilities 0.05 to 0.95: the risk at which one would send a patient to DXA."""


def net_benefit(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS
) -> pd.DataFrame:
    """Net benefit TP/n - FP/n * t / (1 - t) per case at each threshold probability t.

    Args:
      labels: int[N], 1 = osteoporosis.
      probabilities: float[N]; they must be calibrated for the curve to mean what it says.
      thresholds: in the open interval 0-1.

    Returns:
      threshold, model (act where p >= t), all (act on everybody), none (0).
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
