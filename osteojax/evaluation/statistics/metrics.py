"""Metrics of diagnosis, bone density and vertebral level, by their standard definitions.

Every function returns plain floats. A value that cannot be computed is None, never 0 or NaN, with
its reason under `notes`.

The paper's columns "SEN" and "SPE" behave like PPV and NPV: only PPV and NPV are comparable with
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

BLAND_ALTMAN_Z = 1.96
"""Limits of agreement are bias -+ 1.96 SD of the differences (Bland and Altman 1986)."""


BY_RANK = ("AUROC", "AUPRC")
AT_THRESHOLD = ("ACC", "SEN", "SPE", "PPV", "NPV", "F1")
DIAGNOSIS = (*BY_RANK, *AT_THRESHOLD)
"""Metrics of a diagnosis. Every table, comparison and bootstrap takes its names from here."""


class Undefined(ValueError):
    """A value is not defined for these data. Reports print the message as the reason."""


def attempt(
    notes: dict[str, str], name: str, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """function(*args); if it raises `Undefined`, None, with the reason in `notes[name]`."""
    try:
        return function(*args, **kwargs)
    except Undefined as reason:
        notes[name] = str(reason)
        return None


def require_both_classes(labels: np.ndarray) -> None:
    """Raises `Undefined` unless both 0 and 1 occur in int[N] labels."""
    n, positives = len(labels), int(np.sum(labels))
    if n == 0:
        raise Undefined("no labelled cases")
    if positives in (0, n):
        raise Undefined(f"one class only ({positives} positive of {n})")


def classification(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """Accuracy, sensitivity, specificity, predictive values, F1, AUROC, AUPRC.

    Args:
      labels: int[N], 1 = osteoporosis.
      probabilities: float[N] in 0-1.
      threshold: a case is called positive where its probability >= threshold; None where no
        threshold could be fitted.

    Returns:
      n, positives, threshold, ACC = (TP + TN) / n, SEN = TP / (TP + FN), SPE = TN / (TN + FP),
      PPV = TP / (TP + FP), NPV = TN / (TN + FN), F1 = 2 TP / (2 TP + FP + FN), AUROC (ties count
      half), AUPRC (average precision, no interpolation), counts TP, FP, TN, FN, and notes.
    """
    labels, probabilities = _finite_pair(labels, probabilities)
    notes: dict[str, str] = {}
    result: dict[str, Any] = {
        "n": len(labels),
        "positives": int(labels.sum()),
        "threshold": threshold,
        **_thresholded(labels, probabilities, threshold, notes),
        "AUROC": attempt(notes, "AUROC", auroc, labels, probabilities),
        "AUPRC": attempt(notes, "AUPRC", auprc, labels, probabilities),
    }
    result["notes"] = notes
    return result


def _thresholded(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | None, notes: dict[str, str]
) -> dict[str, Any]:
    if threshold is None:
        notes.update(dict.fromkeys(AT_THRESHOLD, "no threshold could be fitted on validation"))
        return dict.fromkeys((*AT_THRESHOLD, "TP", "FP", "TN", "FN"))
    called = probabilities >= threshold
    tp = int(np.sum(called & (labels == 1)))
    fp = int(np.sum(called & (labels == 0)))
    fn = int(np.sum(~called & (labels == 1)))
    tn = int(np.sum(~called & (labels == 0)))
    ratios = {
        "ACC": (tp + tn, len(labels), "no labelled cases"),
        "SEN": (tp, tp + fn, "no positive cases"),
        "SPE": (tn, tn + fp, "no negative cases"),
        "PPV": (tp, tp + fp, "no case was called positive"),
        "NPV": (tn, tn + fn, "no case was called negative"),
        # Without positives 2 TP / (2 TP + FP + FN) is 0 for every model.
        "F1": (2 * tp, 2 * tp + fp + fn if tp + fn else 0, "no positive cases"),
    }
    values: dict[str, Any] = {
        name: attempt(notes, name, _ratio, *parts) for name, parts in ratios.items()
    }
    return {**values, "TP": tp, "FP": fp, "TN": tn, "FN": fn}


def _ratio(numerator: float, denominator: float, reason: str) -> float:
    if denominator == 0:
        raise Undefined(reason)
    return numerator / denominator


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Probability that a positive case scores above a negative one; ties count half."""
    require_both_classes(labels)
    return float(sklearn_metrics.roc_auc_score(labels, probabilities))


def auprc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Average precision: sum over recall steps of (R_k - R_{k-1}) P_k."""
    require_both_classes(labels)
    return float(sklearn_metrics.average_precision_score(labels, probabilities))


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold with the largest sensitivity + specificity - 1 (Youden 1950).

    It lies midway between the two neighbouring scores that it separates, so that it does not
    coincide with the score of a validation case. Among equally good thresholds the lowest is taken,
    because screening should be sensitive.

    Raises:
      Undefined: one class only, or no threshold separates better than chance.
    """
    labels, probabilities = _finite_pair(labels, probabilities)
    require_both_classes(labels)
    # Thresholds are descending. drop_intermediate would remove the neighbours of the optimum.
    false_rate, true_rate, scores = sklearn_metrics.roc_curve(
        labels, probabilities, drop_intermediate=False
    )
    youden = true_rate - false_rate
    best = len(youden) - 1 - int(np.argmax(np.round(youden[::-1], 12)))
    if youden[best] <= 1e-12:
        raise Undefined("no threshold separates the validation classes better than chance")
    upper, lower = float(scores[best]), float(scores[best + 1])
    middle = (upper + lower) / 2
    return middle if middle > lower else upper


def bmd_regression(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Agreement of predicted with measured bone mineral density, both f[N] in g/cm^2.

    Returns:
      n, MAE, RMSE, r (Pearson), bias = mean(predicted - truth), sd of the differences (n - 1),
      Bland-Altman limits lower, upper = bias -+ 1.96 sd; all g/cm^2 but r; and notes.
    """
    truth, predicted = _finite_pair(truth, predicted)
    difference = predicted - truth
    notes: dict[str, str] = {}
    n = len(truth)
    result: dict[str, Any] = {
        "n": n,
        "MAE": attempt(notes, "MAE", _mean, np.abs(difference)),
        "RMSE": None,
        "r": attempt(notes, "r", pearson, truth, predicted),
        "bias": attempt(notes, "bias", _mean, difference),
        "sd": None,
        "lower": None,
        "upper": None,
    }
    if n:
        result["RMSE"] = float(np.sqrt(np.mean(difference**2)))
    else:
        notes["RMSE"] = notes["MAE"]
    if n >= 2:
        sd = float(np.std(difference, ddof=1))
        reach = BLAND_ALTMAN_Z * sd
        result.update(sd=sd, lower=result["bias"] - reach, upper=result["bias"] + reach)
    else:
        notes["sd"] = notes["lower"] = notes["upper"] = f"needs 2 measured values, has {n}"
    result["notes"] = notes
    return result


def _mean(values: np.ndarray) -> float:
    if len(values) == 0:
        raise Undefined("no measured values")
    return float(np.mean(values))


def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's r. Raises `Undefined` for fewer than 3 pairs or if either is constant."""
    if len(truth) < 3:
        raise Undefined(f"needs 3 measured values, has {len(truth)}")
    for name, values in (("measured", truth), ("predicted", predicted)):
        # A spread below float32 rounding counts as constant: r would be that of rounding noise.
        if np.ptp(values) <= 1e-6 * max(1.0, float(np.max(np.abs(values)))):
            raise Undefined(f"{name} values are all the same")
    return float(stats.pearsonr(truth, predicted).statistic)


def position(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Agreement of predicted with true vertebral level, both int[N] classes 1-18 (T1 to L6).

    Returns:
      n, accuracy, within_one (share within one level), mean_absolute_error in levels, notes.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise ValueError(f"{truth.shape} true levels, {predicted.shape} predicted")
    names = ("accuracy", "within_one", "mean_absolute_error")
    if len(truth) == 0:
        return {"n": 0, **dict.fromkeys(names), "notes": dict.fromkeys(names, "no vertebrae")}
    error = np.abs(predicted.astype(np.int64) - truth.astype(np.int64))
    return {
        "n": len(truth),
        "accuracy": float(np.mean(error == 0)),
        "within_one": float(np.mean(error <= 1)),
        "mean_absolute_error": float(np.mean(error)),
        "notes": {},
    }


def _finite_pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as 1-D float64 of one length (labels as int64). Raises ValueError for NaN."""
    first, second = np.asarray(first), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"shapes {first.shape} and {second.shape} are not one vector each")
    if not (np.all(np.isfinite(first.astype(np.float64))) and np.all(np.isfinite(second))):
        raise ValueError("NaN or infinite values; drop or correct the rows before measuring")
    return (first if first.dtype.kind in "iu" else first.astype(np.float64)), second
