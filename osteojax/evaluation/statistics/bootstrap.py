"""Percentile intervals from a bootstrap that draws patients, not vertebrae.

Vertebrae of one patient resemble each other, so drawing vertebrae would make intervals too narrow.
A resample is a count per patient (how often it was drawn); every metric is then a weighted sum,
computed for all resamples at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from osteojax.evaluation.statistics.metrics import BY_RANK, DIAGNOSIS, Undefined, attempt

RESAMPLES = 1000
CONFIDENCE = 0.95
MIN_PATIENTS = 10
"""With fewer patients there is no interval: resamples of so few give far too narrow ones."""
MIN_DEFINED = 0.9
"""A metric gets an interval only if at least this share of the resamples defines it; a resample
with one class, for example, does not define AUROC."""

_CELLS = 4_000_000  # largest number of weights in memory at a time (32 MB)

Interval = list[float] | None


def patient_counts(patients: int, resamples: int, seed: int) -> np.ndarray:
    """float64[resamples, patients]: how often each patient was drawn; rows sum to `patients`."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(
        np.float64
    )


def percentile_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> list[float]:
    """[low, high] of f64[resamples], NaN where a resample leaves the metric undefined.

    Raises:
      Undefined: fewer than `MIN_DEFINED` of the resamples define the metric; or all give one
        value (13 of 13 right), whose interval would have no width.
    """
    defined = values[np.isfinite(values)]
    if len(defined) < MIN_DEFINED * len(values):
        raise Undefined(f"defined in only {len(defined)} of {len(values)} bootstrap resamples")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(defined, [tail, 100 - tail])
    if low == high:
        raise Undefined(f"every resample gives {low:.3g}")
    return [float(low), float(high)]


def classification_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    threshold: float | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Intervals of every metric of `metrics.classification`.

    Args:
      labels: int[N], 1 = osteoporosis.
      probabilities: float[N].
      patients: [N] patient of each case; all cases of a patient are drawn together.
      threshold: as in `metrics.classification`; not resampled, since it comes from validation.
      resamples, seed: of the bootstrap.

    Returns:
      metric -> [low, high] or None, and the reason for each None.
    """
    names = BY_RANK if threshold is None else DIAGNOSIS
    if few := too_few(patients):
        return dict.fromkeys(names), dict.fromkeys(names, few)
    return _intervals(diagnosis_values(labels, probabilities, patients, threshold, resamples, seed))


def diagnosis_values(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    threshold: float | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Every metric in every resample; arguments as in `classification_intervals`.

    The draws depend only on the patients, `resamples` and `seed`, so that values of two models on
    the same cases can be compared resample by resample.

    Returns:
      metric -> f64[resamples], NaN where a resample leaves it undefined.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    index = _patient_index(patients)
    counts = patient_counts(index.max() + 1, resamples, seed)
    ranks = _Ranks(labels, probabilities)
    ranking = np.concatenate(
        [ranks.areas(counts[rows][:, index]) for rows in _chunks(counts, index)]
    )
    values = {"AUROC": ranking[:, 0], "AUPRC": ranking[:, 1]}
    if threshold is not None:
        values |= _threshold_resamples(labels, probabilities >= threshold, index, counts)
    return values


def bmd_intervals(
    truth: np.ndarray,
    predicted: np.ndarray,
    patients: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Intervals of MAE, bias (g/cm^2) and r of f[N] truth and predicted BMD."""
    names = ("MAE", "bias", "r")
    if few := too_few(patients):
        return dict.fromkeys(names), dict.fromkeys(names, few)
    return _intervals(bmd_values(truth, predicted, patients, resamples, seed))


def bmd_values(
    truth: np.ndarray,
    predicted: np.ndarray,
    patients: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """MAE, bias and r in every resample, f64[resamples] each; draws as in `diagnosis_values`."""
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    index = _patient_index(patients)
    counts = patient_counts(index.max() + 1, resamples, seed)
    # Values are centred first to avoid cancellation in the moments below.
    x, y = truth - truth.mean(), predicted - predicted.mean()
    difference = predicted - truth
    columns = [np.ones_like(x), np.abs(difference), difference, x, y, x * x, y * y, x * y]
    sums = counts @ _by_patient(np.stack(columns, axis=1), index)
    mae, bias, mx, my, mxx, myy, mxy = (sums[:, 1:] / sums[:, :1]).T
    variances = (mxx - mx * mx) * (myy - my * my)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where(variances > 1e-16, (mxy - mx * my) / np.sqrt(variances), np.nan)
    return {"MAE": mae, "bias": bias, "r": r}


def correlation_interval(
    truth: np.ndarray, predicted: np.ndarray, patients: np.ndarray
) -> Interval:
    """Interval of Pearson's r of f[N] truth and predicted; None where patients are too few."""
    return bmd_intervals(truth, predicted, patients)[0]["r"]


def mean_intervals(
    values: dict[str, np.ndarray],
    patients: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Intervals of the mean of each named f[N] (right or wrong, absolute error, ...)."""
    if few := too_few(patients):
        return dict.fromkeys(values), dict.fromkeys(values, few)
    index = _patient_index(patients)
    counts = patient_counts(index.max() + 1, resamples, seed)
    cases = counts @ np.bincount(index).astype(np.float64)
    return _intervals(
        {
            name: counts @ _by_patient(np.asarray(value, np.float64), index) / cases
            for name, value in values.items()
        }
    )


class _Ranks:
    """Cases sorted by score with ties grouped, from which weighted ROC areas are computed."""

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        self.order = np.argsort(probabilities, kind="stable")
        ordered = probabilities[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.positive = (labels[self.order] == 1).astype(np.float64)

    def areas(self, weights: np.ndarray) -> np.ndarray:
        """f64[R, N] case weights -> f64[R, 2] AUROC and average precision, NaN if undefined."""
        ordered = weights[:, self.order]
        positive = np.add.reduceat(ordered * self.positive, self.starts, axis=1)
        negative = np.add.reduceat(ordered * (1 - self.positive), self.starts, axis=1)
        positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
        below = np.cumsum(negative, axis=1) - negative
        true_above = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
        called_above = np.cumsum((positive + negative)[:, ::-1], axis=1)[:, ::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = np.sum(positive * (below + negative / 2), axis=1) / (positives * negatives)
            precision = np.where(called_above > 0, true_above / called_above, 0)
            auprc = np.sum(positive * precision, axis=1) / positives
        both = (positives > 0) & (negatives > 0)
        return np.where(both[:, None], np.stack([auroc, auprc], axis=1), np.nan)


def _threshold_resamples(
    labels: np.ndarray, called: np.ndarray, index: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """metric -> f64[resamples] from the confusion counts of each patient."""
    cells = np.stack(
        [called & (labels == 1), called & (labels == 0), ~called & (labels == 0)], axis=1
    )
    tp, fp, tn = (counts @ _by_patient(cells.astype(np.float64), index)).T
    n = counts @ np.bincount(index).astype(np.float64)
    fn = n - tp - fp - tn
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "ACC": (tp + tn) / n,
            "SEN": tp / (tp + fn),
            "SPE": tn / (tn + fp),
            "PPV": tp / (tp + fp),
            "NPV": tn / (tn + fn),
            "F1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
        }


def too_few(patients: np.ndarray) -> str:
    """Why the patients of [N] cases are too few for any interval; "" if they are enough."""
    count = len(np.unique(np.asarray(patients)))
    if count >= MIN_PATIENTS:
        return ""
    return f"no interval from {count} patient{'s' * (count != 1)} (needs {MIN_PATIENTS})"


def _patient_index(patients: np.ndarray) -> np.ndarray:
    """int[N]: number of each case's patient."""
    return np.unique(np.asarray(patients), return_inverse=True)[1]


def _by_patient(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """f64[N, ...] -> f64[patients, ...] sums over each patient's cases."""
    sums = np.zeros((index.max() + 1, *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def _chunks(counts: np.ndarray, index: np.ndarray) -> Iterator[slice]:
    """Slices of resamples whose weights fit in memory."""
    step = max(1, _CELLS // max(1, len(index)))
    for start in range(0, len(counts), step):
        yield slice(start, start + step)


def _intervals(values: dict[str, np.ndarray]) -> tuple[dict[str, Interval], dict[str, str]]:
    notes: dict[str, str] = {}
    intervals = {
        name: attempt(notes, name, percentile_interval, resamples)
        for name, resamples in values.items()
    }
    return intervals, notes
