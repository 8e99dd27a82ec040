"""Writes the results of an evaluation: predictions, metrics, tables, figures, one HTML report.

predictions.csv     both splits, one row per vertebra (`columns.COLUMNS`)
metrics.json        `summary.summarise` and the context
tables/*.csv        the same numbers, one file per table
roc.png, calibration.png, decision.png, bmd.png, levels.png, gates.png
missed.png, false_alarms.png, hits.png    single vertebrae, if the volumes can be read
report.html         one self-contained file, to be read and printed
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from osteojax.errors import UserError
from osteojax.evaluation import predictions, summary
from osteojax.evaluation.columns import expert_columns
from osteojax.evaluation.report import csv_tables, examples, plots, sentences, tables
from osteojax.evaluation.report.templates import template
from osteojax.evaluation.statistics import bootstrap
from osteojax.files import atomic_path, write_json, write_text

TEMPLATE = "report.html.jinja"
REQUIRED_CONTEXT = ("simulated", "version", "config")

_CAPTIONS = {
    "roc": "ROC curves per vertebra and per patient, with the AUROC and, in brackets, its 95% "
    "interval from the variance of DeLong, with the vertebrae of one patient taken together "
    "(Obuchowski). It differs a little from the bootstrap's interval in the tables above.",
    "calibration": "Share of positive cases against predicted probability, internal test, as "
    "predicted and, where a temperature helped held-out validation patients, after scaling by it.",
    "decision": "Decision curve, internal test: net benefit against the risk from which a patient "
    "would be sent to DXA. The probability is scaled by the temperature, where one is kept.",
    "bmd": "Predicted against measured areal bone mineral density by DXA device, and the "
    "difference against the mean (dashed: bias and limits of agreement of all vertebrae; "
    "coloured: bias by device).",
    "levels": "Predicted against true vertebral level; numbers are vertebrae.",
    "gates": "Mean weight that the gate gives each expert, by DXA device.",
}

_CASE_CAPTION = (
    "{kind}, by the validation threshold, each of another patient. Blue: the vertebra's mask. "
    "Window −200 to 800 HU, field of view {size_mm:.0f} mm; anterior is left in sagittal and up in "
    "axial planes, the patient's right is left. CT: the middle plane. Grad-CAM: where channels of "
    "the encoder are active that raise the log odds of osteoporosis, its maximum across all "
    "planes, brightest at each vertebra's own maximum; it is coarse and explains no single error."
)

Pictures = Callable[[pd.DataFrame], list[examples.Picture]]
"""A function: rows of the predictions -> their `Picture`s."""


def write_report(
    directory: str | Path,
    test_table: pd.DataFrame,
    valid_table: pd.DataFrame,
    context: dict[str, Any],
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    pictures: Pictures | None = None,
) -> dict[str, Any]:
    """Evaluates and writes everything, each file atomically, the report last.

    Args:
      directory: created if absent; files of an earlier evaluation are replaced.
      test_table: predictions of the split that is reported, and of the external split.
      valid_table: predictions of validation, from which thresholds and temperatures are fitted.
      context: facts about the run. Required: `simulated` (bool; the report says so if true),
        `version` (of osteojax), `config` (dict). Optional: `name`, `training_devices` (list; the
        report warns of other scanners), `checkpoint`, `data`, `command`, `baselines` (name ->
        `Baseline.as_json`), `notes` (sentences on values that could not be computed).
      resamples, seed: of the patient bootstrap.
      pictures: reads the volumes of the vertebrae in figures; without it there are no such figures.

    Returns:
      {"paths": {name: Path}, "metrics": content of metrics.json}.

    Raises:
      UserError: a table is unusable (`predictions.check`), or the two share a patient or come from
        models with different numbers of experts.
    """
    absent = [key for key in REQUIRED_CONTEXT if key not in context]
    if absent:
        raise ValueError(f"context lacks {', '.join(absent)}")
    directory = Path(directory)
    usable = [
        predictions.set_aside(table, f"{name} predictions")
        for table, name in ((test_table, "test"), (valid_table, "validation"))
    ]
    test = predictions.check(usable[0][0], "test predictions")
    valid = predictions.check(usable[1][0], "validation predictions")
    left_out = pd.concat([usable[1][1], usable[0][1]], ignore_index=True)
    _require_one_model(test, valid)
    fitted = summary.fit_on_validation(valid)
    metrics = summary.summarise(
        test, fitted, context.get("training_devices"), resamples, seed, valid, left_out
    )
    metrics["warnings"] += context.get("notes", [])
    metrics["context"] = _plain(context)

    paths = {"predictions": directory / "predictions.csv"}
    predictions.write(paths["predictions"], pd.concat([valid, test], ignore_index=True))
    errors = examples.largest_errors(test, fitted)
    written = csv_tables.csv_tables(metrics) | {"largest_errors.csv": errors}
    for name, table in written.items():
        paths[f"tables/{name}"] = directory / "tables" / name
        with atomic_path(paths[f"tables/{name}"]) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    figures = _figures(test, fitted, pictures)
    for kind in set(examples.KINDS) - set(figures):
        (directory / f"{kind}.png").unlink(missing_ok=True)  # of an earlier evaluation
    for name, (figure, _) in figures.items():
        paths[name] = directory / f"{name}.png"
        plots.save(figure, paths[name])
    paths["metrics"] = directory / "metrics.json"
    write_json(paths["metrics"], metrics)
    paths["report"] = directory / "report.html"
    images = {name: (paths[name].read_bytes(), caption) for name, (_, caption) in figures.items()}
    write_text(paths["report"], render(metrics, images, errors))
    return {"paths": paths, "metrics": metrics}


def _figures(
    test: pd.DataFrame, fitted: dict[str, Any], pictures: Pictures | None
) -> dict[str, tuple[Figure, str]]:
    """name -> figure and caption; with figures of single vertebrae if `pictures` is given."""
    drawn = {
        "roc": plots.roc(test),
        "calibration": plots.reliability(test, fitted),
        "decision": plots.decision_curve(test, fitted),
        "bmd": plots.bmd(test),
        "levels": plots.levels(test),
        "gates": plots.gates(test),
    }
    figures = {name: (figure, _CAPTIONS[name]) for name, figure in drawn.items()}
    if pictures is None:
        return figures
    chosen = examples.chosen(test, fitted)
    for kind in chosen["kind"].unique():
        rows = chosen[chosen["kind"] == kind]
        shown = pictures(rows)
        size_mm = shown[0].spacing_mm * shown[0].hu.shape[0]
        caption = _CASE_CAPTION.format(kind=examples.KINDS[kind], size_mm=size_mm)
        figures[kind] = (examples.draw(rows, shown, examples.KINDS[kind]), caption)
    return figures


def render(
    metrics: dict[str, Any], images: dict[str, tuple[bytes, str]], errors: pd.DataFrame
) -> str:
    """The HTML of the report.

    Args:
      metrics: of `summary.summarise`, with `context`.
      images: name -> PNG bytes and caption.
      errors: of `examples.largest_errors`.
    """
    fitted_at = "at_validation_threshold"
    shown = {
        "cohort": tables.cohort(metrics),
        "thresholds": tables.thresholds(metrics),
        "calibration": tables.calibration(metrics),
        "bmd": tables.bmd(metrics),
        "position": tables.position(metrics),
        "gates": tables.gates(metrics),
        "errors": examples.errors_shown(errors),
        "auroc": tables.auroc(metrics),
        "baselines": tables.against_baselines(metrics),
        "net_benefit": tables.net_benefit(metrics),
        "unlike_training": tables.unlike_training(metrics),
    }
    return template(TEMPLATE).render(
        metrics=metrics,
        context=metrics["context"],
        config=json.dumps(metrics["context"]["config"], indent=2),
        shown=shown,
        main=[tables.diagnosis(metrics, unit, fitted_at) for unit in summary.UNITS],
        half=[tables.diagnosis(metrics, unit, "at_0.5") for unit in summary.UNITS],
        subgroups=[tables.subgroups(metrics, unit) for unit in ("vertebra", "patient")],
        sentences=sentences.result(metrics),
        baselines=sentences.baselines(metrics),
        kinds=[kind for kind in examples.KINDS if kind in images],
        figures={
            name: {"data": base64.b64encode(image).decode("ascii"), "caption": caption}
            for name, (image, caption) in images.items()
        },
    )


def _require_one_model(test: pd.DataFrame, valid: pd.DataFrame) -> None:
    """Raises UserError unless both tables have the same experts and different patients."""
    experts = [len(expert_columns(table)) for table in (test, valid)]
    if experts[0] != experts[1]:
        raise UserError(
            f"the test predictions have {experts[0]} experts, the validation predictions "
            f"{experts[1]}: they come from different models. Evaluate both with one checkpoint."
        )
    shared = sorted(set(test["patient_id"]) & set(valid["patient_id"]))
    if shared:
        raise UserError(
            f"patient {shared[0]} is in the test and in the validation predictions "
            f"({len(shared)} such). Thresholds must not be fitted on reported patients: "
            "evaluate another split than valid, or prepare the cohort again."
        )


def _plain(value: Any) -> Any:
    """The context as JSON values: paths become text, tuples lists, NumPy numbers plain ones."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
