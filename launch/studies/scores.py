"""Computes the numbers of a study's tables: metrics of finished rows, and contrasts.

A metric is the mean over training seeds; its 95% interval comes from a bootstrap that draws
patients and seeds. Thresholds are Youden's on validation, one per seed and unit. Rows of one cohort
are resampled alike, so that differences are paired (osteojax/evaluation/compare.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from launch.studies.plan import UNITS, Contrast
from osteojax.errors import UserError
from osteojax.evaluation import compare
from osteojax.evaluation.patients import aggregate
from osteojax.evaluation.predictions import labelled
from osteojax.evaluation.statistics import bootstrap, metrics
from osteojax.evaluation.statistics.metrics import Undefined, attempt

SIGNIFICANT = 0.05
KEY = ["scan_id", "level"]


class Answers:
    """A row's predictions by all of its finished seeds.

    Attributes:
      name: of the row.
      seeds: finished seeds.
      fixed: whether the row is not random (a ceiling), so that its one seed stands for all.
      trains_bmd: whether its BMD is valid; otherwise no BMD error is reported.
    """

    def __init__(
        self,
        name: str,
        seeds: Sequence[int],
        tables: Sequence[pd.DataFrame],
        fixed: bool = False,
        trains_bmd: bool = True,
    ) -> None:
        self.name, self.seeds, self.fixed = name, tuple(seeds), fixed
        self.trains_bmd = trains_bmd
        self._tables = [t.sort_values(KEY).reset_index(drop=True) for t in tables]
        for table in self._tables[1:]:
            if not table[KEY].equals(self._tables[0][KEY]):
                raise UserError(f"row {name!r}: the seeds predicted different vertebrae.")
        self._thresholds: dict[str, list[float | None]] = {}

    def groups(self) -> list[str]:
        """internal, its sites, external."""
        table = self._tables[0]
        sites = sorted(set(table.loc[table["split"] == "test", "site"]))
        external = ["external"] if (table["split"] == "external").any() else []
        return ["internal", *sites, *external]

    def cases(self, unit: str, group: str) -> dict[str, Any]:
        """Labelled cases of a group: labels i[N], patients [N], probabilities f[S, N], and
        thresholds f[S], or None where a seed has none."""
        chosen = [_cases(_group(table, group), unit) for table in self._tables]
        cuts = self._cuts(unit)
        return {
            "labels": chosen[0]["osteoporosis"].to_numpy(np.int64),
            "patients": chosen[0]["patient_id"].to_numpy(),
            "probabilities": np.stack([c["probability"].to_numpy(np.float64) for c in chosen]),
            "thresholds": None if None in cuts else np.array(cuts, np.float64),
        }

    def measured(self, group: str) -> dict[str, Any]:
        """Vertebrae with a DXA result: truth f[M], predicted f[S, M] in g/cm^2, patients [M]."""
        tables = [_group(table, group) for table in self._tables]
        tables = [table[table["bmd_g_cm2"].notna()] for table in tables]
        return {
            "truth": tables[0]["bmd_g_cm2"].to_numpy(np.float64),
            "predicted": np.stack([t["bmd_pred_g_cm2"].to_numpy(np.float64) for t in tables]),
            "patients": tables[0]["patient_id"].to_numpy(),
        }

    def _cuts(self, unit: str) -> list[float | None]:
        if unit not in self._thresholds:
            cuts: list[float | None] = []
            for table in self._tables:
                cases = _cases(table[table["split"] == "valid"], unit)
                arrays = (
                    cases["osteoporosis"].to_numpy(np.int64),
                    cases["probability"].to_numpy(np.float64),
                )
                cuts.append(attempt({}, "threshold", metrics.youden_threshold, *arrays))
            self._thresholds[unit] = cuts
        return self._thresholds[unit]


def scores(answers: Answers, resamples: int) -> list[dict[str, Any]]:
    """Every metric of a row: unit, group, metric, estimate, low, high, n, patients, positives,
    note (why a number is missing)."""
    found = []
    for group in answers.groups():
        for unit in UNITS:
            cases = answers.cases(unit, group)
            about = {"unit": unit, "group": group, **_counts(cases)}
            found += score_lines(about, ("AUROC", "AUPRC", "F1", "SEN", "SPE", "PPV", "NPV", "ACC"),
                            cases, compare.resample_diagnosis, resamples)  # fmt: skip
        if not answers.trains_bmd:
            continue
        measured = answers.measured(group)
        about = {
            "unit": "vertebra",
            "group": group,
            "n": len(measured["truth"]),
            "patients": len(set(measured["patients"])),
            "positives": None,
        }
        found += score_lines(about, ("MAE", "bias"), measured, compare.resample_bmd, resamples)
    return found


def score_lines(
    about: dict[str, Any], names: Sequence[str], cases: dict[str, Any], measure: Any, resamples: int
) -> list[dict[str, Any]]:
    estimates, values = measure(**cases, resamples=resamples) if about["n"] else ({}, {})
    few = bootstrap.too_few(cases["patients"])
    lines = []
    for name in names:
        line = {**about, "metric": name, "estimate": estimates.get(name), "low": None, "high": None}
        line["note"] = few
        if line["estimate"] is None:
            line["note"] = "undefined on these cases, or no threshold from validation"
        elif not few:
            try:
                line["low"], line["high"] = bootstrap.percentile_interval(values[name])
            except Undefined as reason:
                line["note"] = str(reason)
        lines.append(line)
    return lines


def contrast_results(
    contrasts: Sequence[Contrast], answers: dict[str, Answers], resamples: int
) -> list[dict[str, Any]]:
    """The contrasts whose rows are finished, with Holm's correction over all of them.

    Each has the contrast's fields, seeds (that both rows have), difference, low, high, p, p_holm
    and verdict (see `verdict`).
    """
    results = []
    for contrast in contrasts:
        if contrast.first not in answers or contrast.second not in answers:
            continue
        if not common_seeds(answers[contrast.first], answers[contrast.second]):
            continue
        entry = _difference(contrast, answers[contrast.first], answers[contrast.second], resamples)
        results.append({**vars(contrast), **entry})
    for entry, p in zip(results, compare.holm([e["p"] for e in results]), strict=True):
        entry["p_holm"] = p
        entry["verdict"] = verdict(entry)
    return results


def _difference(
    contrast: Contrast, first: Answers, second: Answers, resamples: int
) -> dict[str, Any]:
    if contrast.metric == "MAE":
        a, b = first.measured(contrast.group), second.measured(contrast.group)
        a, b = _of_common_seeds(first, second, a, b, "predicted")
        found = compare.compare_bmd(
            a["truth"], a["predicted"], b["predicted"], a["patients"], resamples
        )
    else:
        a = first.cases(contrast.unit, contrast.group)
        b = second.cases(contrast.unit, contrast.group)
        a, b = _of_common_seeds(first, second, a, b, "probabilities")
        found = compare.compare(
            a["labels"], a["probabilities"], b["probabilities"], a["patients"],
            (a["thresholds"], b["thresholds"]), resamples,
        )  # fmt: skip
    unknown = {"difference": None, "interval": None, "p": None, "note": "no validation threshold"}
    entry = found["difference"].get(contrast.metric, unknown)
    return {"seeds": common_seeds(first, second), "n": found["n"], **difference_line(entry)}


def difference_line(entry: dict[str, Any]) -> dict[str, Any]:
    """difference, low, high, p and note, from one metric's entry of `compare`'s differences."""
    low, high = entry["interval"] or (None, None)
    return {
        "difference": entry["difference"],
        "low": low,
        "high": high,
        "p": entry["p"],
        "note": entry.get("note", ""),
    }


def _of_common_seeds(
    first: Answers, second: Answers, a: dict[str, Any], b: dict[str, Any], name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both rows, restricted to the seeds that both have."""
    for key in ("labels", "truth", "patients"):
        if key in a and not np.array_equal(a[key], b[key]):
            raise UserError(f"rows {first.name!r} and {second.name!r} predict different cases.")
    cut = []
    for answers, values in ((first, a), (second, b)):
        common = common_seeds(first, second)
        places = [0 if answers.fixed else answers.seeds.index(seed) for seed in common]
        values = {**values, name: values[name][places]}
        if values.get("thresholds") is not None:
            values["thresholds"] = values["thresholds"][places]
        cut.append(values)
    return cut[0], cut[1]


class Seeded(Protocol):
    """Predictions of a row.

    Attributes:
      seeds: finished seeds.
      fixed: whether the row is not random, so that its one seed stands for all.
    """

    @property
    def seeds(self) -> tuple[int, ...]: ...

    @property
    def fixed(self) -> bool: ...


def common_seeds(first: Seeded, second: Seeded) -> list[int]:
    """The seeds that two rows have in common."""
    if first.fixed or second.fixed:
        return list((second if first.fixed else first).seeds)
    return [seed for seed in first.seeds if seed in second.seeds]


def verdict(entry: dict[str, Any]) -> str:
    """The verdict on a contrast, in words.

    "inconclusive": the interval exceeds the smallest difference that matters on both sides. "no
    difference that matters": the interval lies within that difference. "as expected", "against
    expectation": the difference is significant after Holm's correction, with the expected or the
    opposite sign. "not shown": none of these. If no difference was expected, an interval within it
    is "as expected".
    """
    low, high, matters = entry["low"], entry["high"], entry["matters"]
    if low is None or entry["p_holm"] is None:
        return f"not computed: {entry['note']}"
    if low < -matters and high > matters:
        return "inconclusive"
    if -matters <= low and high <= matters:
        small = "no difference that matters"
        return f"as expected ({small})" if entry["expected"] == 0 else small
    if entry["p_holm"] < SIGNIFICANT:
        same = np.sign(entry["difference"]) == entry["expected"]
        return "as expected" if same else "against expectation"
    return "not shown"


def device_swap(
    told: Sequence[pd.DataFrame], truth_of: Any, resamples: int
) -> list[dict[str, Any]]:
    """Test of the experts: whether predicted BMD changes with the DXA scanner as the truth does.

    Args:
      told: told.csv of each seed: every test and external vertebra with every scanner.
      truth_of: (table, scanner of every row) -> true BMD on that scanner, f64[N].

    Returns:
      for every pair of scanners (own -> told): n, patients, true_change and predicted_change (mean,
      g/cm^2) with the latter's interval, error (mean |predicted - true change|), and
      error_of_no_change for comparison.
    """
    tables = [t.sort_values([*KEY, "told"]).reset_index(drop=True) for t in told]
    first = tables[0]
    own_rows = first["told"] == first["device"]
    own_truth = dict(zip(_places(first[own_rows]), truth_of(first[own_rows]), strict=True))
    predicted = np.stack([_change(table) for table in tables])
    true_change = truth_of(first) - np.array([own_truth[p] for p in _places(first)])
    found = []
    for (own, other), part in first.groupby(["device", "told"], sort=True):
        places = part.index.to_numpy()
        places = places[np.isfinite(true_change[places])]
        if own == other or len(places) == 0:
            continue
        true, change = true_change[places], predicted[:, places]
        line: dict[str, Any] = {
            "from": own,
            "to": other,
            "n": len(places),
            "patients": int(first["patient_id"].iloc[places].nunique()),
            "true_change": float(true.mean()),
            "predicted_change": float(change.mean()),
            "error": float(np.abs(change - true).mean()),
            "error_of_no_change": float(np.abs(true).mean()),
        }
        intervals, notes = bootstrap.mean_intervals(
            {"predicted_change": change.mean(axis=0)},
            first["patient_id"].to_numpy()[places],
            resamples,
        )
        line["low"], line["high"] = intervals["predicted_change"] or (None, None)
        found.append({**line, "note": notes.get("predicted_change", "")})
    return found


def _change(told: pd.DataFrame) -> np.ndarray:
    """f64[N]: predicted BMD minus the prediction for the same vertebra with its own scanner."""
    own = told[told["told"] == told["device"]]
    base = dict(zip(_places(own), own["bmd_pred_g_cm2"], strict=True))
    return told["bmd_pred_g_cm2"].to_numpy() - np.array([base[p] for p in _places(told)])


def _places(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["scan_id"], table["level"], strict=True))


def _group(table: pd.DataFrame, group: str) -> pd.DataFrame:
    if group == "external":
        return table[table["split"] == "external"]
    internal = table[table["split"] == "test"]
    return internal if group == "internal" else internal[internal["site"] == group]


def _cases(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    return labelled(table) if unit == "vertebra" else aggregate(table, "any")


def _counts(cases: dict[str, Any]) -> dict[str, int]:
    labels = cases["labels"]
    patients = len(set(cases["patients"]))
    return {"n": len(labels), "patients": patients, "positives": int(labels.sum())}
