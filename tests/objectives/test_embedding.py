"""Running a model over rows, and the running statistics of the image member."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from osteojax.data.cohort import PreparedCohort
from osteojax.data.views import Supervised
from osteojax.objectives.embedding import image_batch_statistics, run_over
from osteojax.train.parallel import DataParallel
from osteojax.types import AXIS


@pytest.fixture(scope="module")
def cohort(tiny_pool) -> PreparedCohort:
    return PreparedCohort(tiny_pool)


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_every_row_in_order_on_any_number_of_devices(cohort, num_devices: int) -> None:
    devices = DataParallel.create(num_devices=num_devices)
    rows = cohort.rows("valid", "test")[:13]
    forward = devices.map_forward(
        lambda scale, batch: {"mean": scale * batch["codes"].astype(jnp.float32).mean((1, 2, 3, 4))}
    )
    got = run_over(cohort, rows, Supervised(), forward, jnp.float32(2.0), devices, 8, "test")
    expected = [2 * cohort.members(int(row), ["image"]).mean() for row in rows]
    np.testing.assert_allclose(got["mean"], expected, rtol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_statistics_are_those_of_the_images(cohort: PreparedCohort, num_devices: int) -> None:
    devices = DataParallel.create(num_devices=num_devices)
    rows = cohort.rows("train")[:32]

    def train_mode(variables, batch):
        """A normalisation layer's update: 0.9 old + 0.1 of the global batch."""
        mean = lax.pmean(jnp.mean(batch["codes"].astype(jnp.float32)), AXIS)
        return {"mean": 0.9 * variables["batch_stats"]["mean"] + 0.1 * mean}

    stale = {"mean": jnp.float32(-1e3)}
    got = image_batch_statistics(
        devices.map_reduce(train_mode), {}, stale, cohort, rows, Supervised(), devices, 8
    )
    expected = np.mean([cohort.members(int(row), ["image"]).mean() for row in rows])
    assert float(got["mean"]) == pytest.approx(expected, rel=1e-3)
