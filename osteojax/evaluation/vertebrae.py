"""Evaluation of a model of vertebrae: diagnosis, BMD and level, compared with baselines on HU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd

from osteojax.data.places import BODY_PLANE
from osteojax.evaluation import Predicted, Report, baselines, predictions
from osteojax.evaluation.report import terminal
from osteojax.evaluation.report.examples import Picture
from osteojax.evaluation.report.page import write_report
from osteojax.evaluation.statistics import ood
from osteojax.evaluation.statistics.metrics import Undefined

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort

EMBEDDED_VERTEBRAE = 1000
"""Number of training vertebrae, evenly spread, on which the distance from the training data is
fitted; each costs a forward pass."""

KNOWN = (
    "patient_id", "scan_id", "site", "split", "level", "level_class", "device", "sex", "age",
    "truncated", "osteoporosis", "bmd_g_cm2", "t_score", "slice_mm", "mean_hu", "body_share",
)  # fmt: skip
"""Columns of `vertebrae.csv` that predictions.csv repeats."""


@dataclasses.dataclass(frozen=True)
class VertebraEvaluation:
    """An `osteojax.evaluation.Evaluation`.

    Attributes:
      cohort: of vertebrae, opened.
      predict: see `Evaluation`; outputs have the names of an exported model.
      attention: (variables, hu f32[B, D, H, W], device i32[B]) -> attention f32[B, D, H, W], or
        f32[B, D, H] of the mid-sagittal plane; with body bool[B, D, H, W] after hu where
        `takes_body`. All of the shown window.
      takes_body: whether the model sees the vertebral body.
    """

    cohort: PreparedCohort
    predict: Callable[..., dict[str, np.ndarray]]
    attention: Callable[..., dict[str, Any]]
    takes_body: bool = False

    def training_sample(self) -> np.ndarray:
        """Labelled training vertebrae, evenly spread."""
        trained = self.cohort.rows("train", labelled=True)
        count = min(len(trained), EMBEDDED_VERTEBRAE)
        return trained[np.linspace(0, len(trained) - 1, count).astype(int)]

    def table(self, rows: np.ndarray, outputs: dict[str, np.ndarray]) -> pd.DataFrame:
        """Columns of `osteojax.evaluation.predictions`."""
        known = self.cohort.table.iloc[rows][list(KNOWN)].reset_index(drop=True)
        return pd.concat([known, predictions.from_outputs(outputs)], axis=1)

    def write(self, out: Path, predicted: Predicted, context: dict[str, Any]) -> Report:
        """Writes the report of `osteojax.evaluation.report.page`."""
        table = self.table(predicted.rows, predicted.outputs)
        notes = embedding_statistics(
            table,
            predicted.outputs["embedding"],
            predicted.training_outputs["embedding"],
            {name: context[name] for name in ("checkpoint_step", "which")},
            out / ood.FILE,
        )
        fitted, missing = self._baselines(table)
        trained = self.cohort.rows("train", labelled=True)
        context = {
            **context,
            "training_devices": sorted(set(self.cohort.table["device"].iloc[trained])),
            "baselines": fitted,
            "notes": notes + missing,
        }
        is_valid = table["split"] == "valid"
        result = write_report(
            out,
            table[~is_valid],
            table[is_valid],
            context,
            pictures=partial(self.pictures, predicted.variables),
        )
        metrics = result["metrics"]
        tables = tuple(terminal.main_tables(metrics))
        return Report(result["paths"], metrics, tables, tuple(metrics["warnings"]))

    def _baselines(self, table: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
        """Adds the baselines' probabilities to the table. Returns their coefficients, and sentences
        on baselines that could not be fitted."""
        training = self.cohort.table.iloc[self.cohort.rows("train", labelled=True)]
        models, notes = baselines.fit(training)
        for name, model in models.items():
            table[baselines.column(name)] = model.probability(table)
        notes_on = [f"No baseline {baselines.TITLES[name]}: {why}." for name, why in notes.items()]
        return {name: model.as_json() for name, model in models.items()}, notes_on

    def pictures(self, variables: Any, chosen: pd.DataFrame) -> list[Picture]:
        """The model's input for some vertebrae (scan_id, level), with Grad-CAM."""
        about, window = self.cohort.about, (..., *self.cohort.about.window)
        table = self.cohort.table.reset_index().set_index(["scan_id", "level"])["index"]
        rows = [int(table[key]) for key in zip(chosen["scan_id"], chosen["level"], strict=True)]
        attention, device = jax.jit(self.attention), self.cohort.labels.device
        shown = []
        for row in rows:  # one at a time, for one compilation and little memory
            hu = about.maps[0].decode(self.cohort.members(row, ["image"])[window])
            planes = self.cohort.array(row, "mask")[window]
            body = (planes[None, BODY_PLANE],) if self.takes_body else ()
            heat = attention(variables, hu, *body, device[[row]])["attention"]
            volume = in_volume(np.asarray(heat)[0], hu[0])
            shown.append(Picture(hu[0], planes[0], volume, about.spacing_mm))
        return shown


def in_volume(heat: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """The heat map as a volume; that of a 2D model is put into the mid-sagittal plane."""
    if heat.ndim == 3:
        return heat
    volume = np.zeros_like(hu)
    volume[..., hu.shape[-1] // 2] = heat
    return volume


def embedding_statistics(
    table: pd.DataFrame,
    embeddings: np.ndarray,
    training: np.ndarray,
    facts: dict[str, Any],
    path: Path,
) -> list[str]:
    """Writes statistics of distances from training, and adds each row's distance to the table.

    Args:
      table: predictions; gets the columns ood_distance and ood_percentile.
      embeddings: f32[len(table), F] of its rows.
      training: f32[N, F] of training vertebrae.
      facts: metadata of the file.
      path: of the file; an earlier one is removed if nothing can be fitted.

    Returns:
      sentences for the reader if nothing could be fitted.
    """
    valid = embeddings[(table["split"] == "valid").to_numpy()]
    try:
        stats = ood.fit(training, valid)
    except Undefined as reason:
        path.unlink(missing_ok=True)
        return [f"No distance from the training data could be computed: {reason}."]
    facts = facts | {"training_vertebrae": len(training), "validation_vertebrae": len(valid)}
    ood.save(path, stats, facts)
    finite = np.isfinite(embeddings).all(axis=1)
    distance = np.full(len(table), np.nan)
    distance[finite] = ood.ood_distance(embeddings[finite], stats)
    table["ood_distance"] = distance
    table["ood_percentile"] = np.where(finite, ood.percentile(distance, stats), np.nan)
    return []
