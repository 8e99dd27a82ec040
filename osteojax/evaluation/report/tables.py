"""Tables for readers, made from the summary: the report shows all of them, `terminal` some."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from osteojax.evaluation.report.cells import (
    ABSENT,
    Missing,
    Shown,
    estimate,
    interval,
    number,
    p_value,
    share,
)
from osteojax.evaluation.statistics.metrics import DIAGNOSIS

THRESHOLDS = {"at_validation_threshold": "threshold fitted on validation", "at_0.5": "0.5"}
UNIT_TITLES = {
    "vertebra": "Vertebrae",
    "patient": "Patients, positive if any vertebra is",
    "patient_mean": "Patients, mean probability of their vertebrae",
}
UNIT_PLURALS = {"vertebra": "vertebrae", "patient": "patients"}
SHOWN_RISKS = (10, 20, 30, 40, 50, 60, 70)
"""Threshold probabilities, in per cent, of the net benefit table."""


def groups_of(
    section: dict[str, Any], parts: tuple[str, ...] = ("internal", "external")
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, entry) of internal, external and their sites, without groups that have no case.

    A part with a single site is one row, named by the site.
    """
    for part in parts:
        sites = section["sites"][part]
        if section[part]["n"] == 0:
            continue
        if len(sites) == 1:
            yield f"{part}, site {next(iter(sites))}", section[part]
            continue
        yield f"all {part}", section[part]
        for site, entry in sites.items():
            if entry["n"]:
                yield f"{part}, site {site}", entry


def cohort(summary: dict[str, Any], fitted_split: str = "valid") -> Shown:
    """Patients, vertebrae and positives per split and site."""
    rows = []
    for part in summary["cohort"]:
        rows.append(
            (
                f"{part['split']}, site {part['site']}",
                ", ".join(part["devices"]) or ABSENT,
                str(part["patients"]),
                str(part["vertebrae"]),
                share(part["positive_vertebrae"], part["labelled_vertebrae"]),
                share(part["positive_patients"], part["labelled_patients"]),
                str(part["measured_vertebrae"]),
            )
        )
    fitted = summary["fitted"]
    rows.append(
        (
            f"{fitted_split}, all sites (fitting only)",
            ABSENT,
            f"{fitted['patient']['patients']} labelled",
            f"{fitted['vertebra']['n']} labelled",
            share(fitted["vertebra"]["positives"], fitted["vertebra"]["n"]),
            share(fitted["patient"]["positives"], fitted["patient"]["n"]),
            str(fitted["bmd_residual_g_cm2"]["n"]),
        )
    )
    header = (
        "split and site",
        "DXA device",
        "patients",
        "vertebrae",
        "positive / labelled vertebrae",
        "positive / labelled patients",
        "vertebrae with BMD",
    )
    return Shown("Patients and vertebrae", header, tuple(rows))


def thresholds(summary: dict[str, Any]) -> Shown:
    """Thresholds and temperatures that were fitted on validation."""
    rows, notes = [], []
    for unit, title in UNIT_TITLES.items():
        fitted = summary["fitted"][unit]
        rows.append(
            (
                title,
                str(fitted["n"]),
                str(fitted["positives"]),
                number(fitted["threshold"], 3),
                number(fitted["temperature"], 3),
            )
        )
        notes += [f"{title}: no {what}: {why}." for what, why in fitted["notes"].items()]
    header = ("decision about", "validation cases", "positive", "threshold", "temperature")
    return Shown("Fitted on validation", header, tuple(rows), tuple(notes))


def diagnosis(summary: dict[str, Any], unit: str, at: str) -> Shown:
    """The diagnosis of one unit ("vertebra", ...) at one of `THRESHOLDS`, per site and overall, and
    that of the baselines at their own validation thresholds."""
    title = f"{UNIT_TITLES[unit]}; threshold {_threshold(summary, unit, at)}"
    entries: list[tuple[str, dict[str, Any]]] = []
    for part in ("internal", "external"):
        entries += groups_of(summary["diagnosis"][unit], (part,))
        if at == "at_validation_threshold":
            entries += [
                (f"{part}, {baseline['title']}", baseline[part][unit])
                for baseline in summary["baselines"].values()
                if unit in baseline[part] and baseline[part][unit]["n"]
            ]
    return _diagnosis_rows(title, entries, at)


def against_baselines(summary: dict[str, Any]) -> Shown:
    """AUROC of the model and of each baseline on the same cases, with tests of the difference."""
    rows, missing = [], Missing()
    for baseline in summary["baselines"].values():
        for part in ("internal", "external"):
            for unit, found in baseline[part].items():
                if not found["n"]:
                    continue
                name = f"{baseline['title']}, {part} {UNIT_PLURALS[unit]}"
                rows.append(_comparison_row(name, found, missing))
    header = (
        "model against", "cases", "AUROC, model", "AUROC, baseline", "difference",
        "p, DeLong", "p, Holm", "p, McNemar",
    )  # fmt: skip
    return Shown("The model against simple baselines", header, tuple(rows), missing.notes())


def _comparison_row(name: str, found: dict[str, Any], missing: Missing) -> tuple[str, ...]:
    against = found["against_model"]
    area, delong, mcnemar = (
        against["difference"]["AUROC"], against["delong"] or {}, against["mcnemar"] or {},
    )  # fmt: skip
    for test, why in against["notes"].items():
        missing.add(name, {"delong": "p of DeLong", "mcnemar": "p of McNemar"}[test], why)
    if "note" in area:
        missing.add(name, "interval of the difference", area["note"])
    if found["missing"]:
        why = f"{found['missing']} labelled vertebrae lack what the baseline needs and are left out"
        missing.add(name, "comparison of all cases", why)
    with_interval = {**area, "intervals": {"difference": area["interval"]}}
    return (
        name,
        str(found["n"]),
        number(area["first"], 3),
        number(area["second"], 3),
        estimate(with_interval, "difference", 3),
        p_value(delong.get("p")),
        p_value(delong.get("p_holm")),
        p_value(mcnemar.get("p")),
    )


def auroc(summary: dict[str, Any]) -> Shown:
    """AUROC with both of its intervals, per unit and group."""
    rows, missing = [], Missing()
    for unit, title in UNIT_TITLES.items():
        for name, entry in groups_of(summary["diagnosis"][unit]):
            values, delong = entry["at_0.5"], entry["AUROC_delong"]
            label = f"{title}, {name}"
            if "AUROC" in values["notes"]:
                missing.add(label, "AUROC", values["notes"]["AUROC"])
            elif "AUROC_delong" in entry["notes"]:
                missing.add(label, "interval of DeLong", entry["notes"]["AUROC_delong"])
            bootstrap = values["intervals"]["AUROC"]
            rows.append(
                (title, name, number(values["AUROC"], 3), interval(delong), interval(bootstrap))
            )
    header = ("decision about", "group", "AUROC", "95%, DeLong", "95%, bootstrap")
    return Shown("Area under the ROC curve", header, tuple(rows), missing.notes())


def net_benefit(summary: dict[str, Any]) -> Shown:
    """Net benefit at some threshold probabilities, internal; the CSV files have them all."""
    rows, missing = [], Missing()
    for unit, found in summary["net_benefit"].items():
        for why in found["notes"].values():
            missing.add(UNIT_TITLES[unit], "net benefit", why)
        for row in found["rows"]:
            if round(100 * row["threshold"]) in SHOWN_RISKS:
                values = [number(row[name], 3) for name in ("model", "all", "none")]
                rows.append((UNIT_TITLES[unit], f"{row['threshold']:.2f}", *values))
    header = ("decision about", "risk", "act on the model", "act on all", "act on none")
    return Shown("Net benefit per case, internal", header, tuple(rows), missing.notes())


def unlike_training(summary: dict[str, Any]) -> Shown:
    """Number of vertebrae that are far from the training data, per site."""
    rows, missing = [], Missing()
    section = summary["unlike_training"]
    for part in ("internal", "external"):
        for why in section[part]["notes"].values():
            missing.add(part, "distance", why)
    for name, entry in groups_of(section):
        distance = number(entry["median_distance"], 2)
        rows.append((name, str(entry["n"]), share(entry["unusual"], entry["n"]), distance))
    header = ("group", "vertebrae", "farther than 99% of validation", "median distance")
    title = "Distance from the training vertebrae, in the encoder's embedding"
    return Shown(title, header, tuple(rows), missing.notes())


def subgroups(summary: dict[str, Any], unit: str) -> Shown:
    """The diagnosis by sex, age, DXA scanner, site, slice thickness and level at the validation
    threshold; for external sites by scanner and slice thickness only."""
    found = summary["subgroups"][unit]
    entries = [
        (f"{grouping}: {name}", entry)
        for grouping, values in found["internal"]["groups"].items()
        for name, entry in values.items()
    ]
    entries += [
        (f"external, {grouping}: {name}", found["external"]["groups"][grouping][name])
        for grouping in ("device", "slice thickness")
        for name in found["external"]["groups"].get(grouping, {})
    ]
    at = "at_validation_threshold"
    title = f"{UNIT_TITLES[unit]}, subgroups; threshold {_threshold(summary, unit, at)}"
    shown = _diagnosis_rows(title, entries, at)
    notes = [f"No subgroups by {name}: {why}." for name, why in found["internal"]["notes"].items()]
    return dataclasses.replace(shown, notes=(*shown.notes, *notes))


def calibration(summary: dict[str, Any]) -> Shown:
    """Brier, ECE, slope and intercept before and after temperature scaling."""
    names = ("Brier", "ECE", "slope", "intercept")
    rows, missing = [], Missing()
    for unit, title in UNIT_TITLES.items():
        for name in ("internal", "external"):
            entry = summary["diagnosis"][unit][name]
            if entry["n"] == 0:
                continue
            for key, when in (
                ("calibration", "as predicted"),
                ("calibration_after_temperature", "after temperature"),
            ):
                values = entry[key]
                case = f"{title}, {name}, {when}"
                if values is None:
                    missing.add(case, "all", entry["notes"][key])
                    rows.append((title, name, when, *[ABSENT] * len(names)))
                    continue
                for metric, why in values["notes"].items():
                    missing.add(case, metric, why)
                rows.append((title, name, when, *(number(values[n], 3) for n in names)))
    header = ("decision about", "group", "probabilities", *names)
    return Shown("Calibration", header, tuple(rows), missing.notes())


def bmd(summary: dict[str, Any]) -> Shown:
    """Agreement with DXA overall, per device and per site, in g/cm^2."""
    rows, missing = [], Missing()
    for part in ("internal", "external"):
        section = summary["bmd"][part]
        entries = [(f"all {part}", section["overall"])]
        for by in ("device", "site"):
            values = section[f"{by}s"]
            if len(values) > 1:  # a single one would repeat the row above
                entries += [(f"{part}, {by} {name}", entry) for name, entry in values.items()]
            elif values:
                entries[0] = (f"{entries[0][0]}, {by} {next(iter(values))}", section["overall"])
        for name, entry in entries:
            if not entry["n"]:
                continue
            missing.entry(name, entry)
            rows.append(
                (
                    name,
                    str(entry["patients"]),
                    str(entry["n"]),
                    *(estimate(entry, key, 3) for key in ("MAE", "r", "bias")),
                    f"{number(entry['lower'], 3)} to {number(entry['upper'], 3)}",
                )
            )
    header = ("group", "patients", "vertebrae", "MAE", "r", "bias", "limits of agreement")
    return Shown(
        "Bone mineral density, g/cm²",
        header,
        tuple(rows),
        missing.notes(),
        missing.interval_notes(),
    )


def position(summary: dict[str, Any]) -> Shown:
    """Level accuracy and error of every vertebra, labelled or not."""
    rows, missing = [], Missing()
    for name, entry in groups_of(summary["position"]):
        missing.entry(name, entry)
        rows.append(
            (
                name,
                str(entry["n"]),
                *(estimate(entry, k, 3) for k in ("accuracy", "within_one", "mean_absolute_error")),
            )
        )
    header = ("group", "vertebrae", "accuracy", "within one level", "mean error, levels")
    return Shown("Vertebral level", header, tuple(rows), missing.notes(), missing.interval_notes())


def gates(summary: dict[str, Any]) -> Shown:
    """Mean expert weights by DXA scanner."""
    usage = summary["gates"]
    rows = tuple(
        (name, str(e["n"]), *(number(v, 3) for v in e["mean"]), number(e["entropy"], 3))
        for name, e in usage["devices"].items()
    )
    experts = tuple(f"expert {i + 1}" for i in range(usage["experts"]))
    header = ("DXA device", "vertebrae", *experts, "gate entropy, nats")
    notes = tuple(f"{why}." for why in usage["notes"].values())
    return Shown("Mean expert weight by DXA device", header, rows, notes)


def _diagnosis_rows(title: str, entries: list[tuple[str, dict[str, Any]]], at: str) -> Shown:
    rows, missing = [], Missing()
    for name, entry in entries:
        values = entry[at]
        missing.entry(name, values)
        cells = [estimate(values, metric, 3) for metric in DIAGNOSIS]
        patients = str(entry["patients"])
        rows.append((name, patients, share(entry["positives"], entry["n"]), *cells))
    header = ("group", "patients", "positive / cases", *DIAGNOSIS)
    return Shown(title, header, tuple(rows), missing.notes(), missing.interval_notes())


def _threshold(summary: dict[str, Any], unit: str, at: str) -> str:
    value = 0.5 if at == "at_0.5" else summary["fitted"][unit]["threshold"]
    if value is None:
        return "could not be fitted"
    return f"{value:.3f} (fitted on validation)" if at != "at_0.5" else "0.5"
