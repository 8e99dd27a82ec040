"""Opens a training run on the cohort that it was trained on, predicts, and evaluates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from osteojax import __version__, objectives
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import PreparedCohort, open_cohort
from osteojax.errors import UserError
from osteojax.evaluation import Evaluation, Predicted, Report
from osteojax.export.write import load_run
from osteojax.train.parallel import DataParallel


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that can be evaluated, and the cohort that it was trained on.

    Attributes:
      workdir: of the run.
      which, step: of its checkpoint.
      cohort: opened.
      evaluation: of its objective.
      params, model_state: of the checkpoint; averaged parameters if the run kept them.
      engine: of the config, as `DataParallel.create` takes it.
    """

    workdir: Path
    which: str
    step: int
    cohort: PreparedCohort
    evaluation: Evaluation
    params: Any
    model_state: Any
    engine: str

    @classmethod
    def open(cls, workdir: Path, data: Path, which: str) -> Run:
        """Opens a run. Raises UserError if it was trained on another cohort or has no heads."""
        config, manifest = load_run(workdir)
        cohort = open_cohort(data)
        if cohort.manifest != manifest:
            raise UserError(
                f"{workdir} was trained on another cohort than {data}: the manifests differ. "
                "Evaluate on the --data it was trained on."
            )
        objective: Any = objectives.load(config, cohort)
        if not hasattr(objective, "evaluation"):
            raise UserError(
                f"{workdir} is a {config.objective.name} run: it has no heads to evaluate."
            )
        step, variables = load_variables(workdir, which)
        params = variables["ema_params"] or variables["params"]
        return cls(
            workdir, which, step, cohort, objective.evaluation(), params,
            variables["model_state"], config.engine,
        )  # fmt: skip

    def predict(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs for some rows of the cohort, at least one."""
        devices = DataParallel.create(self.engine)
        return self.evaluation.predict(self.params, self.model_state, rows, devices)


def evaluate(
    workdir: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    out: str | Path | None = None,
    checkpoint: str = "best",
    all_items: bool = False,
) -> Report:
    """Evaluates a run: fits thresholds on validation, reports the other splits, writes a report.

    Args:
      workdir: of a training run.
      data: the prepared folder that it was trained on.
      split: "test", which also reports the external sites, or "external".
      out: folder of the results; None is WORKDIR/evaluation.
      checkpoint: "best" or "last".
      all_items: whether to include unlabelled items (vertebrae).

    Raises:
      UserError: the run is of another cohort or has no heads; there are no items to report or to
        fit on.
    """
    workdir, data = Path(workdir), Path(data)
    run = Run.open(workdir, data, checkpoint)
    cohort, labelled = run.cohort, None if all_items else True
    reported = ("test", "external") if split == "test" else (split,)
    for splits, what in ((reported, "to report"), (("valid",), "to fit thresholds on")):
        if len(cohort.rows(*splits, labelled=labelled)) == 0:
            raise UserError(
                f"{data}: no labelled {cohort.kind.ITEMS} in {' or '.join(splits)} {what}; the "
                f"manifest counts {cohort.manifest.counts}."
            )
    rows = cohort.rows("valid", *reported, labelled=labelled)
    outputs = run.predict(np.concatenate([rows, run.evaluation.training_sample()]))
    predicted = Predicted(
        rows=rows,
        outputs={name: value[: len(rows)] for name, value in outputs.items()},
        training_outputs={name: value[len(rows) :] for name, value in outputs.items()},
        variables={"batch_stats": {}, **run.model_state, "params": run.params},
    )
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]
    context = {
        "simulated": bool(cohort.manifest.settings.get("simulated", False)),
        "version": __version__,
        "config": config,
        "checkpoint": f"{checkpoint}, step {run.step}",
        "checkpoint_step": run.step,
        "which": checkpoint,
        "data": str(data),
        "command": f"osteojax evaluate --workdir {workdir} --data {data} --split {split}",
    }
    folder = Path(out) if out else workdir / "evaluation"
    return run.evaluation.write(folder, predicted, context)


def predictions_table(
    workdir: Path, data: Path, splits: tuple[str, ...], which: str, labelled: bool | None
) -> tuple[pd.DataFrame, int, PreparedCohort]:
    """The model's predictions for some splits, with the columns of predictions.csv.

    Returns:
      (table, step of the checkpoint, the opened cohort).
    """
    run = Run.open(workdir, data, which)
    rows = run.cohort.rows(*splits, labelled=labelled)
    if len(rows) == 0:
        return pd.DataFrame({"split": []}), run.step, run.cohort
    return run.evaluation.table(rows, run.predict(rows)), run.step, run.cohort
