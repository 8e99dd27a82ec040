"""Evaluation of any kind of data by the targets that its manifest names.

A target of two classes is scored by AUROC and by the decision at a threshold from validation; one
of more classes by accuracy; a number by its mean absolute error, Pearson's r and bias. Scores are
per item (a picture) and per patient: a patient has the class if any item has it, and the mean of
the items' numbers; truth and prediction of a patient use the same items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from osteojax.errors import UserError
from osteojax.evaluation import Predicted, Report
from osteojax.evaluation.report import target_page
from osteojax.evaluation.statistics import bootstrap, metrics
from osteojax.evaluation.statistics.metrics import attempt
from osteojax.files import atomic_path, write_json, write_text

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort
    from osteojax.data.schema import Target

UNITS = ("item", "patient")
NOT_REPEATED = ("shard", "position")
"""Columns of the cohort's table that say where a record is stored, left out of predictions."""


@dataclasses.dataclass(frozen=True)
class TargetEvaluation:
    """An `osteojax.evaluation.Evaluation` for any kind.

    Attributes:
      cohort: opened.
      predict: see `Evaluation`. Outputs by the name of each target: probabilities f[N, classes] of
        a class, f[N] in its unit of a number.
    """

    cohort: PreparedCohort
    predict: Callable[..., dict[str, np.ndarray]]

    def training_sample(self) -> np.ndarray:
        """No rows, since training items are not reported."""
        return np.zeros(0, np.int64)

    def table(self, rows: np.ndarray, outputs: dict[str, np.ndarray]) -> pd.DataFrame:
        """The cohort's columns, and for each target the model's columns.

        For a class: <target>_pred, the most probable class, and <target>_probability, that of this
        class or, with two classes, of the second. For a number: <target>_pred.
        """
        table = self.cohort.table.iloc[rows].drop(columns=list(NOT_REPEATED), errors="ignore")
        table = table.reset_index(drop=True)
        for target in self.cohort.manifest.targets:
            found = outputs[target.name].astype(np.float64)
            if target.kind == "number":
                table[f"{target.name}_pred"] = found
                continue
            names = np.array(target.classes, object)
            table[f"{target.name}_pred"] = names[found.argmax(axis=1)]
            two = found.shape[1] == 2
            table[f"{target.name}_probability"] = found[:, 1] if two else found.max(axis=1)
        return table

    def write(self, out: Path, predicted: Predicted, context: dict[str, Any]) -> Report:
        """Writes predictions.csv, metrics.json and a short report.html."""
        table = self.table(predicted.rows, predicted.outputs)
        summary = self.summarise(predicted.rows, predicted.outputs)
        summary["context"] = context
        paths = {name: out / file for name, file in FILES.items()}
        with atomic_path(paths["predictions"]) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
        write_json(paths["metrics"], summary)
        shown = target_page.tables(summary)
        write_text(paths["report"], target_page.render(summary, shown))
        return Report(paths, summary, shown, tuple(summary["warnings"]))

    def summarise(
        self,
        rows: np.ndarray,
        outputs: dict[str, np.ndarray],
        resamples: int = bootstrap.RESAMPLES,
        seed: int = 0,
    ) -> dict[str, Any]:
        """The content of metrics.json, without its context.

        Returns:
          kind, items (their name), targets: name -> kind, unit, classes, fitted (unit of evaluation
          -> threshold, notes), groups (split -> unit of evaluation -> numbers with intervals);
          warnings.
        """
        settings = {"resamples": resamples, "seed": seed}
        split = self.cohort.table["split"].to_numpy()[rows]
        reported = [name for name in ("test", "external") if (split == name).any()]
        summary: dict[str, Any] = {
            "kind": self.cohort.manifest.kind,
            "items": self.cohort.kind.ITEMS,
            "targets": {},
            "bootstrap": {**settings, "confidence": bootstrap.CONFIDENCE, "drawn": "patients"},
            "warnings": [],
        }
        for target in self.cohort.manifest.targets:
            found = outputs[target.name]
            finite = np.isfinite(found.reshape(len(rows), -1)).all(axis=1)
            if not finite.any():
                raise UserError(
                    f"{target.name}: every prediction is NaN or infinite: the model diverged. "
                    "Evaluate an earlier checkpoint."
                )
            if not finite.all():
                left_out = f"{(~finite).sum()} predictions are NaN or infinite and left out"
                summary["warnings"].append(f"{target.name}: {left_out}.")
            cases = {
                part: self._cases(target, rows[keep], found[keep])
                for part in ("valid", *reported)
                for keep in [finite & (split == part)]
            }
            summary["targets"][target.name] = _scored(target, cases, settings)
        return summary

    def _cases(
        self, target: Target, rows: np.ndarray, found: np.ndarray
    ) -> dict[str, pd.DataFrame]:
        """Unit of evaluation -> patient_id, truth, predicted of the cases that have the target."""
        truth = self.cohort.targets[target.name][rows]
        known = truth >= 0 if target.kind == "class" else ~np.isnan(truth)
        if target.kind == "class":
            found = found[:, 1] if found.shape[1] == 2 else found.argmax(axis=1)
        items = pd.DataFrame(
            {
                "patient_id": self.cohort.table["patient_id"].to_numpy()[rows][known],
                "truth": truth[known],
                "predicted": found[known].astype(np.float64),
            }
        )
        rule = "mean" if target.kind == "number" else "max"
        patients = items.groupby("patient_id", sort=True).agg(rule).reset_index()
        return {"item": items, "patient": patients}


FILES = {"report": "report.html", "metrics": "metrics.json", "predictions": "predictions.csv"}


def _scored(
    target: Target, cases: dict[str, dict[str, pd.DataFrame]], settings: dict[str, int]
) -> dict[str, Any]:
    """The entry of a target in metrics.json; `cases`: split -> unit of evaluation -> cases."""
    several = target.kind == "class" and len(target.classes) != 2
    units = ("item",) if several else UNITS  # a patient's class is defined for two classes
    fitted: dict[str, Any] = {}
    for unit in units if target.kind == "class" and not several else ():
        valid, notes = cases["valid"][unit], dict[str, str]()
        threshold = attempt(
            notes, "threshold", metrics.youden_threshold, valid["truth"].to_numpy(np.int64),
            valid["predicted"].to_numpy(),
        )  # fmt: skip
        fitted[unit] = {"threshold": threshold, "n": len(valid), "notes": notes}
    groups = {
        part: {
            unit: _numbers(target, own[unit], fitted.get(unit, {}).get("threshold"), settings)
            for unit in units
        }
        for part, own in cases.items()
        if part != "valid"
    }
    return {
        "kind": target.kind, "unit": target.unit, "classes": list(target.classes),
        "fitted": fitted, "groups": groups,
    }  # fmt: skip


def _numbers(
    target: Target, cases: pd.DataFrame, threshold: float | None, settings: dict[str, int]
) -> dict[str, Any]:
    truth, predicted = cases["truth"].to_numpy(), cases["predicted"].to_numpy()
    patients = cases["patient_id"].to_numpy()
    if target.kind == "number":
        values = metrics.bmd_regression(truth.astype(np.float64), predicted)
        intervals, why = bootstrap.bmd_intervals(truth, predicted, patients, **settings)
    elif len(target.classes) == 2:
        labels = truth.astype(np.int64)
        values = metrics.classification(labels, predicted, threshold)
        intervals, why = bootstrap.classification_intervals(
            labels, predicted, patients, threshold, **settings
        )
    else:
        right = {"ACC": truth == predicted}
        notes = {} if len(cases) else {"ACC": "no labelled cases"}
        share = float(right["ACC"].mean()) if len(cases) else None
        values = {"n": len(cases), "ACC": share, "notes": notes}
        intervals, why = bootstrap.mean_intervals(right, patients, **settings)
    return {
        "patients": len(set(patients)), **values, "intervals": intervals, "interval_notes": why
    }  # fmt: skip
