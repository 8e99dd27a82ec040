"""Writes what an evaluation leaves behind: predictions, metrics, tables, figures, one HTML report.

predictions.csv     both splits, one row per vertebra (`predictions.COLUMNS`)
metrics.json        `summary.summarise` and the context
tables/*.csv        the same numbers, one file per table
roc.png, calibration.png, bmd.png, gates.png, levels.png, decision.png
report.html         one self-contained file, made to be read and printed
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from osteojax.errors import UserError
from osteojax.evaluation import bootstrap, csv_tables, plots, predictions, summary, tables
from osteojax.files import atomic_path, write_json, write_text

TEMPLATE = "report.html.jinja"
REQUIRED_CONTEXT = ("simulated", "version", "config")
LARGEST_ERRORS = 10

_CAPTIONS = {
    "roc": "ROC curves per vertebra and per patient. In brackets: 95% interval of the AUROC from "
    "the variance of DeLong, with the vertebrae of one patient taken together (Obuchowski).",
    "calibration": "Share of positive cases against predicted probability, internal test, before "
    "and after temperature scaling with the temperature fitted on validation.",
    "decision": "Decision curve of the temperature-scaled probability, internal test: net benefit "
    "against the risk from which one would send somebody to DXA.",
    "bmd": "Predicted against measured areal bone mineral density by DXA device, and the "
    "difference against the mean (dashed: bias and limits of agreement of all vertebrae; "
    "coloured: bias by device).",
    "levels": "Predicted against true vertebral level; numbers are vertebrae.",
    "gates": "Mean weight that the gate gives each expert, by DXA device.",
}


def write_report(
    directory: str | Path,
    test_table: pd.DataFrame,
    valid_table: pd.DataFrame,
    context: dict[str, Any],
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates and writes everything, each file atomically, the report last.

    Args:
      directory: made if absent; files of an earlier evaluation are replaced.
      test_table: predictions of the split that is reported, and of the external split.
      valid_table: predictions of validation; thresholds and temperatures come from it only.
      context: what produced the predictions. Required: `simulated` (bool, the cohort is not real:
        the report says so), `version` (of osteojax), `config` (dict). Shown where given: `name`,
        `training_devices` (list; names devices never seen), `checkpoint`, `data`, `command`.
      resamples, seed: of the patient bootstrap.

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
    test = predictions.check(test_table, "test predictions")
    valid = predictions.check(valid_table, "validation predictions")
    _require_one_model(test, valid)
    fitted = summary.fit_on_validation(valid)
    metrics = summary.summarise(test, fitted, context.get("training_devices"), resamples, seed)
    metrics["context"] = _plain(context)

    paths = {"predictions": directory / "predictions.csv"}
    predictions.write(paths["predictions"], pd.concat([valid, test], ignore_index=True))
    errors = largest_errors(test, fitted)
    for name, table in {
        **csv_tables.csv_tables(metrics),
        **_more_csv(test, fitted, errors),
    }.items():
        paths[f"tables/{name}"] = directory / "tables" / name
        with atomic_path(paths[f"tables/{name}"]) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    figures = {
        "roc": plots.roc(test),
        "calibration": plots.reliability(test, fitted),
        "decision": plots.decision_curve(test, fitted),
        "bmd": plots.bmd(test),
        "levels": plots.levels(test),
        "gates": plots.gates(test),
    }
    for name, figure in figures.items():
        paths[name] = directory / f"{name}.png"
        plots.save(figure, paths[name])
    paths["metrics"] = directory / "metrics.json"
    write_json(paths["metrics"], metrics)
    paths["report"] = directory / "report.html"
    images = {name: paths[name].read_bytes() for name in figures}
    write_text(paths["report"], render(metrics, images, errors))
    return {"paths": paths, "metrics": metrics}


def render(metrics: dict[str, Any], images: dict[str, bytes], errors: pd.DataFrame) -> str:
    """The HTML of the report.

    Args:
      metrics: of `summary.summarise`, with `context`.
      images: name -> PNG bytes, names of `_CAPTIONS`.
      errors: of `largest_errors`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("osteojax.evaluation", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    fitted_at = "at_validation_threshold"
    shown = {
        "cohort": tables.cohort(metrics),
        "thresholds": tables.thresholds(metrics),
        "calibration": tables.calibration(metrics),
        "bmd": tables.bmd(metrics),
        "position": tables.position(metrics),
        "gates": tables.gates(metrics),
        "errors": _errors_shown(errors),
    }
    return environment.get_template(TEMPLATE).render(
        metrics=metrics,
        context=metrics["context"],
        config=json.dumps(metrics["context"]["config"], indent=2),
        shown=shown,
        main=[tables.diagnosis(metrics, unit, fitted_at) for unit in summary.UNITS],
        half=[tables.diagnosis(metrics, unit, "at_0.5") for unit in summary.UNITS],
        subgroups=[tables.subgroups(metrics, unit) for unit in ("vertebra", "patient")],
        sentences=_sentences(metrics),
        figures={
            name: {"data": base64.b64encode(images[name]).decode("ascii"), "caption": caption}
            for name, caption in _CAPTIONS.items()
        },
    )


def largest_errors(test: pd.DataFrame, fitted: dict[str, Any]) -> pd.DataFrame:
    """The labelled vertebrae that the model got most wrong at the validation threshold.

    Returns up to `LARGEST_ERRORS` rows, missed and falsely alarmed, the most confident first;
    none where no threshold could be fitted.
    """
    cases = predictions.labelled(test)
    threshold = fitted["vertebra"]["threshold"]
    called = cases["probability"] >= (np.inf if threshold is None else threshold)
    wrong = cases[(called != (cases["osteoporosis"] == 1)) & (threshold is not None)]
    miss = (wrong["osteoporosis"] - wrong["probability"]).abs()
    worst = wrong.assign(distance=miss).sort_values("distance", ascending=False, kind="stable")
    columns = ["scan_id", "site", "level", "device", "osteoporosis", "probability", "bmd_g_cm2"]
    return worst[[*columns, "bmd_pred_g_cm2"]].head(LARGEST_ERRORS).reset_index(drop=True)


def _errors_shown(errors: pd.DataFrame) -> tables.Shown:
    rows = tuple(
        (
            row["scan_id"],
            row["site"],
            row["level"],
            row["device"] or summary.NO_DEVICE,
            "missed" if row["osteoporosis"] else "false alarm",
            f"{row['probability']:.3f}",
            tables.ABSENT if np.isnan(row["bmd_g_cm2"]) else f"{row['bmd_g_cm2']:.3f}",
            f"{row['bmd_pred_g_cm2']:.3f}",
        )
        for row in errors.to_dict("records")
    )
    header = ("scan", "site", "level", "device", "error", "probability", "BMD", "predicted BMD")
    return tables.Shown("Most confident wrong vertebrae, BMD in g/cm²", header, rows)


def _more_csv(
    test: pd.DataFrame, fitted: dict[str, Any], errors: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Net benefit of vertebrae and patients, and the largest errors."""
    more = {"largest_errors.csv": errors}
    internal = test[test["split"] != "external"]
    for unit in ("vertebra", "patient"):
        try:
            curve = plots.net_benefit_table(internal, unit, fitted)
        except plots.Undefined as reason:
            curve = pd.DataFrame({"threshold": [None], "notes": [str(reason)]})
        more[f"net_benefit_{unit}.csv"] = curve
    return more


def _sentences(metrics: dict[str, Any]) -> list[str]:
    """The result in words, one sentence per group and unit that has numbers."""
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
    return sentences


def _require_one_model(test: pd.DataFrame, valid: pd.DataFrame) -> None:
    """Same experts, other patients."""
    experts = [len(predictions.gate_columns(table)) for table in (test, valid)]
    if experts[0] != experts[1]:
        raise UserError(
            f"the test predictions have {experts[0]} experts, the validation predictions "
            f"{experts[1]}: they come from different models. Evaluate both with one checkpoint."
        )
    shared = sorted(set(test["patient_id"]) & set(valid["patient_id"]))
    if shared:
        raise UserError(
            f"patient {shared[0]} is in the test and in the validation predictions "
            f"({len(shared)} such). Thresholds must not be fitted on whom they are reported for: "
            "evaluate another split than valid, or prepare the cohort again."
        )


def _plain(value: Any) -> Any:
    """The context as JSON: paths, tuples and NumPy numbers become what they say."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
