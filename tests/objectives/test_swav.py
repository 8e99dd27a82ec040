"""Eq. 1, the diversity term, the queue and the freeze, each against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from osteojax import objectives
from osteojax.data.cohort import PreparedCohort
from osteojax.objectives.swav import SwAV, prototype_diversity, swapped_prediction
from osteojax.train.optim import adamw_direction
from osteojax.train.parallel import DataParallel
from tests.small_runs import pretraining
from tests.tiny_cohort import write_tiny_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> PreparedCohort:
    return PreparedCohort(write_tiny_cohort(tmp_path_factory.mktemp("cohort") / "pool"))


@pytest.mark.parametrize("num_views", [2, 3])
def test_swapped_prediction_is_equation_1(num_views: int) -> None:
    """Of two views; of more, the mean over pairs of them."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, (5, num_views, 7))
    targets = rng.dirichlet(np.ones(7), (5, num_views))
    pairs = [(s, t) for s in range(num_views) for t in range(num_views) if s != t]
    total = 0.0
    for b in range(5):
        for s, t in pairs:
            p = np.exp(scores[b, t] / 0.1) / np.exp(scores[b, t] / 0.1).sum()
            total -= (targets[b, s] * np.log(p)).sum()
    got = swapped_prediction(jnp.asarray(scores, jnp.float32), jnp.asarray(targets), 0.1)
    assert float(got) == pytest.approx(total / 5 / (len(pairs) / 2), rel=1e-5)


def test_nothing_learnt_is_twice_ln_k() -> None:
    got = swapped_prediction(jnp.zeros((4, 2, 32)), jnp.full((4, 2, 32), 1 / 32), 0.1)
    assert float(got) == pytest.approx(2 * np.log(32), rel=1e-6)


def test_prototype_diversity() -> None:
    vectors = np.random.default_rng(1).normal(size=(6, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [max(unit[i] @ unit[j], 0) ** 2 for i in range(6) for j in range(i + 1, 6)]
    assert float(prototype_diversity(jnp.asarray(vectors))) == pytest.approx(np.mean(pairs))
    assert float(prototype_diversity(jnp.eye(4))) == pytest.approx(0.0, abs=1e-12)
    assert float(prototype_diversity(jnp.ones((3, 4)))) == pytest.approx(1.0)


def test_prototypes_stand_still_then_move_as_if_new(cohort: PreparedCohort) -> None:
    config = pretraining(
        "--config.objective.freeze_prototypes_steps=3", "--config.objective.unit_prototypes=false"
    )
    objective = objectives.load(config, cohort)
    direction = adamw_direction(config)
    optimizer = objective.optimizer(direction, optax.constant_schedule(0.1))
    params = {"backbone": jnp.ones(3), "prototypes": {"vectors": jnp.ones((2, 2))}}
    gradient = jax.tree.map(lambda x: 0.5 * jnp.ones_like(x), params)
    state = optimizer.init(params)
    fresh = optax.chain(direction, optax.scale_by_learning_rate(0.1))
    fresh_state = fresh.init(params["prototypes"])
    for step in range(5):
        updates, state = optimizer.update(gradient, state, params)
        assert (updates["backbone"] != 0).all()
        moved = updates["prototypes"]["vectors"]
        if step < 3:
            assert not moved.any()
        else:
            expected, fresh_state = fresh.update(
                gradient["prototypes"], fresh_state, params["prototypes"]
            )
            np.testing.assert_allclose(moved, expected["vectors"], rtol=1e-6)


def test_the_queue_is_first_in_first_out_and_off_for_large_batches() -> None:
    settings = pretraining().objective
    swav = SwAV(settings, batch_size=8)
    assert swav.queue_size == 16
    assert SwAV(settings, batch_size=64).queue_size == 0  # 64 >= 8 * 8 prototypes
    state = {"queue": jnp.arange(32.0).reshape(16, 2, 1), "queue_filled": jnp.int32(10)}
    new = -jnp.arange(1.0, 17.0).reshape(8, 2, 1)
    push = DataParallel.create(num_devices=4).map_reduce(swav.push)
    pushed = push(state, new)
    np.testing.assert_array_equal(pushed["queue"][:8], new)
    np.testing.assert_array_equal(pushed["queue"][8:], state["queue"][:8])
    assert int(pushed["queue_filled"]) == 16


def test_queue_and_exchange_follow_the_number_of_views() -> None:
    settings = pretraining().objective
    two, four = (SwAV(settings, batch_size=8, num_views=count) for count in (2, 4))
    assert four.carried()["queue"].shape == (16, 4, settings.prototype_dim)
    for name in ("sinkhorn", "queue"):
        assert four.exchanged_bytes(2)[name] == 2 * two.exchanged_bytes(2)[name]
    assert four.exchanged_bytes(2)["losses"] == two.exchanged_bytes(2)["losses"]


def test_only_training_patients_take_part(cohort: PreparedCohort) -> None:
    for overrides in ((), ("--config.data.labelled_too=false",)):
        objective = objectives.load(pretraining(*overrides), cohort)
        rows = objective.training_rows()
        assert set(cohort.table["split"].iloc[rows]) == {"train"}
        held_out = set(cohort.table["patient_id"][cohort.table["split"] != "train"])
        assert not held_out & set(cohort.table["patient_id"].iloc[rows])
    assert (cohort.labels.osteoporosis[rows] < 0).all()
