"""The numbers of a page: scores of finished rows, and contrasts.

A score is the mean over training seeds; its 95% interval comes from a bootstrap that draws patients
and seeds. Rows of one cohort are resampled alike, so that differences are paired
(osteojax/evaluation/compare.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.readouts.plan import GROUPS, METRICS, Contrast, ReadoutStudy
from launch.readouts.predictions import Answers
from launch.studies.scores import common_seeds, difference_line, score_lines, verdict
from osteojax.evaluation import compare


class Scored(NamedTuple):
    """What a metric is of: the readout, the column of its truth, and the name of the statistic."""

    readout: str
    column: str
    statistic: str


READOUTS = {
    "r": Scored("spacing", "log_spacing", "r"),
    "AUROC": Scored("label", "osteoporosis", "AUROC"),
    "MAE": Scored("bmd", "bmd_g_cm2", "MAE"),
    "r_number": Scored("number", "texture_number", "r"),
}


def scores(answers: Answers, study: ReadoutStudy) -> list[dict[str, Any]]:
    """Every score of a row: group, metric, patients_fitted (0 is all), estimate, low, high, sd
    (over seeds), n, patients, note (why a number is missing)."""
    found = []
    for group in GROUPS:
        for metric, count in _asked(answers, study):
            cases = _cases(answers, group, metric, count, answers.seeds)
            about = {
                "group": group,
                "patients_fitted": count,
                "n": len(cases["patients"]),
                "patients": len(set(cases["patients"])),
            }
            if not about["n"]:
                continue
            measure = _measure(metric)
            names = (READOUTS[metric].statistic,)
            [line] = score_lines(about, names, cases, measure, study.resamples)
            found.append({**line, "metric": metric, "sd": _deviation(metric, cases)})
    return found


def _asked(answers: Answers, study: ReadoutStudy) -> list[tuple[str, int]]:
    """The metrics of a row, each with the number of patients that fit it."""
    few = study.few if answers.row.few else ()
    return [*((m, 0) for m in METRICS), *((m, n) for m in ("r", "AUROC") for n in few)]


def _measure(metric: str) -> Any:
    return compare.resample_diagnosis if metric == "AUROC" else compare.resample_bmd


def _cases(
    answers: Answers, group: str, metric: str, count: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Arguments of `_measure(metric)`: the cases of a group for which every seed has an answer."""
    readout, column, _ = READOUTS[metric]
    table = answers.group(group)
    predicted = answers.predicted(table, f"{readout}{count or ''}", seeds)
    truth = table.reindex(columns=[column])[column]  # early tables lack the texture number
    known = np.isfinite(predicted).all(axis=0) & truth.notna().to_numpy()
    patients, predicted = table["patient_id"].to_numpy()[known], predicted[:, known]
    if metric == "AUROC":
        labels = truth[known].to_numpy(np.int64)
        return {"labels": labels, "probabilities": predicted, "patients": patients}
    values = truth[known].to_numpy(np.float64)
    return {"truth": values, "predicted": predicted, "patients": patients}


def _deviation(metric: str, cases: dict[str, np.ndarray]) -> float | None:
    """SD of the score over seeds; None for fewer than two."""
    statistic = READOUTS[metric].statistic
    name = "probabilities" if metric == "AUROC" else "predicted"
    if len(cases[name]) < 2:
        return None
    each = [
        _measure(metric)(**{**cases, name: one[None]}, resamples=1)[0].get(statistic)
        for one in cases[name]
    ]
    return None if None in each else float(np.std(each, ddof=1))


def contrast_results(study: ReadoutStudy, answers: dict[str, Answers]) -> list[dict[str, Any]]:
    """The contrasts whose rows are finished, each with the contrast's fields, seeds (that both rows
    have), n, difference, low, high, p, p_holm and verdict (`launch.studies.scores.verdict`).

    Holm's correction is over the primary contrasts, and over the others apart from them.
    """
    results = []
    for contrast in study.contrasts:
        if contrast.first in answers and contrast.second in answers:
            first, second = answers[contrast.first], answers[contrast.second]
            if seeds := common_seeds(first, second):
                entry = _difference(contrast, first, second, seeds, study.contrast_resamples)
                results.append({**vars(contrast), "seeds": seeds, **entry})
    for primary in (True, False):
        family = [entry for entry in results if entry["primary"] == primary]
        for entry, p in zip(family, compare.holm([e["p"] for e in family]), strict=True):
            entry["p_holm"] = p
            entry["verdict"] = verdict(entry)
    return results


def _difference(
    contrast: Contrast, first: Answers, second: Answers, seeds: list[int], resamples: int
) -> dict[str, Any]:
    metric, group = contrast.metric, contrast.group
    a, b = (
        _cases(answers, group, metric, contrast.patients, answers.seeds if answers.fixed else seeds)
        for answers in (first, second)
    )
    if len(a["patients"]) != len(b["patients"]) or not len(a["patients"]):
        none = dict.fromkeys(("difference", "low", "high", "p"))
        return {**none, "n": 0, "note": "not predicted for the same vertebrae"}
    if metric == "AUROC":
        found = compare.compare(
            a["labels"], a["probabilities"], b["probabilities"], a["patients"], resamples=resamples
        )
    else:
        found = compare.compare_bmd(
            a["truth"], a["predicted"], b["predicted"], a["patients"], resamples
        )
    return {"n": found["n"], **difference_line(found["difference"][READOUTS[metric].statistic])}
