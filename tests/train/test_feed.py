"""From disk or from device memory, one step or several a dispatch: the same run, to the bit."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_prep.vertebrae.texture import TextureSettings
from osteojax import objectives
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import evaluation_batches
from osteojax.data.resident import Layout
from osteojax.train import loop
from osteojax.train.feed import Feed, dispatches
from osteojax.train.optim import adamw_direction
from osteojax.train.parallel import DataParallel
from osteojax.train.step import make_steps
from osteojax.types import TrainState
from tests.launch.test_distributed import (
    FINE_TUNING,
    TINY,
    assert_same_run,
    finished,
    start_two,
)
from tests.small_runs import fine_tuning, load_config, pretraining
from tests.tiny_cohort import write_tiny_cohort

STEPS = 6  # two fill the queue of 16


def flat():
    """What compiles fastest."""
    config = fine_tuning("--config.model.rank=2", "--config.data.unlabelled_too=true")
    config.model.stage_sizes = (1,)
    return config


CONFIGS = {
    "flat": flat,
    "multitask": lambda: fine_tuning("--config.data.unlabelled_too=true"),
    "swav": pretraining,
    "online": lambda: pretraining("--config.data.textures=online"),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> PreparedCohort:
    return PreparedCohort(write_tiny_cohort(tmp_path_factory.mktemp("cohort") / "pool"))


@pytest.fixture(scope="module")
def textured(tmp_path_factory) -> PreparedCohort:
    """Maps that the device can make too."""
    folder = tmp_path_factory.mktemp("textured") / "pool"
    return PreparedCohort(write_tiny_cohort(folder, texture=TextureSettings(kernel_radius=1)))


def run(config, cohort: PreparedCohort, num_devices: int, resident: bool, per_dispatch: int = 1):
    """(state, metrics of every step, rows of every batch); both on the host."""
    objective = objectives.load(config, cohort)
    devices = DataParallel.create(num_devices=num_devices)
    optimizer = objective.optimizer(adamw_direction(config), optax.constant_schedule(1e-2))
    rows, view = objective.training_rows(), objective.view
    layout = Layout.of(rows, view, cohort.manifest, num_devices)
    feed = Feed(cohort, view, devices, layout if resident else None)
    feed.start(rows, 8, seed=1, first_step=0)
    steps = make_steps(objective.loss, optimizer, devices, 0.9, feed.gather)
    _, example = next(evaluation_batches(cohort, rows[:2], view, batch_size=2))
    params, model_state = objective.init(jax.random.key(0), example)
    state = TrainState(jnp.int32(0), params, model_state, optimizer.init(params), params)
    state = devices.replicate(state)
    found, shown = [], []
    for _, count in dispatches(0, STEPS, per_dispatch, ()):
        before = state
        batch, indices = feed.next(count)
        state, metrics = steps(state, feed.data, batch, jax.random.key(2))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))  # donated
        found.append(jax.device_get(metrics))
        shown.append(indices)
    assert feed.data is None or not feed.data.is_deleted()
    metrics = {key: np.concatenate([m[key] for m in found]) for key in found[0]}
    return jax.device_get(state), metrics, np.concatenate(shown)


def check(name: str, cohort: PreparedCohort, num_devices: int, per_dispatch: int) -> None:
    expected = run(CONFIGS[name](), cohort, num_devices, resident=False)
    assert expected[2].shape == (STEPS, 8)
    assert len(np.unique(expected[1]["loss"])) == STEPS
    found = run(CONFIGS[name](), cohort, num_devices, resident=True, per_dispatch=per_dispatch)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


@pytest.mark.slow  # in the fast suite: test_loop.py, a resident run that ends on disk
def test_resident_steps_are_those_from_disk(cohort: PreparedCohort) -> None:
    check("flat", cohort, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multitask", "swav", "online"])
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_every_objective_and_device_count_is_the_same(
    textured: PreparedCohort, name: str, num_devices: int
) -> None:
    check(name, textured, num_devices, 4)  # and two single ones


@pytest.mark.slow
def test_two_processes_hold_what_their_devices_show(tiny_pool: Path, tmp_path: Path) -> None:
    """From the sums of processes, and with a remainder of single steps."""
    # At a rate of 0.01 rounding grows to 3% of a loss in five steps.
    overrides = (*TINY, "--config.optim.learning_rate=0.001", "--config.optim.save_steps=5")
    loop.train(load_config(FINE_TUNING, list(overrides)), tmp_path / "one", tiny_pool)
    resident = ("--config.data.placement=resident", "--config.steps_per_dispatch=2")
    both = tmp_path / "both"
    output = finished(start_two(both, tiny_pool, FINE_TUNING, (*overrides, *resident), devices=2))
    assert "on each of 4 device(s)" in output
    assert "resident" in output
    assert_same_run(tmp_path / "one", both, 0.001)


@pytest.mark.parametrize("per_dispatch", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("first", [0, 7, 10])
def test_dispatches_end_where_something_is_to_happen(per_dispatch: int, first: int) -> None:
    made = list(dispatches(first, 53, per_dispatch, (10, 6)))
    ends, counts = zip(*made, strict=True)
    assert sum(counts) == 53 - first
    assert ends == tuple(first + np.cumsum(counts))
    assert set(counts) <= {1, per_dispatch}
    wanted = {
        step for step in range(first + 1, 54) if step % 10 == 0 or step % 6 == 0 or step == 53
    }
    assert wanted <= set(ends)
