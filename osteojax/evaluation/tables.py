"""Tables for people, made from the summary: for the report and the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.markup import escape
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
    """A table for people: text cells, and footnotes that say why a cell or interval is absent."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    interval_notes: tuple[str, ...] = ()


def groups_of(section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, entry) of internal, external and their sites, leaving out groups without cases.

    A part with a single site is one row, named by the site.
    """
    for part in ("internal", "external"):
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
    return Shown("Patients and vertebrae", header, tuple(rows))


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
    names = ("Brier", "ECE", "slope", "intercept")
    rows, missing = [], _Missing()
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
                rows.append((title, name, when, *(_number(values[n], 3) for n in names)))
    header = ("decision about", "group", "probabilities", *names)
    return Shown("Calibration", header, tuple(rows), missing.notes())


def bmd(summary: dict[str, Any]) -> Shown:
    """Agreement with DXA overall, per device and per site, in g/cm^2."""
    rows, missing = [], _Missing()
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
                    *(_estimate(entry, key, 3) for key in ("MAE", "r", "bias")),
                    f"{_number(entry['lower'], 3)} to {_number(entry['upper'], 3)}",
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
    rows, missing = [], _Missing()
    for name, entry in groups_of(summary["position"]):
        missing.entry(name, entry)
        rows.append(
            (
                name,
                str(entry["n"]),
                *(
                    _estimate(entry, k, 3)
                    for k in ("accuracy", "within_one", "mean_absolute_error")
                ),
            )
        )
    header = ("group", "vertebrae", "accuracy", "within one level", "mean error, levels")
    return Shown("Vertebral level", header, tuple(rows), missing.notes(), missing.interval_notes())


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
    """The table for a terminal, `rich.print(terminal(table))`; brackets go to a second line."""
    table = RichTable(
        title=shown.title,
        caption=escape("\n".join(shown.notes)) or None,
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    for number, name in enumerate(shown.header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
    for row in shown.rows:
        # A site called "[red]" is a name, not a colour.
        table.add_row(*(escape(cell.replace(" (", "\n(")) for cell in row))
    return table


def main_tables(summary: dict[str, Any]) -> list[Shown]:
    """What `osteojax evaluate` prints, within 80 columns: diagnosis at the validation threshold,
    BMD, level. Intervals of the main number only; the report has them all."""
    return [
        _narrow(diagnosis(summary, "vertebra", "at_validation_threshold")),
        _narrow(diagnosis(summary, "patient", "at_validation_threshold")),
        _narrow(bmd(summary)),
        _narrow(position(summary)),
    ]


def _narrow(shown: Shown) -> Shown:
    """Short headers, fewer columns, intervals of the first metric only."""
    short = {
        "positive / cases": "pos./n",
        "limits of agreement": "limits",
        "vertebrae": "n",
        "within one level": "within 1",
        "mean error, levels": "mean error",
    }
    dropped, with_interval = {"patients", "AUPRC"}, {"AUROC", "MAE", "accuracy"}
    keep = [i for i, name in enumerate(shown.header) if name not in dropped]
    header = tuple(short.get(shown.header[i], shown.header[i]) for i in keep)
    rows = []
    for row in shown.rows:
        cells = [
            row[i]
            if shown.header[i] in with_interval
            else row[i].split(" (")[0].replace(" / ", "/")
            for i in keep
        ]
        rows.append((cells[0].replace("internal, ", ""), *cells[1:]))
    return Shown(shown.title, header, tuple(rows), shown.notes)


class _Missing:
    """Collects why cells are empty; groups that lack the same for the same reason share a note."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[str]] = {}
        self._intervals: dict[tuple[str, str], list[str]] = {}

    def add(self, group: str, metric: str, why: str) -> None:
        self._values.setdefault((group, why), []).append(metric)

    def entry(self, group: str, entry: dict[str, Any]) -> None:
        for metric, why in entry["notes"].items():
            self.add(group, metric, why)
        for metric, why in entry["interval_notes"].items():
            if metric not in entry["notes"]:
                self._intervals.setdefault((group, why), []).append(metric)

    def notes(self) -> tuple[str, ...]:
        return self._texts(self._values, "no")

    def interval_notes(self) -> tuple[str, ...]:
        return self._texts(self._intervals, "no interval of")

    @staticmethod
    def _texts(found: dict[tuple[str, str], list[str]], what: str) -> tuple[str, ...]:
        groups: dict[str, list[str]] = {}
        for (group, why), names in found.items():
            groups.setdefault(f"{what} {', '.join(names)}: {why}.", []).append(group)
        return tuple(f"{'; '.join(names)}: {text}" for text, names in groups.items())


def _diagnosis_rows(title: str, entries: list[tuple[str, dict[str, Any]]], at: str) -> Shown:
    rows, missing = [], _Missing()
    for name, entry in entries:
        values = entry[at]
        missing.entry(name, values)
        cells = [_estimate(values, metric, 3) for metric in METRICS]
        patients = str(entry["patients"])
        rows.append((name, patients, _share(entry["positives"], entry["n"]), *cells))
    header = ("group", "patients", "positive / cases", *METRICS)
    return Shown(title, header, tuple(rows), missing.notes(), missing.interval_notes())


def _threshold(summary: dict[str, Any], unit: str, at: str) -> str:
    value = 0.5 if at == "at_0.5" else summary["fitted"][unit]["threshold"]
    if value is None:
        return "could not be fitted"
    return f"{value:.3f} (fitted on validation)" if at != "at_0.5" else "0.5"


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}".replace("-", "−")


def _estimate(values: dict[str, Any], metric: str, digits: int) -> str:
    """ "0.873 (0.824–0.911)", without the bracket where there is no interval."""
    text = _number(values[metric], digits)
    interval = values["intervals"].get(metric)
    if values[metric] is None or interval is None:
        return text
    low, high = (_number(bound, digits) for bound in interval)
    return f"{text} ({low}{' to ' if interval[0] < 0 else ABSENT}{high})"


def _share(part: int, whole: int) -> str:
    return f"{part} / {whole}" + (f" ({100 * part / whole:.0f}%)" if whole else "")
