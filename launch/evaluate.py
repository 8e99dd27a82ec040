"""Evaluate a fine-tuned run: metrics by site and device, figures, one report.

Thresholds and calibration are fitted on the validation split; the test split and the external
sites are reported, beside baselines on HU and with the most confident errors pictured.

Example:
  osteojax evaluate --workdir finetune --data pool --split test
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from osteojax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort
    from osteojax.evaluation.report.examples import Picture

EMBEDDED_VERTEBRAE = 1000
"""Training vertebrae that the distance from the training data is fitted on, evenly spread; each
costs a forward pass."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="of a fine-tuning run")
    parser.add_argument("--data", required=True, help="the prepared folder it was trained on")
    parser.add_argument(
        "--split", choices=("test", "external"), default="test",
        help="test reports the external sites beside it",
    )  # fmt: skip
    parser.add_argument("--out", help="folder of the results (default: WORKDIR/evaluation)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--all-levels", action="store_true", help="unlabelled vertebrae as well")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A fine-tuned run and the cohort it was trained on.

    Attributes:
      config, step: of the run and its checkpoint.
      cohort: opened.
      params, model_state: of the checkpoint; averaged parameters where the run kept them.
    """

    config: ConfigDict
    step: int
    cohort: PreparedCohort
    params: Any
    model_state: Any

    @classmethod
    def open(cls, workdir: Path, data: Path, which: str) -> Evaluated:
        """Raises UserError for another cohort's run, or one that has no heads."""
        from osteojax.checkpoints import load_variables
        from osteojax.data.cohort import PreparedCohort
        from osteojax.export.write import load_run

        config, manifest = load_run(workdir)
        cohort = PreparedCohort(data)
        if cohort.manifest != manifest:
            raise UserError(
                f"{workdir} was trained on another cohort than {data}: the manifests differ. "
                "Evaluate on the --data it was trained on."
            )
        if config.objective.name != "multitask":
            raise UserError(
                f"{workdir} is a {config.objective.name} run: it has no heads to evaluate."
            )
        step, variables = load_variables(workdir, which)
        params = variables["ema_params"] or variables["params"]
        return cls(config, step, cohort, params, variables["model_state"])

    def predict(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of the model for some rows of the cohort, at least one."""
        from osteojax import objectives
        from osteojax.train.parallel import DataParallel

        objective: Any = objectives.load(self.config, self.cohort)
        devices = DataParallel.create(self.config.engine)
        return objective.predict(self.params, self.model_state, rows, devices)

    def pictures(self, chosen: pd.DataFrame) -> list[Picture]:
        """What the model saw of some vertebrae (scan_id, level), with its Grad-CAM."""
        import jax

        from osteojax.evaluation.report.examples import Picture
        from osteojax.objectives.diagnosis import attention_program

        manifest, spacing_mm = self.cohort.manifest, self.cohort.about.spacing_mm
        table = self.cohort.table.reset_index().set_index(["scan_id", "level"])["index"]
        rows = [int(table[key]) for key in zip(chosen["scan_id"], chosen["level"], strict=True)]
        codes = np.concatenate([self.cohort.members(row, ["image"]) for row in rows])
        hu = self.cohort.about.maps[0].decode(codes)
        attention = jax.jit(attention_program(self.config, manifest))
        variables = {"params": self.params, "batch_stats": self.model_state["batch_stats"]}
        device = self.cohort.labels.device[rows]
        heat = [
            np.asarray(attention(variables, hu[[i]], device[[i]])["attention"])[0]
            for i in range(len(rows))  # one at a time: one compilation, little memory
        ]
        return [
            Picture(hu[i], self.cohort.array(row, "mask")[0], _volume(heat[i], hu[i]), spacing_mm)
            for i, row in enumerate(rows)
        ]


def _volume(heat: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """The heat map of a 2D model, which is of the mid-sagittal plane, in its place."""
    if heat.ndim == 3:
        return heat
    volume = np.zeros_like(hu)
    volume[..., hu.shape[-1] // 2] = heat
    return volume


def predictions_table(
    workdir: Path, data: Path, splits: tuple[str, ...], which: str, labelled: bool | None
) -> tuple[pd.DataFrame, int, PreparedCohort]:
    """The model's predictions for some splits (columns of osteojax.evaluation.predictions).

    Returns:
      (table, step of the checkpoint, the opened cohort).
    """
    run = Evaluated.open(workdir, data, which)
    rows = run.cohort.rows(*splits, labelled=labelled)
    if len(rows) == 0:
        return pd.DataFrame({"split": []}), run.step, run.cohort
    return _table(run.cohort, rows, run.predict(rows)), run.step, run.cohort


def _table(cohort: Any, rows: np.ndarray, outputs: dict[str, np.ndarray]) -> pd.DataFrame:
    from osteojax.evaluation import predictions
    from osteojax.objectives.diagnosis import in_units

    known = [
        "patient_id", "scan_id", "site", "split", "level", "level_class", "device", "sex", "age",
        "truncated", "osteoporosis", "bmd_g_cm2", "t_score", "slice_mm", "mean_hu",
    ]  # fmt: skip
    table = cohort.table.iloc[rows][known].reset_index(drop=True)
    answers = predictions.from_outputs(in_units(outputs, cohort.manifest))
    return pd.concat([table, answers], axis=1)


def _embedding_statistics(
    table: pd.DataFrame, embeddings: np.ndarray, training: np.ndarray, facts: dict[str, Any],
    path: Path,
) -> list[str]:  # fmt: skip
    """Writes how far validation lies from training, and adds each row's distance to the table.

    Args:
      table: predictions; gets the columns ood_distance and ood_percentile.
      embeddings: f32[len(table), F] of its rows.
      training: f32[N, F] of training vertebrae.
      facts: metadata of the file.
      path: of the file; an earlier one is removed where nothing can be fitted.

    Returns:
      what a reader must know.
    """
    from osteojax.evaluation.statistics import ood
    from osteojax.evaluation.statistics.metrics import Undefined

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


def _baselines(cohort: PreparedCohort, table: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """Adds the baselines' probabilities to the table; their coefficients, and what is missing."""
    from osteojax.evaluation import baselines

    training = cohort.table.iloc[cohort.rows("train", labelled=True)]
    models, notes = baselines.fit(training)
    for name, model in models.items():
        table[baselines.column(name)] = model.probability(table)
    told = [f"No baseline {baselines.TITLES[name]}: {why}." for name, why in notes.items()]
    return {name: model.as_json() for name, model in models.items()}, told


def run(args: argparse.Namespace) -> int:
    from osteojax import __version__
    from osteojax.evaluation.report import terminal
    from osteojax.evaluation.report.page import write_report
    from osteojax.evaluation.statistics import ood

    workdir, data = Path(args.workdir), Path(args.data)
    out = Path(args.out) if args.out else workdir / "evaluation"
    evaluated = Evaluated.open(workdir, data, args.checkpoint)
    cohort, labelled = evaluated.cohort, None if args.all_levels else True
    reported = ("test", "external") if args.split == "test" else (args.split,)
    for splits, what in ((reported, "to report"), (("valid",), "to fit thresholds on")):
        if len(cohort.rows(*splits, labelled=labelled)) == 0:
            raise UserError(
                f"{data}: no labelled vertebra in {' or '.join(splits)} {what}; the manifest "
                f"counts {cohort.manifest.counts}."
            )
    rows = cohort.rows("valid", *reported, labelled=labelled)
    trained = cohort.rows("train", labelled=True)
    sample = trained[
        np.linspace(0, len(trained) - 1, min(len(trained), EMBEDDED_VERTEBRAE)).astype(int)
    ]
    outputs = evaluated.predict(np.concatenate([rows, sample]))
    embeddings = outputs["embedding"]
    table = _table(cohort, rows, {key: value[: len(rows)] for key, value in outputs.items()})
    facts = {"checkpoint_step": evaluated.step, "which": args.checkpoint}
    notes = _embedding_statistics(
        table, embeddings[: len(rows)], embeddings[len(rows) :], facts, out / ood.FILE
    )
    fitted_baselines, told = _baselines(cohort, table)
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]
    context = {
        "simulated": bool(cohort.manifest.settings.get("simulated", False)),
        "version": __version__,
        "config": config,
        "checkpoint": f"{args.checkpoint}, step {evaluated.step}",
        "checkpoint_step": evaluated.step,
        "data": str(data),
        "training_devices": sorted(set(cohort.table["device"].iloc[trained])),
        "command": f"osteojax evaluate --workdir {workdir} --data {data} --split {args.split}",
        "baselines": fitted_baselines,
        "notes": notes + told,
    }
    is_valid = table["split"] == "valid"
    result = write_report(
        out, table[~is_valid], table[is_valid], context, pictures=evaluated.pictures
    )
    console = Console()
    for shown in terminal.main_tables(result["metrics"]):
        console.print(terminal.rendered(shown))
    for warning in result["metrics"]["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    for name in ("report", "metrics", "predictions", "roc"):
        print(f"{name}: {result['paths'][name]}")
    return 0
