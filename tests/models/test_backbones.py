"""A backbone is one file: a dotted name trains under every method, explains itself and exports."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.benchmarks.experiment import Experiment, stand_in_cohort
from launch.benchmarks.scaling import traceable_step
from osteojax.errors import UserError
from osteojax.export.load import ExportedModel
from osteojax.export.write import export_model
from osteojax.models import build_backbone
from osteojax.train.costs import step_cost
from osteojax.train.loop import train
from tests.small_runs import fine_tuning, pretraining, small

TINY = {"name": "tests.tiny_backbone", "width": 4, "rank": 3}
SHORT = ("--config.optim.train_steps=3", "--config.eval_at_start=false")


def with_backbone(config: ConfigDict, **fields) -> ConfigDict:
    with config.unlocked():
        config.model = ConfigDict({**TINY, **fields})
    return config


@pytest.mark.parametrize("name", ["tp_swav_resnet34", "simclr_resnet34", "moe_multitask_resnet34"])
def test_every_method_takes_it(name: str) -> None:
    """Its step is traced, its exports are built."""
    experiment = Experiment(with_backbone(small(f"{name}:paper")), stand_in_cohort(16, 8), 2)
    batch = experiment.synthetic_batch()
    step, state = traceable_step(experiment, batch)
    after, _ = jax.eval_shape(step, state, batch, experiment.key)
    assert set(after.params["backbone"]) == {"patches", "mix"}
    assert experiment.objective.exports()


@pytest.mark.slow
def test_it_pretrains_fine_tunes_and_exports(tiny_pool: Path, tmp_path: Path) -> None:
    train(with_backbone(small("simclr_resnet34:paper", *SHORT)), tmp_path / "pre", tiny_pool)
    card = export_model(tmp_path / "pre", tmp_path / "encoder", what="features")
    assert set(card["outputs"]) == {"embedding", "mixed"}
    config = with_backbone(fine_tuning(*SHORT, f"--config.init_from={tmp_path / 'pre'}"))
    train(config, tmp_path / "fine", tiny_pool)
    export_model(tmp_path / "fine", tmp_path / "model")
    hu = np.random.default_rng(0).uniform(-100, 400, (2, 16, 16, 16)).astype(np.float32)
    heat = ExportedModel(tmp_path / "model").attention(hu, np.zeros(2, np.int32))
    assert heat.shape == hu.shape
    assert np.isfinite(heat).all()


def test_its_work_can_be_counted() -> None:
    experiment = Experiment(with_backbone(pretraining()), stand_in_cohort(16, 8))
    cost = step_cost(experiment.config, experiment.cohort, experiment.synthetic_batch())
    (forward,) = (p for p in cost.products if p.layer == "backbone/patches" and p.part == "forward")
    # 16 views of 4^3 patches of 4^3 voxels to 4 channels.
    assert forward.flops == 2 * 16 * 4**3 * 4**3 * 4


def test_mistakes_are_one_line() -> None:
    for fields, message in (
        ({"name": "resnett"}, "model.name is 'resnett'; choose one of resnet, or the dotted name"),
        ({"name": "heads"}, "choose one of resnet"),
        ({"name": "mylab.swin"}, "no module mylab"),
        ({"stage_sizes": (1,), "widht": 3}, "has stage_sizes, widht, which TinyNet does not know"),
        ({"name": "resnet", "stage_sizes": (1,), "dtype": "float32", "wide": 1}, "has wide, which"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build_backbone(ConfigDict({**TINY, **fields}), None)
        assert "\n" not in str(error.value)
