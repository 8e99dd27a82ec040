"""NT-Xent in float64 against its formula, on any number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.objectives.simclr import nt_xent
from osteojax.train.parallel import DataParallel
from osteojax.types import AXIS

TEMPERATURE = 0.2


def unit_rows(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference(projection_GVD: np.ndarray) -> float:
    """Chen et al. 2020, eq. 1: mean of l(i, j) over all ordered positive pairs."""
    num_vertebrae, num_views, _ = projection_GVD.shape
    everything = [(g, v) for g in range(num_vertebrae) for v in range(num_views)]
    losses = []
    for i in everything:
        others = [k for k in everything if k != i]
        total = sum(np.exp(projection_GVD[i] @ projection_GVD[k] / TEMPERATURE) for k in others)
        for j in others:
            if j[0] == i[0]:
                similarity = projection_GVD[i] @ projection_GVD[j] / TEMPERATURE
                losses.append(-np.log(np.exp(similarity) / total))
    return float(np.mean(losses))


@pytest.mark.parametrize("num_views", [2, 3])
def test_one_device(num_views: int) -> None:
    projection = unit_rows(8, num_views, 5)
    with jax.enable_x64(True):
        found = nt_xent(jnp.asarray(projection), TEMPERATURE, None)
    assert found.dtype == jnp.float64
    assert float(found) == pytest.approx(reference(projection), rel=1e-12)


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_the_negatives_are_the_global_batch(num_devices: int) -> None:
    """The loss, and its gradient, which travels back to the devices that gave the negatives."""
    projection = unit_rows(8, 2, 5)

    def loss(projection_BVD: jax.Array) -> jax.Array:
        return jax.lax.pmean(nt_xent(projection_BVD, TEMPERATURE, AXIS), AXIS)

    devices = DataParallel.create(num_devices=num_devices)
    with jax.enable_x64(True):
        mapped = devices.map_forward(lambda _, batch: jax.grad(loss)(batch["z"]))
        gradient = mapped({}, {"z": projection})
        total = devices.map_reduce(lambda _, batch: loss(batch["z"]))({}, {"z": projection})
    assert float(total) == pytest.approx(reference(projection), rel=1e-12)
    for place in [(0, 0, 0), (3, 1, 2), (7, 1, 4)]:  # central differences of the formula
        moved = np.zeros_like(projection)
        moved[place] = 1e-5
        slope = (reference(projection + moved) - reference(projection - moved)) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=1e-6)


def test_nothing_learnt_is_chance() -> None:
    same = jnp.ones((6, 2, 4)) / 2.0
    assert float(nt_xent(same, 0.1, None)) == pytest.approx(np.log(2 * 6 - 1), rel=1e-6)
