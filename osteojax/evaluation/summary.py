"""Computes the content of `metrics.json` from a table of predictions.

There are two steps, so that nothing is tuned on reported data: `fit_on_validation` fits thresholds
and temperatures on the validation split, `summarise` applies them to the test and external splits.
A value that is not defined is None, with its reason under the `notes` beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from osteojax.evaluation import baselines, cautions, subgroups
from osteojax.evaluation.columns import expert_columns
from osteojax.evaluation.patients import cases_of
from osteojax.evaluation.statistics import (
    bootstrap,
    calibration,
    decision_curve,
    delong,
    metrics,
    ood,
)
from osteojax.evaluation.statistics.metrics import Undefined, attempt

UNITS = ("vertebra", "patient", "patient_mean")
"""Units of diagnosis: a vertebra; a patient, positive if any vertebra is (as in the paper); a
patient by the mean probability of the same vertebrae."""

RESIDUAL_QUANTILES = (0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975)


def fit_on_validation(valid_table: pd.DataFrame) -> dict[str, Any]:
    """Fits thresholds (Youden) and temperatures for each of `UNITS`, and BMD residual quantiles.

    Where a temperature does not help held-out patients of validation it is None, and probabilities
    stay as they are (`calibration.helpful_temperature`).

    Args:
      valid_table: checked predictions of the validation split.

    Returns:
      unit -> n, patients, positives, threshold, temperature, notes; and `bmd_residual_g_cm2` ->
      n, quantiles of (measured - predicted), notes.
    """
    fitted: dict[str, Any] = {}
    for unit in UNITS:
        cases = cases_of(valid_table, unit)
        labels, probabilities = _arrays(cases)
        notes: dict[str, str] = {}
        fitted[unit] = {
            "n": len(cases),
            "patients": int(cases["patient_id"].nunique()),
            "positives": int(labels.sum()),
            "threshold": attempt(
                notes, "threshold", metrics.youden_threshold, labels, probabilities
            ),
            "temperature": attempt(
                notes,
                "temperature",
                calibration.helpful_temperature,
                labels,
                probabilities,
                cases["patient_id"].to_numpy(),
            ),
            "notes": notes,
        }
    measured = valid_table[valid_table["bmd_g_cm2"].notna()]
    residual = (measured["bmd_g_cm2"] - measured["bmd_pred_g_cm2"]).to_numpy()
    enough = len(residual) >= 2
    fitted["bmd_residual_g_cm2"] = {
        "n": len(residual),
        "quantiles": {str(q): float(np.quantile(residual, q)) for q in RESIDUAL_QUANTILES}
        if enough
        else None,
        "notes": {} if enough else {"quantiles": f"needs 2 measured, has {len(residual)}"},
    }
    return fitted


def summarise(
    table: pd.DataFrame,
    fitted: dict[str, Any],
    training_devices: Sequence[str] | None = None,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    valid: pd.DataFrame | None = None,
    left_out: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """The content of `metrics.json`, JSON safe (no NaN, no NumPy).

    Args:
      table: checked predictions of the split that is reported, and of the external split.
      fitted: of `fit_on_validation`.
      training_devices: DXA scanners of the training split, to warn of others; None if not known.
      resamples, seed: of the patient bootstrap.
      valid: checked predictions of validation, for thresholds of the baselines; without it there
        are no baselines.
      left_out: of `predictions.set_aside`, to report which rows the numbers do not cover.

    Returns:
      cohort, fitted, diagnosis (unit -> internal | external | sites -> internal | external ->
      site), subgroups (unit -> internal | external -> groups, notes), baselines
      (`baselines.summarise`), net_benefit (unit -> rows, notes), unlike_training, bmd, position,
      gates, left_out, warnings (sentences of `cautions`), bootstrap (settings).
    """
    settings = {"resamples": resamples, "seed": seed}
    internal, external = _groups(table)
    summary: dict[str, Any] = {
        "cohort": cohort(table),
        "fitted": fitted,
        "diagnosis": {
            unit: _by_group(table, functools.partial(diagnosis, unit, fitted[unit], settings))
            for unit in UNITS
        },
        "subgroups": {
            unit: {
                part: _subgroups(rows, unit, fitted[unit], settings)
                for part, rows in (("internal", internal), ("external", external))
            }
            for unit in ("vertebra", "patient")
        },
        "baselines": {} if valid is None else baselines.summarise(table, valid, fitted, **settings),
        "net_benefit": {
            unit: _net_benefit(internal, unit, fitted) for unit in ("vertebra", "patient")
        },
        "unlike_training": _by_group(table, _unlike_training),
        "bmd": {
            "internal": _bmd(internal, settings),
            "external": _bmd(external, settings),
        },
        "position": _by_group(table, functools.partial(_position, settings)),
        "gates": gate_usage(table),
        "bootstrap": {**settings, "confidence": bootstrap.CONFIDENCE, "drawn": "patients"},
    }
    summary["left_out"] = [] if left_out is None else left_out.to_dict("records")
    summary["warnings"] = cautions.warnings(summary, table, training_devices)
    return summary


def cohort(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Per split and site: patients, vertebrae, labelled vertebrae, positives, devices."""
    rows = []
    for (split, site), part in table.groupby(["split", "site"], sort=True):
        known = cases_of(part, "vertebra")
        people = cases_of(part, "patient")
        devices = sorted(set(part["device"]) - {""})
        rows.append(
            {
                "split": str(split),
                "site": str(site),
                "patients": int(part["patient_id"].nunique()),
                "vertebrae": len(part),
                "labelled_patients": len(people),
                "positive_patients": int(people["osteoporosis"].sum()),
                "labelled_vertebrae": len(known),
                "positive_vertebrae": int(known["osteoporosis"].sum()),
                "measured_vertebrae": int(part["bmd_g_cm2"].notna().sum()),
                "devices": devices,
            }
        )
    return rows


def diagnosis(
    unit: str, fitted: dict[str, Any], settings: dict[str, int], rows: pd.DataFrame
) -> dict[str, Any]:
    """Diagnosis of one group: metrics at both thresholds with intervals, DeLong, calibration."""
    cases = cases_of(rows, unit)
    labels, probabilities = _arrays(cases)
    patients = cases["patient_id"].to_numpy()
    notes: dict[str, str] = {}
    result: dict[str, Any] = {
        "patients": int(cases["patient_id"].nunique()),
        "n": len(cases),
        "positives": int(labels.sum()),
        "AUROC_delong": attempt(notes, "AUROC_delong", auroc_interval, cases),
    }
    for name, threshold in (("at_validation_threshold", fitted["threshold"]), ("at_0.5", 0.5)):
        values = metrics.classification(labels, probabilities, threshold)
        intervals, why = bootstrap.classification_intervals(
            labels, probabilities, patients, threshold, **settings
        )
        result[name] = {**values, "intervals": intervals, "interval_notes": why}
    result["calibration"] = calibration.calibration(labels, probabilities)
    temperature = fitted["temperature"]
    result["calibration_after_temperature"] = None
    if temperature is None:
        notes["calibration_after_temperature"] = fitted["notes"]["temperature"]
    else:
        scaled = calibration.apply_temperature(probabilities, temperature)
        result["calibration_after_temperature"] = calibration.calibration(labels, scaled)
    result["notes"] = notes
    return result


def auroc_interval(cases: pd.DataFrame) -> list[float]:
    """DeLong's [low, high] of the AUROC of `cases_of` rows, clustered by patient.

    Raises:
      Undefined: as `delong.auroc_interval`, or too few patients for a normal approximation.
    """
    patients = cases["patient_id"].to_numpy()
    if few := bootstrap.too_few(patients):
        raise Undefined(few)
    return delong.auroc_interval(*_arrays(cases), patients)


def gate_usage(table: pd.DataFrame) -> dict[str, Any]:
    """Mean weight of each expert and mean entropy of the gate by DXA scanner, in nats (equal
    weights have entropy ln(experts))."""
    gates = expert_columns(table)
    if not gates:
        return {"experts": 0, "devices": {}, "notes": {"gates": "the model has no experts"}}
    devices = {}
    for device, part in table.assign(device=subgroups.device_names(table)).groupby(
        "device", sort=True
    ):
        weights = part[gates].to_numpy()
        entropy = -np.sum(weights * np.log(np.maximum(weights, 1e-12)), axis=1)
        devices[str(device)] = {
            "n": len(part),
            "mean": [float(value) for value in weights.mean(axis=0)],
            "entropy": float(entropy.mean()),
        }
    return {"experts": len(gates), "devices": devices, "notes": {}}


def _groups(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    external = table["split"] == "external"
    return table[~external], table[external]


def _by_group(
    table: pd.DataFrame, measure: Callable[[pd.DataFrame], dict[str, Any]]
) -> dict[str, Any]:
    """internal, external, and the sites of each."""
    internal, external = _groups(table)
    result: dict[str, Any] = {"internal": measure(internal), "external": measure(external)}
    result["sites"] = {
        part: {str(site): measure(rows[rows["site"] == site]) for site in sorted(set(rows["site"]))}
        for part, rows in (("internal", internal), ("external", external))
    }
    return result


def _subgroups(
    rows: pd.DataFrame, unit: str, fitted: dict[str, Any], settings: dict[str, int]
) -> dict[str, Any]:
    """The groups (grouping -> subgroup with labels -> diagnosis), and notes on absent groupings."""
    found, notes = subgroups.groupings(rows, unit)
    known = rows["osteoporosis"].notna()
    groups = {
        grouping: {
            str(name): diagnosis(unit, fitted, settings, rows[names == name])
            for name in subgroups.in_order(set(names[known]))
        }
        for grouping, names in found.items()
    }
    return {"groups": groups, "notes": notes}


def _bmd(rows: pd.DataFrame, settings: dict[str, int]) -> dict[str, Any]:
    """overall, by device and by site; vertebrae with a DXA result only."""
    measured = rows[rows["bmd_g_cm2"].notna()]
    measured = measured.assign(device=subgroups.device_names(measured))

    def entry(part: pd.DataFrame) -> dict[str, Any]:
        truth, predicted = part["bmd_g_cm2"].to_numpy(), part["bmd_pred_g_cm2"].to_numpy()
        intervals, why = bootstrap.bmd_intervals(
            truth, predicted, part["patient_id"].to_numpy(), **settings
        )
        return {
            "patients": int(part["patient_id"].nunique()),
            **metrics.bmd_regression(truth, predicted),
            "intervals": intervals,
            "interval_notes": why,
        }

    return {
        "overall": entry(measured),
        "devices": {str(key): entry(part) for key, part in measured.groupby("device", sort=True)},
        "sites": {str(key): entry(part) for key, part in measured.groupby("site", sort=True)},
    }


def net_benefit_table(rows: pd.DataFrame, unit: str, fitted: dict[str, Any]) -> pd.DataFrame:
    """`decision_curve.net_benefit` of calibrated probabilities; `Undefined` for one class."""
    labels, probabilities = _arrays(cases_of(rows, unit))
    metrics.require_both_classes(labels)
    temperature = fitted[unit]["temperature"]
    if temperature is not None:
        probabilities = calibration.apply_temperature(probabilities, temperature)
    return decision_curve.net_benefit(labels, probabilities)


def _net_benefit(rows: pd.DataFrame, unit: str, fitted: dict[str, Any]) -> dict[str, Any]:
    notes: dict[str, str] = {}
    found = attempt(notes, "net_benefit", net_benefit_table, rows, unit, fitted)
    return {"rows": [] if found is None else found.to_dict("records"), "notes": notes}


def _unlike_training(rows: pd.DataFrame) -> dict[str, Any]:
    """Number of vertebrae that are farther from training than 99% of the validation vertebrae."""
    known = rows["ood_percentile"].dropna()
    if known.empty:
        why = "no distances from the training vertebrae were computed"
        return {"n": 0, "unusual": None, "median_distance": None, "notes": {"unusual": why}}
    return {
        "n": len(known),
        "unusual": int((known > ood.UNUSUAL_PERCENTILE).sum()),
        "median_distance": float(rows["ood_distance"].median()),
        "notes": {},
    }


def _position(settings: dict[str, int], rows: pd.DataFrame) -> dict[str, Any]:
    truth, predicted = rows["level_class"].to_numpy(), rows["level_pred"].to_numpy()
    error = np.abs(truth - predicted)
    intervals, why = bootstrap.mean_intervals(
        {"accuracy": error == 0, "within_one": error <= 1, "mean_absolute_error": error},
        rows["patient_id"].to_numpy(),
        **settings,
    )
    return {
        "patients": int(rows["patient_id"].nunique()),
        **metrics.position(truth, predicted),
        "intervals": intervals,
        "interval_notes": why,
    }


def _arrays(cases: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return cases["osteoporosis"].to_numpy(np.int64), cases["probability"].to_numpy(np.float64)
