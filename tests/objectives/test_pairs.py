"""What all methods on pairs share, with a model that returns what it is shown."""

from __future__ import annotations

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import training_batches
from osteojax.data.vertebrae import POOL
from osteojax.objectives.pairs import Method, PairObjective
from osteojax.train.parallel import DataParallel
from osteojax.types import TrainState
from tests.small_runs import small


class Shown(nn.Module):
    def __call__(self, x: jax.Array, map_ids: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        return {"embedding": x.mean(axis=(1, 2, 3)), "x": x}


def loss(params, carried, outputs):
    return jnp.float32(0.0), {}, {"x": outputs["x"]}


@pytest.fixture(scope="module")
def objective(tiny_pool) -> PairObjective:
    config = small(
        "tp_swav_resnet34:paper", "--config.data.augment.max_shift_voxels=0",
        "--config.data.augment.flip_probability=0.0",
    )  # fmt: skip
    diagnose = lambda cohort, pairs: {"loss_over_flat": 0.99}  # noqa: E731
    method = Method(lambda backbone, axis: Shown(), loss, lambda devices: {}, diagnose=diagnose)
    return PairObjective(config, PreparedCohort(tiny_pool), method)


def test_every_member_is_z_scored_by_its_own_statistics(objective: PairObjective) -> None:
    """In training and in validation, against decoded values in float64."""
    cohort = objective.cohort
    rows = objective.training_rows()
    batch = next(training_batches(cohort, rows, objective.view, batch_size=16, seed=0))
    _, (_, metrics) = objective.loss(
        {}, {"batch_stats": {}}, batch, jax.random.key(0), jnp.int32(0)
    )
    assert set(np.unique(batch["map_ids"])) == set(range(len(POOL)))
    specs = cohort.about.maps
    evaluated = objective._evaluated({"params": {}, "batch_stats": {}}, batch)["x"]
    for seen in (metrics["x"], evaluated):
        for row, map_ids, views in zip(batch["index"], batch["map_ids"], seen, strict=True):
            for member, x in zip(map_ids, views, strict=True):
                spec = specs[member]
                codes = cohort.members(int(row), [POOL[member]])[0].astype(np.float64)
                expected = (spec.offset + spec.step * codes - spec.mean) / spec.std
                np.testing.assert_allclose(x[..., 0], expected, rtol=1e-5, atol=1e-4)


def test_a_flat_loss_is_told_after_the_warm_up(objective: PairObjective, caplog) -> None:
    devices = DataParallel.create(num_devices=1)

    def validate(step: int) -> None:
        model_state = {
            "batch_stats": {}, "image_batch_stats": {}, "initial_hu_probe": jnp.float32(jnp.nan),
        }  # fmt: skip
        state = TrainState(jnp.int32(step), {}, model_state, ())
        assert objective.validate(state, devices)[1]["loss_over_flat"] == 0.99

    warmup = objective.config.optim.warmup_steps
    with caplog.at_level(logging.WARNING):
        validate(warmup - 1)
        assert "flat" not in caplog.text
        for _ in range(2):
            validate(warmup)
    assert caplog.text.count("assignments are flat: after the warm-up the loss is 0.990") == 1
