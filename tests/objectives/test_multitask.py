"""Eq. 4 with missing labels, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from osteojax import objectives
from osteojax.data.cohort import PreparedCohort
from osteojax.objectives.multitask import multitask_losses
from osteojax.train.parallel import DataParallel
from tests.small_runs import fine_tuning
from tests.tiny_cohort import write_tiny_cohort


def example(batch: int = 8) -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    outputs = {
        "logits": rng.normal(size=(batch, 2)),
        "bmd": rng.normal(size=batch),
        "level_logits": rng.normal(size=(batch, 18)),
    }
    label = np.array([0, 1, -1, 1, -1, -1, -1, -1])[:batch]
    bmd = np.where(np.arange(batch) % 3 == 0, np.nan, rng.normal(size=batch))
    targets = {"label": label, "bmd": bmd, "level": rng.integers(0, 18, batch)}
    return (
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), outputs),
        {"label": jnp.asarray(label), "bmd": jnp.asarray(bmd, jnp.float32),
         "level": jnp.asarray(targets["level"])},
    )  # fmt: skip


def expected(outputs: dict, targets: dict) -> dict[str, float]:
    o, t = (jax.tree.map(lambda x: np.asarray(x, np.float64), d) for d in (outputs, targets))
    label, level = t["label"].astype(int), t["level"].astype(int)
    rows = np.arange(len(label))
    known, measured = label >= 0, ~np.isnan(t["bmd"])
    ce = -log_softmax(o["logits"], axis=1)[rows, np.maximum(label, 0)]
    return {
        "diagnosis": ce[known].mean(),
        "bmd": ((o["bmd"] - t["bmd"])[measured] ** 2).mean(),
        "position": -log_softmax(o["level_logits"], axis=1)[rows, level].mean(),
    }


def test_losses_and_gradients_with_missing_labels() -> None:
    outputs, targets = example()
    got = multitask_losses(outputs, targets, None)
    for name, value in expected(outputs, targets).items():
        assert float(got[name]) == pytest.approx(value, rel=1e-5)
    gradient = jax.grad(lambda o: sum(multitask_losses(o, targets, None).values()))(outputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.asarray(gradient["logits"])[np.asarray(targets["label"]) < 0].any()


def test_the_global_count_divides_the_global_sum() -> None:
    # All labels sit in the first half: a mean of per-device means would halve the loss.
    outputs, targets = example()
    devices = DataParallel.create(num_devices=4)
    sharded = devices.map_reduce(lambda _, batch: multitask_losses(*batch, "data"))(
        (), (outputs, targets)
    )
    for name, value in expected(outputs, targets).items():
        assert float(sharded[name]) == pytest.approx(value, rel=1e-5)


def test_no_label_at_all_gives_zero() -> None:
    outputs, targets = example()
    nothing = {**targets, "label": -jnp.ones(8, jnp.int32), "bmd": jnp.full(8, jnp.nan)}
    got = multitask_losses(outputs, nothing, None)
    assert float(got["diagnosis"]) == 0.0
    assert float(got["bmd"]) == 0.0


def test_device_dropout_is_by_record_and_near_its_rate(tmp_path) -> None:
    cohort = PreparedCohort(write_tiny_cohort(tmp_path / "pool", patients=5))
    objective = objectives.load(fine_tuning(), cohort)
    index, device = jnp.arange(4000), jnp.zeros(4000, jnp.int32)
    dropped = np.asarray(objective._drop_device(device, index, jax.random.key(0)))
    assert set(dropped) == {0, 3}
    assert (dropped == 3).mean() == pytest.approx(0.1, abs=0.02)
    part = objective._drop_device(device[:10], index[100:110], jax.random.key(0))
    np.testing.assert_array_equal(part, dropped[100:110])
