"""Tables for programs, made from the summary: full precision, one row per group."""

from __future__ import annotations

from typing import Any

import pandas as pd

from osteojax.evaluation.report.tables import THRESHOLDS, UNIT_TITLES, groups_of
from osteojax.evaluation.statistics.metrics import DIAGNOSIS


def csv_tables(summary: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """File name -> numbers in full precision: one row per group, NaN (empty) where undefined."""
    diagnosis_rows, subgroup_rows = [], []
    for unit, section in summary["diagnosis"].items():
        for name, entry in groups_of(section):
            for at in THRESHOLDS:
                low, high = entry["AUROC_delong"] or (None, None)
                delong = {"AUROC_delong_low": low, "AUROC_delong_high": high}
                names = {"unit": unit, "group": name}
                diagnosis_rows.append({**names, **_flat(entry, at), **delong})
    for unit, parts in summary["subgroups"].items():
        for part, found in parts.items():
            for group, values in found["groups"].items():
                for value, entry in values.items():
                    names = {"unit": unit, "part": part, "group": group, "value": value}
                    subgroup_rows.append({**names, **_flat(entry, "at_validation_threshold")})
    bmd_rows = [
        {"group": part, "by": by, "value": value, **_flat_entry(entry)}
        for part in ("internal", "external")
        for by, values in (
            ("all", {"": summary["bmd"][part]["overall"]}),
            ("device", summary["bmd"][part]["devices"]),
            ("site", summary["bmd"][part]["sites"]),
        )
        for value, entry in values.items()
    ]
    gate_rows = [
        {
            "device": name,
            "n": e["n"],
            **{f"expert_{i}": value for i, value in enumerate(e["mean"], start=1)},
            "entropy_nats": e["entropy"],
        }
        for name, e in summary["gates"]["devices"].items()
    ]
    position_rows = [
        {"group": name, **_flat_entry(entry)} for name, entry in groups_of(summary["position"])
    ]
    return {
        "cohort.csv": pd.DataFrame(summary["cohort"]).assign(
            devices=[";".join(part["devices"]) for part in summary["cohort"]]
        ),
        "fitted.csv": pd.DataFrame(_fitted_rows(summary["fitted"])),
        "diagnosis.csv": pd.DataFrame(diagnosis_rows),
        "calibration.csv": pd.DataFrame(_calibration_rows(summary["diagnosis"])),
        "subgroups.csv": pd.DataFrame(subgroup_rows),
        "bmd.csv": pd.DataFrame(bmd_rows),
        "position.csv": pd.DataFrame(position_rows),
        "gates.csv": pd.DataFrame(gate_rows),
        "baselines.csv": pd.DataFrame(_baseline_rows(summary)),
        "unlike_training.csv": pd.DataFrame(
            [
                {"group": name, **{key: e[key] for key in ("n", "unusual", "median_distance")}}
                for name, e in groups_of(summary["unlike_training"])
            ],
            columns=["group", "n", "unusual", "median_distance"],
        ),
        **{
            f"net_benefit_{unit}.csv": _net_benefit(e) for unit, e in summary["net_benefit"].items()
        },
        "left_out.csv": pd.DataFrame(
            summary["left_out"], columns=["split", "scan_id", "level", "reason"]
        ),
    }


def _fitted_rows(fitted: dict[str, Any]) -> list[dict[str, Any]]:
    """Values fitted on validation; each quantile of the BMD residual is a row."""
    names = ("n", "patients", "positives", "threshold", "temperature")
    rows: list[dict[str, Any]] = [
        {"what": unit, **{name: entry[name] for name in names}, "notes": _reasons(entry["notes"])}
        for unit, entry in fitted.items()
        if unit in UNIT_TITLES
    ]
    residual = fitted["bmd_residual_g_cm2"]
    for quantile, value in (residual["quantiles"] or {}).items():
        what = f"measured - predicted BMD, quantile {quantile}"
        rows.append({"what": what, "n": residual["n"], "g_cm2": value})
    return rows


def _calibration_rows(diagnosis: dict[str, Any]) -> list[dict[str, Any]]:
    """Calibration per unit and group, before and after temperature scaling."""
    names = ("n", "Brier", "ECE", "slope", "intercept")
    rows = []
    for unit, section in diagnosis.items():
        for group, entry in groups_of(section):
            for key, when in (
                ("calibration", "as predicted"),
                ("calibration_after_temperature", "after temperature"),
            ):
                values = entry[key] or {"notes": {"all": entry["notes"].get(key, "")}}
                numbers = {name: values.get(name) for name in names}
                where = {"unit": unit, "group": group, "probabilities": when}
                rows.append({**where, **numbers, "notes": _reasons(values["notes"])})
    return rows


def _reasons(notes: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in notes.items())


def _baseline_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per baseline, part and unit: its diagnosis, and its comparison with the model."""
    rows = []
    for name, baseline in summary["baselines"].items():
        for part in ("internal", "external"):
            for unit, entry in baseline[part].items():
                against = entry["against_model"]
                tests: dict[str, Any] = {}
                for metric, found in against["difference"].items():
                    low, high = found["interval"] or (None, None)
                    key = f"model_minus_baseline_{metric}"
                    tests |= {key: found["difference"], f"{key}_low": low, f"{key}_high": high}
                    tests[f"{key}_p"] = found["p"]
                for test in ("delong", "mcnemar"):
                    values = against[test] or {}
                    tests |= {f"{test}_p": values.get("p")}
                tests["delong_p_holm"] = (against["delong"] or {}).get("p_holm")
                names = {"baseline": name, "part": part, "unit": unit, "missing": entry["missing"]}
                rows.append({**names, **_flat(entry, "at_validation_threshold"), **tests})
    return rows


def _net_benefit(entry: dict[str, Any]) -> pd.DataFrame:
    if entry["rows"]:
        return pd.DataFrame(entry["rows"])
    return pd.DataFrame({"threshold": [None], "notes": list(entry["notes"].values())})


def _flat(entry: dict[str, Any], at: str) -> dict[str, Any]:
    values = entry[at]
    counts = {key: values[key] for key in ("n", "positives", "TP", "FP", "TN", "FN")}
    flat = {"patients": entry["patients"], **counts, "threshold_kind": at.removeprefix("at_")}
    return {**flat, "threshold": values["threshold"], **_with_intervals(values, DIAGNOSIS)}


def _flat_entry(entry: dict[str, Any]) -> dict[str, Any]:
    skip = {"notes", "interval_notes", "intervals", "patients", "n"}
    names = tuple(name for name in entry if name not in skip)
    return {
        "patients": entry["patients"],
        "n": entry["n"],
        **_with_intervals(entry, names),
    }


def _with_intervals(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in names:
        flat[name] = values[name]
        if name in values["intervals"]:
            low, high = values["intervals"][name] or (None, None)
            flat |= {f"{name}_low": low, f"{name}_high": high}
    reasons = {**values["interval_notes"], **values["notes"]}
    flat["notes"] = _reasons(reasons)
    return flat
