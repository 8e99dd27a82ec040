"""Tables for programs, made from the summary: full precision, one row per group."""

from __future__ import annotations

from typing import Any

import pandas as pd

from osteojax.evaluation.tables import METRICS, THRESHOLDS, groups_of


def csv_tables(summary: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """File name -> numbers in full precision: one row per group, NaN (empty) where undefined."""
    diagnosis_rows, subgroup_rows = [], []
    for unit, section in summary["diagnosis"].items():
        for name, entry in groups_of(section):
            for at in THRESHOLDS:
                diagnosis_rows.append({"unit": unit, "group": name, **_flat(entry, at)})
    for unit, groups in summary["subgroups"].items():
        for group, values in groups.items():
            for value, entry in values.items():
                flat = _flat(entry, "at_validation_threshold")
                subgroup_rows.append({"unit": unit, "group": group, "value": value, **flat})
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
            **{f"expert_{i}": value for i, value in enumerate(e["mean"])},
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
        "diagnosis.csv": pd.DataFrame(diagnosis_rows),
        "subgroups.csv": pd.DataFrame(subgroup_rows),
        "bmd.csv": pd.DataFrame(bmd_rows),
        "position.csv": pd.DataFrame(position_rows),
        "gates.csv": pd.DataFrame(gate_rows),
    }


def _flat(entry: dict[str, Any], at: str) -> dict[str, Any]:
    values = entry[at]
    counts = {key: values[key] for key in ("n", "positives", "TP", "FP", "TN", "FN")}
    flat = {"patients": entry["patients"], **counts, "threshold_kind": at.removeprefix("at_")}
    return {**flat, "threshold": values["threshold"], **_with_intervals(values, METRICS)}


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
    flat["notes"] = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    return flat
