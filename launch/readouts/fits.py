"""The linear models of a readout. Their penalties are chosen by cross-validation over patients.

They are small, so that more than one thread of BLAS would only wait for the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from threadpoolctl import threadpool_limits

FOLDS = 5
ALPHAS = np.logspace(-2, 5, 15)
"""Penalties of ridge regression, for features of deviation about 1."""
INVERSE_PENALTIES = np.logspace(-4, 1, 11)
"""C of logistic regression."""


def ridge(x: np.ndarray, y: np.ndarray, patients: np.ndarray) -> Ridge:
    """Ridge regression with an intercept; the penalty has the least squared error over 5 folds of
    patients.

    Args:
      x: f[N, F], scaled (`scaled`).
      y: f[N].
      patients: [N] patient of each vertebra.
    """
    count = min(FOLDS, len(np.unique(patients)))
    errors = np.zeros(len(ALPHAS))
    with threadpool_limits(1):
        for fit, rest in GroupKFold(count).split(x, y, patients):
            # One target for each penalty, so that they share a decomposition.
            model = Ridge(ALPHAS, solver="svd").fit(x[fit], np.tile(y[fit, None], len(ALPHAS)))
            errors += np.mean((model.predict(x[rest]) - y[rest, None]) ** 2, axis=0)
        return Ridge(ALPHAS[int(np.argmin(errors))]).fit(x, y)


def logistic(x: np.ndarray, label: np.ndarray, patients: np.ndarray) -> LogisticRegression:
    """Logistic regression; the penalty has the least log loss over folds of patients. Folds whose
    fitted part has one class are left out; if none is left, C is 1.

    Args:
      x: f[N, F], scaled.
      label: int[N] of 0 and 1, both present.
      patients: [N].
    """
    count = max(2, min(FOLDS, *np.bincount(label, minlength=2)))
    losses = np.zeros(len(INVERSE_PENALTIES))
    with threadpool_limits(1):
        for fit, rest in StratifiedGroupKFold(count).split(x, label, patients):
            if len(set(label[fit])) < 2 or not len(rest):
                continue
            model = LogisticRegression(max_iter=1000, warm_start=True)
            for number, c in enumerate(INVERSE_PENALTIES):
                # A stronger penalty's solution is near, so that few iterations are needed.
                p = model.set_params(C=c).fit(x[fit], label[fit]).predict_proba(x[rest])
                losses[number] -= np.log(p[np.arange(len(rest)), label[rest]]).mean()
        best = INVERSE_PENALTIES[int(np.argmin(losses))] if losses.any() else 1.0
        return LogisticRegression(C=best, max_iter=1000, tol=1e-6).fit(x, label)


def scaled(embedding: np.ndarray | None, numbers: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Features for the models above, by the mean and deviation of training vertebrae.

    An embedding has one scale for all channels: a channel that hardly varies in training, divided
    by its own deviation, would put an unusual vertebra hundreds of deviations away. Numbers have
    different units, so each has its own; one that is missing is that of the mean.

    Args:
      embedding: f[N, F], or None.
      numbers: f[N, P], P may be 0; NaN where missing.
      training: i[M] rows of both.

    Returns:
      f64[N, F + P].
    """
    known = numbers[training]
    mean, deviation = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    # A number that is the same in all of training, but for rounding, tells nothing elsewhere.
    varies = deviation > 1e-9 * np.abs(mean)
    scores = np.where(varies, (numbers - mean) / (deviation + 1e-12), 0.0)
    parts = [np.nan_to_num(scores, nan=0.0)]
    if embedding is not None:
        values = embedding.astype(np.float64)
        scale = values[training].std(axis=0).mean() + 1e-12
        parts.insert(0, (values - values[training].mean(axis=0)) / scale)
    return np.concatenate(parts, axis=1)


def few_patients(
    patients: np.ndarray, positive: np.ndarray, count: int, seed: int | Sequence[int]
) -> np.ndarray:
    """A random choice of patients with at least two of either class, as far as there are so many.

    Args:
      patients: [N] patient of each vertebra.
      positive: bool[N]: whether its label is positive; a patient is, if any vertebra is.
      count: how many to choose; all, where there are no more.
      seed: of the choice. A larger count contains a smaller one, but for exchanges of class.

    Returns:
      bool[N]: the vertebrae of the chosen.
    """
    names = np.unique(patients)
    order = np.random.default_rng(seed).permutation(len(names))
    ill = np.array([positive[patients == name].any() for name in names])[order]
    # Two of either class come first, then the others in their random order.
    first = [place for kind in (True, False) for place in np.flatnonzero(ill == kind)[:2]]
    rest = [place for place in range(len(names)) if place not in first]
    return np.isin(patients, names[order][[*first, *rest][:count]])
