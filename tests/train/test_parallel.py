"""Any number of devices, and either engine, give the numbers of one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from osteojax import objectives
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import training_batches
from osteojax.errors import UserError
from osteojax.train.parallel import DataParallel
from osteojax.train.step import make_step
from osteojax.types import TrainState
from tests.small_runs import fine_tuning, pretraining
from tests.tiny_cohort import write_tiny_cohort

LEARNING_RATE = 1e-2
STEPS = 4  # two fill the queue of 16, two use it; prototypes move from the third on


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> PreparedCohort:
    return PreparedCohort(write_tiny_cohort(tmp_path_factory.mktemp("cohort") / "pool"))


def run(config, cohort: PreparedCohort, engine: str, num_devices: int, starts=None):
    """[(state before, state after, metrics)] of each step; each starts at `starts` if given."""
    objective = objectives.load(config, cohort)
    devices = DataParallel.create(engine, num_devices)
    # AdamW with a larger epsilon: its own, 1e-8, turns the rounding of the few gradients that are
    # nearly zero into steps as large as any other's.
    direction = optax.chain(
        optax.scale_by_adam(eps=1e-3), optax.add_decayed_weights(config.optim.weight_decay)
    )
    optimizer = objective.optimizer(direction, optax.constant_schedule(LEARNING_RATE))
    step = make_step(objective.loss, optimizer, devices, ema_decay=0.9)
    batches = training_batches(
        cohort, objective.training_rows(), objective.view, batch_size=8, seed=1
    )
    batch = next(batches)
    params, model_state = objective.init(jax.random.key(0), batch)
    state = TrainState(jnp.int32(0), params, model_state, optimizer.init(params), params)
    found = []
    for number in range(STEPS):
        before = jax.device_get(state if starts is None else starts[number])
        after, metrics = step(devices.replicate(before), devices.put(batch), jax.random.key(2))
        state = jax.device_get(after)
        found.append((before, state, jax.device_get(metrics)))
        batch = next(batches)
    return found


FLAT = "--config.model.rank=2"
"""Networks of a slice compile fast; volumes on eight devices: tests/models/test_resnet.py."""
CONFIGS = {
    "swav": lambda: pretraining(FLAT),
    "swav_per_map": lambda: pretraining(FLAT, "--config.model.norm=per_map"),
    "multitask": lambda: fine_tuning(
        FLAT, "--config.data.unlabelled_too=true", "--config.objective.gate_balance_weight=0.01"
    ),
}
FEW = [("shard_map", 8), ("pmap", 4)]
MANY = [("shard_map", 2), ("shard_map", 4), ("pmap", 1), ("pmap", 8)]


# Statistics per map on eight devices, in the fast suite: tests/models/test_resnet.py.
@pytest.mark.parametrize("name", ["swav", pytest.param("swav_per_map", marks=pytest.mark.slow)])
def test_devices_and_engines_agree(name: str, cohort: PreparedCohort) -> None:
    check_agreement(CONFIGS[name](), cohort, FEW[:1] if name == "swav_per_map" else FEW)


@pytest.mark.slow  # on shard_map every objective: tests/objectives/test_contract.py
@pytest.mark.parametrize("name", CONFIGS)
def test_more_devices_and_engines_agree(name: str, cohort: PreparedCohort) -> None:
    check_agreement(CONFIGS[name](), cohort, MANY)


def check_agreement(config, cohort: PreparedCohort, arrangements: list) -> None:
    """Each step from the same state: over several, a network this small magnifies rounding."""
    expected = run(config, cohort, "shard_map", 1)
    starts = [before for before, _, _ in expected]
    for engine, num_devices in arrangements:
        found = run(config, cohort, engine, num_devices, starts)
        for number, ((_, after, metrics), (_, other, other_metrics)) in enumerate(
            zip(expected, found, strict=True), 1
        ):
            where = f"{engine} on {num_devices}, step {number}"
            for key in metrics:
                np.testing.assert_allclose(
                    other_metrics[key], metrics[key], rtol=2e-3, atol=2e-5,
                    err_msg=f"{where}: {key}",
                )  # fmt: skip
            # Parameters are compared, as a whole, with the way one step goes.
            for path, leaf in jax.tree_util.tree_leaves_with_path(after.params):
                distance = np.sqrt(np.mean((_leaf(other.params, path) - leaf) ** 2))
                assert distance < 0.02 * LEARNING_RATE, f"{where}: {path}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(after.model_state):
                np.testing.assert_allclose(
                    _leaf(other.model_state, path), leaf, rtol=2e-2, atol=2e-3,
                    err_msg=f"{where}: {path}",
                )  # fmt: skip


def _leaf(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


@pytest.mark.parametrize(
    ("name", "engine", "num_devices"),
    [
        ("swav", "shard_map", 2),
        # In the fast suite pmap takes four steps above.
        pytest.param("swav", "pmap", 8, marks=pytest.mark.slow),
        pytest.param("multitask", "shard_map", 2, marks=pytest.mark.slow),
        pytest.param("multitask", "pmap", 8, marks=pytest.mark.slow),
    ],
)
def test_gradients_agree_to_rounding(
    name: str, engine: str, num_devices: int, cohort: PreparedCohort
) -> None:
    check_gradients(CONFIGS[name](), cohort, [(engine, num_devices)])


def check_gradients(config, cohort: PreparedCohort, arrangements: list) -> None:
    """(engine, devices) of `arrangements` give gradients, state and metrics of one device."""
    objective = objectives.load(config, cohort)
    batches = training_batches(
        cohort, objective.training_rows(), objective.view, batch_size=8, seed=1
    )
    batch = next(batches)
    params, model_state = objective.init(jax.random.key(0), batch)
    if "queue" in model_state:  # a full queue, so that its part of the assignment is tested too
        queue = jax.random.normal(jax.random.key(5), model_state["queue"].shape)
        model_state["queue"] = queue / jnp.linalg.norm(queue, axis=-1, keepdims=True)
        model_state["queue_filled"] = jnp.int32(len(queue))
    found = []
    for engine, num_devices in [("shard_map", 1), *arrangements]:
        devices = DataParallel.create(engine, num_devices)

        def gradients(state, share, key, devices=devices):
            grad = jax.grad(objective.loss, has_aux=True)
            values, (new_state, metrics) = grad(*state, share, key, jnp.int32(0))
            return (devices.mean_gradients(values), new_state), metrics

        step = devices.map_step(gradients)
        state = devices.replicate((params, model_state))
        found.append(jax.device_get(step(state, devices.put(batch), jax.random.key(2))))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(found[0][0][0]))
    for other in found[1:]:
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
            # Rounding is within 5e-5 of the largest gradient; a statistic that is not global, or a
            # sum that misses a device, shows at a tenth of it.
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4 * scale)


def test_what_does_not_divide_is_refused() -> None:
    devices = DataParallel.create(num_devices=8)
    with pytest.raises(UserError, match="multiple of 8"):
        devices.check_batch(12)
    with pytest.raises(UserError, match="shard_map, pmap"):
        DataParallel.create("pjit")


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.rank=2", "data.augment.affine=true", "data.pairs=cross_group"),
        ("model.dtype=bfloat16", "model.norm=group", "model.remat=true"),
    ],
)
def test_every_option_of_the_config_trains(overrides: tuple[str, ...], cohort) -> None:
    config = pretraining(*[f"--config.{override}" for override in overrides])
    *_, (_, _, metrics) = run(config, cohort, "shard_map", 2)
    assert np.isfinite(metrics["loss"])
    assert metrics["gradient_norm"] > 0
