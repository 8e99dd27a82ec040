"""Encoders that are taught numbers: their targets, their loss, and a run within a study."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from launch.configs import load_config
from launch.readouts import regression
from launch.readouts.encoders import Encoders
from launch.readouts.plan import Encoder, Readout
from osteojax import objectives
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from osteojax.types import AXIS
from tests.launch.stand_in_readouts import stand_in_cohorts, structure, study
from tests.small_runs import CONFIGS

CONFIG = CONFIGS / "studies" / "regression.py"
FLAT = {
    "model.rank": 2,
    "model.stage_sizes": (1,),
    "model.width": 4,
    "batch_size": 8,
    "log_every_steps": 1,
    "eval_at_start": False,
    "data.labelled_too": True,
    "data.views.edge_mm": 12.0,
    "optim.learning_rate": 0.03,
    "optim.train_steps": 12,
    "optim.warmup_steps": 1,
    "optim.eval_steps": 12,
    "optim.save_steps": 12,
}
"""What compiles fastest."""


def test_targets_are_standardised_over_training_patients_and_known_of_them_alone(
    tiny_pool: Path, tmp_path: Path
) -> None:
    cohort, truth = PreparedCohort(tiny_pool), tmp_path / "truth.csv"
    structure(tiny_pool).to_csv(truth, index=False)
    settings = load_config(f"{CONFIG}:spacing", [f"--config.objective.truth={truth}"]).objective
    found = regression.training_targets(settings, cohort)
    train = cohort.rows("train")
    spacing = np.log(pd.read_csv(truth)["trabecular_spacing_mm"].to_numpy()[train])
    expected = (spacing - spacing.mean()) / spacing.std()
    np.testing.assert_allclose(found[train, 0], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found[cohort.rows("valid", "test", "external")]).all()

    found = regression.training_targets(load_config(f"{CONFIG}:maps").objective, cohort)
    own = []
    for row in train:
        body, spec = cohort.array(row, "mask")[2], cohort.about.maps[4]
        values = spec.offset + spec.step * cohort.array(row, "DifferenceAverage")[body].astype(
            float
        )
        own.append([values.mean(), values.std()])
    expected = (own - np.mean(own, axis=0)) / np.std(own, axis=0)
    assert found.shape == (len(cohort), 8)
    np.testing.assert_allclose(found[train][:, [3, 7]], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(found[cohort.rows("valid", "test", "external")]).all()


def test_the_loss_is_the_squared_error_of_every_view_of_all_devices(tiny_pool: Path) -> None:
    cohort = PreparedCohort(tiny_pool)
    objective = objectives.load(load_config(f"{CONFIG}:maps"), cohort)
    index = cohort.rows("train")[[5, 2, 9, 4]].reshape(2, 2)  # two devices
    predicted = np.random.default_rng(0).normal(size=(2, 2, 2, 8))
    outputs = {"predicted": predicted, "index": index}
    loss = jax.vmap(lambda own: objective.method.loss({}, {}, own)[0], axis_name=AXIS)
    targets = regression.training_targets(objective.config.objective, cohort).astype(np.float64)
    expected = np.mean((predicted - targets[index][:, :, None]) ** 2)
    np.testing.assert_allclose(loss(outputs), [expected, expected], rtol=1e-5)


def test_a_study_teaches_the_truth_of_its_cohort(tiny_pool: Path, tmp_path: Path) -> None:
    stand_in_cohorts(tmp_path, tiny_pool)
    encoders = {"supervised": Encoder(f"{CONFIG}:spacing", FLAT)}
    rows = (Readout("supervised", "a", "supervised", seeds=1),)
    made = Encoders(study(encoders=encoders, rows=rows, contrasts=()), tmp_path)
    [embedded] = made.embeddings("supervised", 0, ["main"])
    assert embedded.shape == (len(made.cohort("main")), 4)
    folder = made.folder("supervised", 0)
    truth = json.loads((folder / "config.json").read_text())["config"]["objective"]["truth"]
    assert truth == str(tmp_path / "cohorts" / "main" / "simulated" / "truth.csv")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    errors = [line["train/squared_error"] for line in lines if "train/squared_error" in line]
    assert len(errors) == 12
    assert np.mean(errors[-3:]) < 0.7 * np.mean(errors[:3])
    assert "truth" not in str(made.made_with("supervised", 0)["settings"])


def test_what_cannot_be_taught_is_refused(tiny_pool: Path) -> None:
    cohort = PreparedCohort(tiny_pool)
    with pytest.raises(UserError, match=r"needs --config\.objective\.truth"):
        objectives.load(load_config(f"{CONFIG}:spacing"), cohort)
    config = load_config(f"{CONFIG}:maps", ["--config.objective.targets=bmd"])
    with pytest.raises(UserError, match="'bmd'; choose one of maps, spacing"):
        objectives.load(config, cohort)
