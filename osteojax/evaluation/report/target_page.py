"""The short report of an evaluation by targets: warnings, and a table for each target."""

from __future__ import annotations

import json
from typing import Any

from osteojax.evaluation.report.cells import ABSENT, Missing, Shown, estimate, number
from osteojax.evaluation.report.templates import template

CLASS_METRICS = ("AUROC", "ACC", "SEN", "SPE", "PPV", "NPV")
NUMBER_METRICS = ("MAE", "r", "bias")
TEMPLATE = "targets.html.jinja"


def tables(summary: dict[str, Any]) -> tuple[Shown, ...]:
    """One per target, of `TargetEvaluation.summarise`."""
    return tuple(
        _table(name, target, summary["items"]) for name, target in summary["targets"].items()
    )


def _table(name: str, target: dict[str, Any], items: str) -> Shown:
    two = len(target["classes"]) == 2
    names = NUMBER_METRICS if target["kind"] == "number" else CLASS_METRICS if two else ("ACC",)
    rows, missing = [], Missing()
    for split, units in target["groups"].items():
        for unit, entry in units.items():
            label = f"{split}, {items if unit == 'item' else 'patients'}"
            missing.entry(label, entry)
            threshold = target["fitted"].get(unit, {}).get("threshold")
            rows.append(
                (
                    label,
                    str(entry["n"]),
                    *([number(threshold, 3)] if two else []),
                    *(estimate(entry, metric, 3) for metric in names),
                )
            )
    header = ("group", "n", *(["threshold"] if two else []), *names)
    what = f"{target['classes'][1]} or {target['classes'][0]}" if two else target["unit"] or ABSENT
    title = f"{name}: {what}" if what != ABSENT else name
    return Shown(title, header, tuple(rows), missing.notes(), missing.interval_notes())


def render(summary: dict[str, Any], shown: tuple[Shown, ...]) -> str:
    """The HTML of the report; `summary` with its context."""
    return template(TEMPLATE).render(
        summary=summary,
        context=summary["context"],
        config=json.dumps(summary["context"]["config"], indent=2),
        shown=shown,
    )
