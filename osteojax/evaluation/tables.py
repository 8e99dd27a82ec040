"""Tables made from the summary: for the report and the terminal (text), and for CSV (numbers)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.table import Table as RichTable

METRICS = ("AUROC", "AUPRC", "ACC", "SEN", "SPE", "PPV", "NPV", "F1")
THRESHOLDS = {"at_validation_threshold": "threshold fitted on validation", "at_0.5": "0.5"}
UNIT_TITLES = {
    "vertebra": "Vertebrae",
    "patient": "Patients, positive if any vertebra is",
    "patient_mean": "Patients, mean probability of their vertebrae",
}
ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A table for people: text cells, and footnotes that say why a cell is empty."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def groups_of(section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, entry) of internal, each site and external, leaving out groups without cases."""
    single = len(section["sites"]) == 1
    for name, entry in (
        ("all internal", section["internal"]),
        *((f"site {site}", entry) for site, entry in section["sites"].items() if not single),
        ("all external", section["external"]),
    ):
        if entry["n"]:
            yield name, entry


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
                _share(part["positive_vertebrae"], part["labelled_vertebrae"]),
                _share(part["positive_patients"], part["labelled_patients"]),
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
            _share(fitted["vertebra"]["positives"], fitted["vertebra"]["n"]),
            _share(fitted["patient"]["positives"], fitted["patient"]["n"]),
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
    return Shown("Data", header, tuple(rows))


def thresholds(summary: dict[str, Any]) -> Shown:
    """What was fitted on validation."""
    rows, notes = [], []
    for unit, title in UNIT_TITLES.items():
        fitted = summary["fitted"][unit]
        rows.append(
            (
                title,
                str(fitted["n"]),
                str(fitted["positives"]),
                _number(fitted["threshold"], 3),
                _number(fitted["temperature"], 3),
            )
        )
        notes += [f"{title}: no {what}: {why}." for what, why in fitted["notes"].items()]
    header = ("decision about", "validation cases", "positive", "threshold", "temperature")
    return Shown("Fitted on validation", header, tuple(rows), tuple(notes))


def diagnosis(summary: dict[str, Any], unit: str, at: str) -> Shown:
    """The diagnosis of one unit ("vertebra", ...) at one of `THRESHOLDS`, per site and overall."""
    title = f"{UNIT_TITLES[unit]}; threshold {_threshold(summary, unit, at)}"
    return _diagnosis_rows(title, list(groups_of(summary["diagnosis"][unit])), at)


def subgroups(summary: dict[str, Any], unit: str) -> Shown:
    """The diagnosis by sex, age, device and level at the validation threshold, internal rows."""
    entries = [
        (f"{group}: {value}", entry)
        for group, values in summary["subgroups"][unit].items()
        for value, entry in values.items()
    ]
    at = "at_validation_threshold"
    title = f"{UNIT_TITLES[unit]}, internal subgroups; threshold {_threshold(summary, unit, at)}"
    return _diagnosis_rows(title, entries, at)


def calibration(summary: dict[str, Any]) -> Shown:
    """Brier, ECE, slope and intercept before and after temperature scaling."""
    names = ("brier", "ECE", "slope", "intercept")
    rows, missing = [], _Missing()
    for unit, title in UNIT_TITLES.items():
        for name, entry in groups_of(summary["diagnosis"][unit]):
            if not name.startswith("all"):
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
                rows.append((title, name, when, *(_number(values[n], 3) for n in names)))
    header = ("decision about", "group", "probabilities", *names)
    return Shown("Calibration", header, tuple(rows), missing.notes())


def bmd(summary: dict[str, Any]) -> Shown:
    """Agreement with DXA overall, per device and per site, in g/cm^2."""
    rows, missing = [], _Missing()
    for part in ("internal", "external"):
        section = summary["bmd"][part]
        entries = [(f"all {part}", section["overall"])]
        entries += [(f"{part}, device {name}", e) for name, e in section["devices"].items()]
        entries += [(f"{part}, site {name}", e) for name, e in section["sites"].items()]
        for name, entry in entries:
            if not entry["n"]:
                continue
            missing.entry(name, entry)
            rows.append(
                (
                    name,
                    str(entry["patients"]),
                    str(entry["n"]),
                    *(_estimate(entry, key, 3) for key in ("MAE", "r", "bias")),
                    f"{_number(entry['lower'], 3)} to {_number(entry['upper'], 3)}",
                )
            )
    header = ("group", "patients", "vertebrae", "MAE", "r", "bias", "limits of agreement")
    return Shown("Bone mineral density, g/cm²", header, tuple(rows), missing.notes())


def position(summary: dict[str, Any]) -> Shown:
    """Level accuracy and error of every vertebra, labelled or not."""
    rows, missing = [], _Missing()
    for name, entry in groups_of(summary["position"]):
        missing.entry(name, entry)
        rows.append(
            (
                name,
                str(entry["n"]),
                *(_estimate(entry, k, 3) for k in ("accuracy", "within_one", "mean_absolute_error")),
            )
        )
    header = ("group", "vertebrae", "accuracy", "within one level", "mean error, levels")
    return Shown("Vertebral level", header, tuple(rows), missing.notes())


def gates(summary: dict[str, Any]) -> Shown:
    """Mean expert weights by DXA device."""
    usage = summary["gates"]
    rows = tuple(
        (name, str(e["n"]), *(_number(v, 3) for v in e["mean"]), _number(e["entropy"], 3))
        for name, e in usage["devices"].items()
    )
    experts = tuple(f"expert {i}" for i in range(usage["experts"]))
    header = ("DXA device", "vertebrae", *experts, "gate entropy, nats")
    notes = tuple(f"{why}." for why in usage["notes"].values())
    return Shown("Mean expert weight by DXA device", header, rows, notes)


def terminal(shown: Shown) -> RichTable:
    """The table for the terminal: `rich.print(terminal(diagnosis(...)))`."""
    table = RichTable(
        title=shown.title, caption="\n".join(shown.notes) or None, caption_justify="left"
    )
    for number, name in enumerate(shown.header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in shown.rows:
        table.add_row(*(cell.replace(" (", "\n(") for cell in row))
    return table


def main_tables(summary: dict[str, Any]) -> list[Shown]:
    """What `osteojax evaluate` prints: vertebrae and patients at the validation threshold, BMD."""
    at = "at_validation_threshold"
    return [diagnosis(summary, "vertebra", at), diagnosis(summary, "patient", at), bmd(summary)]


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


class _Missing:
    """Collects why cells are empty; one footnote per reason and group."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, group: str, metric: str, why: str) -> None:
        self._found.setdefault((group, why), []).append(metric)

    def entry(self, group: str, entry: dict[str, Any]) -> None:
        for metric, why in entry["notes"].items():
            self.add(group, metric, why)
        for metric, why in entry["interval_notes"].items():
            if metric not in entry["notes"]:
                self.add(group, f"interval of {metric}", why)

    def notes(self) -> tuple[str, ...]:
        texts = []
        for (group, why), names in self._found.items():
            if all(name.startswith("interval of ") for name in names):
                plain = [name.removeprefix("interval of ") for name in names]
                texts.append(f"{group}: no interval of {', '.join(plain)}: {why}.")
            else:
                texts.append(f"{group}: no {', '.join(names)}: {why}.")
        return tuple(texts)


def _diagnosis_rows(title: str, entries: list[tuple[str, dict[str, Any]]], at: str) -> Shown:
    rows, missing = [], _Missing()
    for name, entry in entries:
        values = entry[at]
        missing.entry(name, values)
        cells = [_estimate(values, metric, 3) for metric in METRICS]
        patients = str(entry["patients"])
        rows.append((name, patients, _share(entry["positives"], entry["n"]), *cells))
    header = ("group", "patients", "positive / cases", *METRICS)
    return Shown(title, header, tuple(rows), missing.notes())


def _threshold(summary: dict[str, Any], unit: str, at: str) -> str:
    value = 0.5 if at == "at_0.5" else summary["fitted"][unit]["threshold"]
    if value is None:
        return "could not be fitted"
    return f"{value:.3f} (fitted on validation)" if at != "at_0.5" else "0.5"


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}".replace("-", "−")


def _estimate(values: dict[str, Any], metric: str, digits: int) -> str:
    """ "0.873 (0.82 to 0.91)", without the bracket where there is no interval."""
    text = _number(values[metric], digits)
    interval = values["intervals"].get(metric)
    if values[metric] is None or interval is None:
        return text
    low, high = (_number(bound, digits - 1 if digits > 2 else digits) for bound in interval)
    return f"{text} ({low} to {high})"


def _share(part: int, whole: int) -> str:
    return f"{part} / {whole}" + (f" ({100 * part / whole:.0f}%)" if whole else "")


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
