"""Reference rows without a network: the oracle, and logistic models on a few numbers.

Each is fitted on the labelled training vertebrae; BMD is predicted by linear regression on the same
numbers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import POOL
from osteojax.errors import UserError


def ceiling_predictions(
    ceiling: str, cohort: PreparedCohort, truth: pd.DataFrame, rows: np.ndarray
) -> pd.DataFrame:
    """Probability and BMD of one of `plan.CEILINGS` for some rows.

    Args:
      ceiling: "oracle", "glcm", "hu" or "hu_age".
      truth: of the simulator.
      rows: i64[N] of the cohort's table, each with a DXA result.

    Returns:
      columns probability, bmd_pred_g_cm2, f64[N].

    Raises:
      UserError: training vertebrae of one class only.
    """
    training = cohort.rows("train", labelled=True)
    everything = np.r_[training, rows]
    values = _features(ceiling, cohort, truth, everything)
    x_train, x = values[: len(training)], values[len(training) :]
    label = cohort.labels.osteoporosis[training]
    if len(set(label[label >= 0])) < 2:
        raise UserError(f"{cohort.directory}: the labelled training vertebrae are of one class.")
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    logistic.fit(x_train[label >= 0], label[label >= 0])
    bmd = cohort.labels.bmd_g_cm2[training].astype(np.float64)
    measured = ~np.isnan(bmd)
    # The oracle uses the true BMD itself, without a fit.
    known = _true_bmd(cohort, truth, rows) if ceiling == "oracle" else None
    if known is None:
        linear = make_pipeline(StandardScaler(), LinearRegression())
        known = linear.fit(x_train[measured], bmd[measured]).predict(x)
    return pd.DataFrame({"probability": logistic.predict_proba(x)[:, 1], "bmd_pred_g_cm2": known})


def _features(
    ceiling: str, cohort: PreparedCohort, truth: pd.DataFrame, rows: np.ndarray
) -> np.ndarray:
    """f64[N, F]."""
    table = cohort.table.iloc[rows]
    if ceiling == "oracle":
        # The T-score of the vertebra's scanner, by that scanner's reference of the level.
        return _of_own_device(cohort, truth, rows, "t_score")[:, None]
    if ceiling == "glcm":
        return np.stack([mean_features(cohort, int(row)) for row in rows])
    names = ["mean_hu"] if ceiling == "hu" else ["mean_hu", "age"]
    return table[names].to_numpy(np.float64)


def mean_features(cohort: PreparedCohort, row: int) -> np.ndarray:
    """f64[4]: mean of each texture map over the voxels of the vertebra."""
    mask = cohort.array(row, "mask")[0]
    codes = cohort.members(row, list(POOL[1:]))
    specs = cohort.about.maps[1:]
    means = [s.decode(c[mask]).mean(dtype=np.float64) for s, c in zip(specs, codes, strict=True)]
    return np.array(means)


def _true_bmd(cohort: PreparedCohort, truth: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    return _of_own_device(cohort, truth, rows, "bmd_g_cm2")


def _of_own_device(
    cohort: PreparedCohort, truth: pd.DataFrame, rows: np.ndarray, what: str
) -> np.ndarray:
    """f64[N]: the truth's `what` on the DXA scanner that measured each vertebra."""
    table = cohort.table.iloc[rows]
    return true_values(truth, table["scan_id"], table["level"], table["device"], what)


def true_values(
    truth: pd.DataFrame, scan_id: pd.Series, level: pd.Series, device: pd.Series, what: str
) -> np.ndarray:
    """f64[N]: column `<what>_<device>` of each (scan, level); NaN for a device not in the truth."""
    places = pd.MultiIndex.from_arrays([scan_id.to_numpy(), level.to_numpy()])
    found = truth.set_index(["scan_id", "level"]).loc[places]
    names = [f"{what}_{name}" for name in device]
    return np.array(
        [found[name].iat[i] if name in found.columns else np.nan for i, name in enumerate(names)],
        np.float64,
    )
