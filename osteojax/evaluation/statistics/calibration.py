"""Calibration of probabilities: Brier score, ECE, calibration line, temperature."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, special
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from osteojax.evaluation.statistics.metrics import Undefined, attempt, require_both_classes

BINS = 10
FOLDS = 5
"""Of patients, in the cross-fitting of a temperature."""
LOGIT_CLIP = 1e-6
"""Probabilities are clipped this far from 0 and 1 before the logit, so that no single case
dominates a fit."""

_MAX_LOG_TEMPERATURE = np.log(20.0)
_MAX_ABS_INTERCEPT = 40.0  # larger than any logit after LOGIT_CLIP


def logit(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of float[N], p clipped to [1e-6, 1 - 1e-6]."""
    clipped = np.clip(np.asarray(probabilities, np.float64), LOGIT_CLIP, 1 - LOGIT_CLIP)
    return special.logit(clipped)


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Calibration of float[N] probabilities against int[N] labels.

    Returns:
      Brier: mean squared error of the probability (0 best; 0.25 for an uninformed 0.5).
      ECE: expected calibration error, `BINS` bins of equal width.
      slope: of a logistic regression of the label on logit(p); 1 is ideal, below 1 overconfident.
      intercept: calibration in the large, a in logit P(label) = a + logit(p); 0 is ideal, above 0
        the model underestimates risk (Van Calster et al. 2016).
      notes: name -> reason for each value that is None.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    notes: dict[str, str] = {}
    return {
        "n": len(labels),
        "Brier": attempt(notes, "Brier", brier, labels, probabilities),
        "ECE": attempt(notes, "ECE", expected_calibration_error, labels, probabilities),
        "slope": attempt(notes, "slope", slope, labels, probabilities),
        "intercept": attempt(notes, "intercept", intercept, labels, probabilities),
        "notes": notes,
    }


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """mean((p - label)^2)."""
    if len(labels) == 0:
        raise Undefined("no labelled cases")
    return float(sklearn_metrics.mean_squared_error(labels, probabilities))


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """f64[bins, 3]: cases, mean probability, share positive, per bin of equal width.

    Bins are half-open, [k / bins, (k + 1) / bins), the last one closed; NaN where a bin is empty.
    """
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    index = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    cases = np.bincount(index, minlength=bins).astype(np.float64)
    sums = [np.bincount(index, values, minlength=bins) for values in (probabilities, labels)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([cases, sums[0] / cases, sums[1] / cases], axis=1)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over cases of |share positive - mean probability| of the case's bin."""
    if len(labels) == 0:
        raise Undefined("no labelled cases")
    rows = reliability(labels, probabilities)
    rows = rows[rows[:, 0] > 0]
    return float(np.sum(rows[:, 0] * np.abs(rows[:, 2] - rows[:, 1])) / len(labels))


def slope(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Slope b of logit P(label) = a + b logit(p), by maximum likelihood."""
    require_both_classes(labels)
    scores = logit(probabilities)
    positive, negative = scores[labels == 1], scores[labels == 0]
    if np.ptp(scores) < 1e-9:
        raise Undefined("all probabilities are the same")
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        raise Undefined("the classes are separated entirely: the slope has no finite value")
    # C = inf means no penalty. Scores are standardised because the solver's tolerance is absolute.
    spread = scores.std()
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    return float(model.fit(scores[:, None] / spread, labels).coef_[0, 0] / spread)


def intercept(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """a in logit P(label) = a + logit(p), with which the mean probability equals the share of
    positives."""
    require_both_classes(labels)
    scores = logit(probabilities)
    return float(
        optimize.brentq(
            lambda a: float(np.sum(special.expit(scores + a)) - np.sum(labels)),
            -_MAX_ABS_INTERCEPT,
            _MAX_ABS_INTERCEPT,
            xtol=1e-12,
        )
    )


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The T > 0 whose sigmoid(logit(p) / T) has the smallest cross-entropy (Guo et al. 2017).

    It is fitted on validation and applied to test. Raises `Undefined` for one class, or where T has
    no finite optimum (probabilities that rank the classes in reverse or separate them entirely).
    """
    require_both_classes(labels)
    scores, labels = logit(probabilities), np.asarray(labels, np.float64)

    def at(log_temperature: float) -> float:
        return _cross_entropy(labels, scores * np.exp(-log_temperature))

    bounds = (-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE)
    best = optimize.minimize_scalar(at, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    if abs(best.x) > _MAX_LOG_TEMPERATURE - 1e-3:
        raise Undefined(
            "no temperature between 1/20 and 20 fits: validation is separated entirely, or ranked "
            "no better than chance"
        )
    return float(np.exp(best.x))


def helpful_temperature(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray
) -> float:
    """`fit_temperature`, if a temperature also helps patients that it was not fitted on.

    Patients are dealt to five folds, positive and negative ones in turn. Each fold is scaled by the
    temperature of the others (cross-fitting), and all held-out cases together are compared with
    the probabilities as they are.

    Args:
      labels: int[N]; probabilities: f64[N]; patients: [N], whose case each is.

    Raises:
      Undefined: `fit_temperature` raises it, for all cases or without one of the folds; or the
        held-out log loss or Brier score does not fall. The reason gives both.
    """
    temperature = fit_temperature(labels, probabilities)
    fold = _folds_of_patients(labels, patients)
    scaled = np.array(probabilities, np.float64)
    for number in np.unique(fold):
        held = fold == number
        try:
            scaled[held] = apply_temperature(
                probabilities[held], fit_temperature(labels[~held], probabilities[~held])
            )
        except Undefined as reason:
            raise Undefined(
                f"validation has too few patients ({len(np.unique(patients))}) to see whether it "
                f"helps others ({reason}), so probabilities stay as they are"
            ) from None
    before, after = _losses(labels, probabilities), _losses(labels, scaled)
    if not all(now < was for now, was in zip(after, before, strict=True)):
        raise Undefined(
            f"on held-out validation patients it changes log loss from {before[0]:.4f} to "
            f"{after[0]:.4f} and the Brier score from {before[1]:.4f} to {after[1]:.4f}, so "
            "probabilities stay as they are"
        )
    return temperature


def _folds_of_patients(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """int[N]: the fold of each case. All cases of a patient are in one; positive patients (with any
    positive case) and then negative ones are dealt in the order of their ids."""
    ids, of_case = np.unique(patients, return_inverse=True)
    positive = np.zeros(len(ids), bool)
    np.logical_or.at(positive, of_case, np.asarray(labels, bool))
    order = np.argsort(~positive, kind="stable")
    fold_of_patient = np.empty(len(ids), np.int64)
    fold_of_patient[order] = np.arange(len(ids)) % FOLDS
    return fold_of_patient[of_case]


def _losses(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Mean log loss and Brier score."""
    return _cross_entropy(labels, logit(probabilities)), brier(labels, probabilities)


def _cross_entropy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean of -log P(label), where the scores are logits."""
    return float(np.mean(np.logaddexp(0, scores) - labels * scores))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """f64[N]: sigmoid(logit(p) / temperature)."""
    return special.expit(logit(probabilities) / temperature)
