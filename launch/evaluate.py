"""Evaluate a fine-tuned run: metrics by site and device, figures, one report.

Thresholds and calibration are fitted on the validation split; the test split and the external
sites are reported.

Example:
  osteojax evaluate --workdir finetune --data pool --split test
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from scipy.special import softmax

from osteojax.errors import UserError


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


def predictions_table(
    workdir: Path, data: Path, splits: tuple[str, ...], which: str, labelled: bool | None
) -> tuple[pd.DataFrame, int, Any]:
    """The model's predictions for some splits (columns of osteojax.evaluation.predictions).

    Returns:
      (table, step of the checkpoint, the opened cohort).
    """
    from osteojax import objectives
    from osteojax.checkpoints import load_variables
    from osteojax.data.cohort import PreparedCohort
    from osteojax.export import load_run
    from osteojax.train.parallel import DataParallel

    config, manifest = load_run(workdir)
    cohort = PreparedCohort(data)
    if cohort.manifest != manifest:
        raise UserError(
            f"{workdir} was trained on another cohort than {data}: the manifests differ. Evaluate "
            "on the --data it was trained on."
        )
    if config.objective.name != "multitask":
        raise UserError(f"{workdir} is a {config.objective.name} run: it has no heads to evaluate.")
    objective = objectives.load(config, cohort)
    step, variables = load_variables(workdir, which)
    params = variables["ema_params"] or variables["params"]
    rows = cohort.rows(*splits, labelled=labelled)
    if len(rows) == 0:
        return pd.DataFrame({"split": []}), step, cohort
    devices = DataParallel.create(config.engine)
    outputs = objective.predict(params, variables["model_state"], rows, devices)
    return _table(cohort, rows, outputs), step, cohort


def _table(cohort: Any, rows: np.ndarray, outputs: dict[str, np.ndarray]) -> pd.DataFrame:
    known = [
        "patient_id", "scan_id", "site", "split", "level", "level_class", "device", "sex", "age",
        "truncated", "osteoporosis", "bmd_g_cm2", "t_score",
    ]  # fmt: skip
    table = cohort.table.iloc[rows][known].reset_index(drop=True)
    manifest = cohort.manifest
    levels = softmax(outputs["level_logits"].astype(np.float64), axis=1)
    table["probability"] = softmax(outputs["logits"].astype(np.float64), axis=1)[:, 1]
    table["bmd_pred_g_cm2"] = outputs["bmd"] * manifest.bmd_std + manifest.bmd_mean
    table["level_pred"] = levels.argmax(axis=1) + 1
    table["level_probability"] = levels.max(axis=1)
    for expert in range(outputs["gate"].shape[1]):
        table[f"gate_{expert}"] = outputs["gate"][:, expert]
    return table


def run(args: argparse.Namespace) -> int:
    from osteojax import __version__
    from osteojax.evaluation import tables
    from osteojax.evaluation.report import write_report

    workdir, data = Path(args.workdir), Path(args.data)
    labelled = None if args.all_levels else True
    reported = ("test", "external") if args.split == "test" else (args.split,)
    table, step, cohort = predictions_table(
        workdir, data, ("valid", *reported), args.checkpoint, labelled
    )
    is_valid = table["split"] == "valid"
    test, valid = table[~is_valid], table[is_valid]
    if test.empty:
        raise UserError(
            f"{data}: no labelled vertebra in {' or '.join(reported)}; the manifest counts "
            f"{cohort.manifest.counts}."
        )
    if valid.empty:
        raise UserError(f"{data}: no labelled validation vertebra to fit thresholds on.")
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]
    trained = cohort.rows("train", labelled=True)
    context = {
        "simulated": bool(cohort.manifest.settings.get("simulated", False)),
        "version": __version__,
        "config": config,
        "checkpoint": f"{args.checkpoint}, step {step}",
        "checkpoint_step": step,
        "data": str(data),
        "training_devices": sorted(set(cohort.table["device"].iloc[trained])),
        "command": f"osteojax evaluate --workdir {workdir} --data {data} --split {args.split}",
    }
    out = Path(args.out) if args.out else workdir / "evaluation"
    result = write_report(out, test, valid, context)
    console = Console()
    for shown in tables.main_tables(result["metrics"]):
        console.print(tables.terminal(shown))
    for warning in result["metrics"]["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    for name in ("report", "metrics", "predictions", "roc"):
        print(f"{name}: {result['paths'][name]}")
    return 0
