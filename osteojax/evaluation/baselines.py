"""Baselines for the model: diagnosis from the vertebra's mean HU, alone and with age.

Both are logistic regressions fitted on the labelled vertebrae of the training split. With HU alone
that is a threshold on HU, as opportunistic screening uses it: the smaller the HU, the larger the
probability. HU are the mean over the vertebra's whole label, with cortex and posterior elements.
Published HU thresholds are for a trabecular ellipse drawn by hand instead.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from scipy import special
from sklearn.linear_model import LogisticRegression

from osteojax.evaluation.compare import compare, holm
from osteojax.evaluation.patients import cases_of
from osteojax.evaluation.statistics import bootstrap, metrics
from osteojax.evaluation.statistics.metrics import Undefined, attempt, require_both_classes

FEATURES = {"hu": ("mean_hu",), "hu_age": ("mean_hu", "age")}
TITLES = {"hu": "HU threshold", "hu_age": "HU + age, logistic"}
MIN_TRAINING = 20
UNITS = ("vertebra", "patient")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A logistic regression on standardised columns of `vertebrae.csv`.

    Attributes:
      features: columns it reads.
      mean, scale: f64[K], of the features in the training vertebrae.
      coefficients, intercept: for the standardised features.
      n: number of training vertebrae.
    """

    features: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: float
    n: int

    def probability(self, table: pd.DataFrame) -> np.ndarray:
        """f64[N]; NaN where a feature is empty (age unknown)."""
        features = table[list(self.features)].to_numpy(np.float64)
        scores = (features - self.mean) / self.scale @ self.coefficients + self.intercept
        return special.expit(scores)

    def as_json(self) -> dict[str, Any]:
        """Coefficients per unit of each feature (log odds per HU, per year)."""
        per_unit = self.coefficients / self.scale
        return {
            "training_vertebrae": self.n,
            "log_odds_per": dict(zip(self.features, per_unit.tolist(), strict=True)),
            "intercept": float(self.intercept - self.mean @ per_unit),
        }


def column(name: str) -> str:
    """The column of the predictions table that holds a baseline's probability."""
    return f"baseline_{name}"


def fit(training: pd.DataFrame) -> tuple[dict[str, Baseline], dict[str, str]]:
    """The baselines of `FEATURES` from labelled training vertebrae.

    Args:
      training: columns osteoporosis (1, 0 or empty), mean_hu, age.

    Returns:
      name -> Baseline, and name -> why it could not be fitted.
    """
    notes: dict[str, str] = {}
    found = {name: attempt(notes, name, _fit, training, FEATURES[name]) for name in FEATURES}
    return {name: baseline for name, baseline in found.items() if baseline is not None}, notes


def _fit(training: pd.DataFrame, features: tuple[str, ...]) -> Baseline:
    rows = training.dropna(subset=["osteoporosis", *features])
    labels = rows["osteoporosis"].to_numpy(np.int64)
    require_both_classes(labels)
    if len(rows) < MIN_TRAINING:
        raise Undefined(f"needs {MIN_TRAINING} training vertebrae, has {len(rows)}")
    values = rows[list(features)].to_numpy(np.float64)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    for name, spread in zip(features, scale, strict=True):
        if spread < 1e-9:
            raise Undefined(f"{name} is the same for every training vertebra")
    # C = 1 is a ridge penalty on standardised features. With hundreds of vertebrae it is
    # negligible, and it keeps coefficients finite where the classes are separated.
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    model.fit((values - mean) / scale, labels)
    return Baseline(
        features, mean, scale, model.coef_[0].copy(), float(model.intercept_[0]), len(rows)
    )


def summarise(
    table: pd.DataFrame,
    valid: pd.DataFrame,
    fitted: dict[str, Any],
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Diagnosis by the baselines, and the model compared with them on the same cases.

    Args:
      table, valid: checked predictions of the reported splits and of validation, with the columns
        `baseline_*` (empty where there is no baseline).
      fitted: of `summary.fit_on_validation`, for the model's thresholds.
      resamples, seed: of the patient bootstrap.

    Returns:
      name -> title, fitted (unit -> threshold, notes), internal | external -> unit -> missing
      (labelled vertebrae without the feature, left out), patients, n, positives,
      at_validation_threshold (as `summary.diagnosis`), against_model (`compare.compare`, model -
      baseline, with `p_holm` beside DeLong's p, adjusted over all of this table).
    """
    result: dict[str, Any] = {}
    for name, title in TITLES.items():
        if valid[column(name)].isna().all() or table[column(name)].isna().all():
            continue
        known = _instead(valid, name)
        entry: dict[str, Any] = {"title": title, "fitted": {}}
        for unit in UNITS:
            cases = cases_of(known, unit)
            notes: dict[str, str] = {}
            threshold = attempt(notes, "threshold", metrics.youden_threshold, *_arrays(cases))
            entry["fitted"][unit] = {"threshold": threshold, "notes": notes}
        for part in ("internal", "external"):
            rows = table[(table["split"] == "external") == (part == "external")]
            entry[part] = {
                unit: _against(rows, name, unit, entry["fitted"], fitted, resamples, seed)
                for unit in UNITS
            }
        result[name] = entry
    _adjust(result)
    return result


def _against(
    rows: pd.DataFrame,
    name: str,
    unit: str,
    own: dict[str, Any],
    fitted: dict[str, Any],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    usable = rows[rows[column(name)].notna()]
    cases = cases_of(_instead(usable, name), unit)
    model = cases_of(usable, unit)["probability"].to_numpy()
    labels, probabilities = _arrays(cases)
    patients, threshold = cases["patient_id"].to_numpy(), own[unit]["threshold"]
    values = metrics.classification(labels, probabilities, threshold)
    intervals, why = bootstrap.classification_intervals(
        labels, probabilities, patients, threshold, resamples, seed
    )
    return {
        "missing": int((rows["osteoporosis"].notna() & rows[column(name)].isna()).sum()),
        "patients": len(set(patients)),
        "n": len(cases),
        "positives": int(labels.sum()),
        "at_validation_threshold": {**values, "intervals": intervals, "interval_notes": why},
        "against_model": compare(
            labels, model, probabilities, patients, (fitted[unit]["threshold"], threshold),
            resamples, seed,
        ),
    }  # fmt: skip


def _adjust(result: dict[str, Any]) -> None:
    """Adds Holm's p to every DeLong p of the result."""
    tests = [
        entry[part][unit]["against_model"]["delong"]
        for entry in result.values()
        for part in ("internal", "external")
        for unit in UNITS
    ]
    tests = [test for test in tests if test is not None]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p


def _instead(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with the baseline's probability as `probability`, without rows that lack it."""
    rows = table[table[column(name)].notna()]
    return rows.assign(probability=rows[column(name)])


def _arrays(cases: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return cases["osteoporosis"].to_numpy(np.int64), cases["probability"].to_numpy(np.float64)
