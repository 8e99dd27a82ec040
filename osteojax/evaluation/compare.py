"""Compares two models on the same cases, with intervals and tests of the difference.

Every difference is `first - second`. The bootstrap draws patients (and training seeds if there are
several), the same draw for both models. DeLong's test is clustered by patient. McNemar's test has
no clusters: it treats vertebrae of one patient as independent, so prefer the bootstrap's p of the
accuracy for vertebrae.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.multitest import multipletests

from osteojax.evaluation.statistics import bootstrap, delong, metrics
from osteojax.evaluation.statistics.metrics import Undefined, attempt

Thresholds = float | Sequence[float] | np.ndarray | None
"""One threshold for all seeds, or one per seed; None leaves out the metrics that need one."""

Values = dict[str, np.ndarray]


def resample_diagnosis(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    thresholds: Thresholds = None,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, float], Values]:
    """Metrics of one model, trained with one or several seeds, and their bootstrap.

    Args:
      labels: int[N], 1 = osteoporosis.
      probabilities: f[N], or f[S, N] of S training seeds.
      patients: [N] patient of each case.
      thresholds: fitted on validation; None gives AUROC and AUPRC only.
      resamples, seed: of the bootstrap. For the same cases, equal values draw the same patients.

    Returns:
      metric -> its mean over the seeds (absent if it is undefined for a seed), and
      metric -> f64[resamples]: mean over seeds drawn with replacement, NaN where undefined.
    """
    labels, runs = np.asarray(labels), _runs(probabilities, len(labels))
    cuts = _per_run(thresholds, len(runs))
    found = [metrics.classification(labels, p, t) for p, t in zip(runs, cuts, strict=True)]
    values = [
        bootstrap.diagnosis_values(labels, p, patients, t, resamples, seed)
        for p, t in zip(runs, cuts, strict=True)
    ]
    return _over_seeds(found, values, resamples, seed)


def resample_bmd(
    truth: np.ndarray,
    predicted: np.ndarray,
    patients: np.ndarray,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, float], Values]:
    """MAE, bias and r (g/cm^2) of f[M] or f[S, M] predictions; otherwise `resample_diagnosis`."""
    truth = np.asarray(truth, np.float64)
    runs = _runs(predicted, len(truth))
    found = [metrics.bmd_regression(truth, run) for run in runs]
    values = [bootstrap.bmd_values(truth, run, patients, resamples, seed) for run in runs]
    return _over_seeds(found, values, resamples, seed)


def compare(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray,
    thresholds: tuple[Thresholds, Thresholds] = (None, None),
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Diagnosis by two models on the same cases.

    Args:
      labels: int[N], 1 = osteoporosis.
      first, second: f[N] probabilities, or f[S, N] of S training seeds, cases in one order.
      patients: [N] patient of each case.
      thresholds: of the first and of the second model, from validation.
      resamples, seed: of the patient bootstrap.

    Returns:
      n, patients, positives;
      difference: metric -> first, second, difference, interval, p (two-sided, bootstrap), and
        `note` where one of them is None;
      delong: difference, standard_error, z, p of the AUROC, clustered by patient, or None;
      mcnemar: only_first_right, only_second_right, p (exact), or None (also for several seeds);
      notes: why delong or mcnemar is None.
    """
    labels, patients = np.asarray(labels), np.asarray(patients)
    runs = [_runs(p, len(labels)) for p in (first, second)]
    result: dict[str, Any] = {
        "n": len(labels),
        "patients": len(np.unique(patients)),
        "positives": int(labels.sum()),
    }
    names = list(metrics.BY_RANK)
    if all(threshold is not None for threshold in thresholds):
        names = list(metrics.DIAGNOSIS)
    settings = {"resamples": resamples, "seed": seed}
    sides = [
        partial(resample_diagnosis, labels, run, patients, cut, **settings)
        for run, cut in zip(runs, thresholds, strict=True)
    ]
    result["difference"] = _differences(names, sides, patients)
    notes: dict[str, str] = {}
    result["delong"] = attempt(notes, "delong", _delong, labels, *runs, patients)
    result["mcnemar"] = attempt(notes, "mcnemar", _mcnemar, labels, *runs, thresholds)
    result["notes"] = notes
    return result


def compare_bmd(
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """BMD by two models on the same measured vertebrae, f[M] or f[S, M] in g/cm^2.

    Returns n, patients and `difference` of MAE, bias and r, as `compare` does.
    """
    truth, patients = np.asarray(truth, np.float64), np.asarray(patients)
    sides = [
        partial(resample_bmd, truth, run, patients, resamples=resamples, seed=seed)
        for run in (first, second)
    ]
    return {
        "n": len(truth),
        "patients": len(np.unique(patients)),
        "difference": _differences(["MAE", "bias", "r"], sides, patients),
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for multiple tests (Holm 1979); None stays None and is not counted."""
    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1] if known else [])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def _differences(
    names: list[str],
    sides: Sequence[Callable[[], tuple[dict[str, float], Values]]],
    patients: np.ndarray,
) -> dict[str, dict[str, Any]]:
    if few := bootstrap.too_few(patients):
        empty = dict.fromkeys(("first", "second", "difference", "interval", "p"))
        return {name: {**empty, "note": few} for name in names}
    (first, first_values), (second, second_values) = [side() for side in sides]
    result = {}
    for name in names:
        entry: dict[str, Any] = {"first": first.get(name), "second": second.get(name)}
        entry |= dict.fromkeys(("difference", "interval", "p"))
        result[name] = entry
        if entry["first"] is None or entry["second"] is None:
            entry["note"] = "undefined for one of the two on these cases"
            continue
        entry["difference"] = entry["first"] - entry["second"]
        gaps = first_values[name] - second_values[name]
        try:
            entry["interval"] = bootstrap.percentile_interval(gaps)
            entry["p"] = _bootstrap_p(gaps)
        except Undefined as reason:
            entry["note"] = str(reason)
    return result


def _bootstrap_p(gaps: np.ndarray) -> float:
    """Two-sided p: twice the share of resamples on the opposite side of 0, at least 2 / (R + 1)."""
    gaps = gaps[np.isfinite(gaps)]
    beyond = min(np.sum(gaps <= 0), np.sum(gaps >= 0))
    return float(min(1.0, 2 * (beyond + 1) / (len(gaps) + 1)))


def _delong(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, patients: np.ndarray
) -> dict[str, float]:
    if few := bootstrap.too_few(patients):
        raise Undefined(few.replace("interval", "normal approximation"))
    return delong.paired_test(labels, first, second, patients)


def _mcnemar(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    thresholds: tuple[Thresholds, Thresholds],
) -> dict[str, Any]:
    if len(first) > 1 or len(second) > 1:
        raise Undefined("needs one decision per case; there are several training seeds")
    if len(labels) == 0:
        raise Undefined("no labelled cases")
    right = []
    for probabilities, threshold in zip((first[0], second[0]), thresholds, strict=True):
        [cut] = _per_run(threshold, 1)
        if cut is None:
            raise Undefined("no threshold could be fitted on validation")
        right.append((probabilities >= cut) == (labels == 1))
    table = np.array(
        [[np.sum((right[0] == a) & (right[1] == b)) for b in (True, False)] for a in (True, False)]
    )
    if table[0, 1] + table[1, 0] == 0:
        raise Undefined("both are right and wrong on the same cases")
    return {
        "only_first_right": int(table[0, 1]),
        "only_second_right": int(table[1, 0]),
        "p": float(exact_mcnemar(table, exact=True).pvalue),
    }


def _runs(values: np.ndarray, cases: int) -> np.ndarray:
    """f64[S, cases] of f[cases] or f[S, cases]."""
    runs = np.atleast_2d(np.asarray(values, np.float64))
    if runs.ndim != 2 or runs.shape[1] != cases:
        raise ValueError(f"predictions of shape {np.shape(values)} for {cases} cases")
    return runs


def _per_run(thresholds: Thresholds, runs: int) -> list[float | None]:
    if thresholds is None or np.ndim(thresholds) == 0:
        return [thresholds] * runs  # type: ignore[list-item]
    if len(thresholds) != runs:  # type: ignore[arg-type]
        raise ValueError(f"{len(thresholds)} thresholds for {runs} seeds")  # type: ignore[arg-type]
    return [float(t) for t in thresholds]  # type: ignore[union-attr]


def _over_seeds(
    found: list[dict[str, Any]], values: list[Values], resamples: int, seed: int
) -> tuple[dict[str, float], Values]:
    """Means over the runs, and for each resample the mean over runs drawn with replacement."""
    runs = len(found)
    drawn = np.random.default_rng([seed, runs]).multinomial(
        runs, np.full(runs, 1 / runs), resamples
    )
    weights = drawn.T / runs  # [S, R]
    estimates, means = {}, {}
    for name in values[0]:
        each = [entry[name] for entry in found]
        if None not in each:
            estimates[name] = float(np.mean(each))
        stacked = np.stack([value[name] for value in values])
        means[name] = np.sum(np.where(weights > 0, stacked * weights, 0.0), axis=0)
    return estimates, means
