"""Results as sentences, as in the results section of a paper."""

from __future__ import annotations

from typing import Any

import numpy as np

from osteojax.evaluation.report import tables
from osteojax.evaluation.report.cells import p_value
from osteojax.evaluation.statistics import calibration

UNITS_OF = {"mean_hu": "HU", "age": "year of age"}


def result(metrics: dict[str, Any]) -> list[str]:
    """One sentence per group and unit that has numbers, and per comparison with a baseline."""
    sentences = []
    for part, where in (("internal", "internal test"), ("external", "external")):
        for unit, who in (("vertebra", "vertebrae"), ("patient", "patients")):
            entry = metrics["diagnosis"][unit][part]
            at = entry["at_validation_threshold"]
            if not entry["n"]:
                continue
            found = [
                f"{name} {value:.3f}"
                + (f" (95% interval {low:.3f} to {high:.3f})" if low is not None else "")
                for name, metric in (
                    ("AUROC", "AUROC"),
                    ("sensitivity", "SEN"),
                    ("specificity", "SPE"),
                )
                if (value := at[metric]) is not None
                for low, high in [at["intervals"].get(metric) or (None, None)]
            ]
            sentences.append(
                f"{where[0].upper()}{where[1:]}, {entry['n']} labelled {who}, "
                f"{entry['positives']} positive: {', '.join(found) or 'nothing can be computed'}."
            )
    return sentences + _against_baselines(metrics)


def _against_baselines(metrics: dict[str, Any]) -> list[str]:
    """Comparison of the model with each baseline, for internal vertebrae and patients."""
    sentences = []
    for baseline in metrics["baselines"].values():
        for unit, found in baseline["internal"].items():
            against = found["against_model"]
            area, test = against["difference"]["AUROC"], against["delong"]
            if test is None or area["interval"] is None:
                continue
            low, high = area["interval"]
            sentences.append(
                f"{tables.UNIT_PLURALS[unit].capitalize()} of the internal test, against "
                f"{baseline['title']}: AUROC {area['first']:.3f} against {area['second']:.3f}, "
                f"difference {_signed(area['difference'])} (95% interval {_signed(low)} to "
                f"{_signed(high)}), {_p(test['p'])} by DeLong's test, {_p(test['p_holm'])} after "
                "Holm."
            )
    return sentences


def baselines(metrics: dict[str, Any]) -> list[str]:
    """Description of the baselines: training vertebrae, coefficients, and the threshold in HU."""
    sentences = []
    for name, entry in metrics["baselines"].items():
        known = metrics["context"].get("baselines", {}).get(name)
        if known is None:
            continue
        parts = [
            f"{_signed(value, 4)} per {UNITS_OF[feature]}"
            for feature, value in known["log_odds_per"].items()
        ]
        text = (
            f"{entry['title']}: {known['training_vertebrae']} labelled training vertebrae, "
            f"log odds {_signed(known['intercept'])}, {', '.join(parts)}"
        )
        threshold = entry["fitted"]["vertebra"]["threshold"]
        if threshold is not None and list(known["log_odds_per"]) == ["mean_hu"]:
            odds = float(calibration.logit(np.array([threshold]))[0])
            slope = known["log_odds_per"]["mean_hu"]
            side = "at or below" if slope < 0 else "at or above"
            at_hu = (odds - known["intercept"]) / slope
            text += f"; a vertebra is positive {side} {at_hu:.0f} HU (fitted on validation)"
        sentences.append(text + ".")
    return sentences


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _p(value: float) -> str:
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
