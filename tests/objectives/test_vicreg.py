"""The three terms in float64 against their formulas, on any number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.objectives.vicreg import vicreg_terms
from osteojax.train.parallel import DataParallel
from osteojax.types import AXIS


def example(num_views: int = 2) -> np.ndarray:
    """Some dimensions spread more than gamma, some less; correlated."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5)) * np.array([0.2, 0.4, 0.8, 1.0, 1.5])
    return rng.normal(size=(8, num_views, 5)) @ mixing + 3.0


def reference(projection_GVD: np.ndarray) -> dict[str, float]:
    """Bardes, Ponce, LeCun 2022, eq. 1-5, sum by sum; eq. 5 as a mean over dimensions."""
    count, num_views, dim = projection_GVD.shape
    variance = covariance = 0.0
    for v in range(num_views):
        z = projection_GVD[:, v]
        mean = sum(z[i] for i in range(count)) / count
        matrix = sum(np.outer(z[i] - mean, z[i] - mean) for i in range(count)) / (count - 1)
        for j in range(dim):
            variance += max(0.0, 1.0 - np.sqrt(np.var(z[:, j], ddof=1) + 1e-4)) / dim
            covariance += sum(matrix[j, k] ** 2 for k in range(dim) if k != j) / dim
    pairs = [(s, t) for s in range(num_views) for t in range(s)]
    distances = [np.mean((projection_GVD[:, s] - projection_GVD[:, t]) ** 2) for s, t in pairs]
    return {
        "invariance": float(np.mean(distances)),
        "variance": float(variance),
        "covariance": float(covariance),
    }


@pytest.mark.parametrize("num_views", [2, 3])
def test_one_device(num_views: int) -> None:
    projection = example(num_views)
    with jax.enable_x64(True):
        found = vicreg_terms(jnp.asarray(projection), None)
    assert 0.0 < reference(projection)["variance"] < 2.0  # some dimensions are below gamma
    for name, value in reference(projection).items():
        assert found[name].dtype == jnp.float64
        assert float(found[name]) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_statistics_are_of_the_global_batch(num_devices: int) -> None:
    """The terms, and the gradient of their weighted sum. On 8 devices each has one vertebra."""
    projection, weights = example(), {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}

    def loss(projection_BVD: jax.Array) -> jax.Array:
        terms = vicreg_terms(projection_BVD, AXIS)
        return sum((weights[name] * terms[name] for name in terms), jnp.zeros(()))

    def expected(projection: np.ndarray) -> float:
        return sum(weights[name] * value for name, value in reference(projection).items())

    devices = DataParallel.create(num_devices=num_devices)
    with jax.enable_x64(True):
        batch = {"z": projection}
        total = devices.map_reduce(lambda _, batch: loss(batch["z"]))({}, batch)
        gradient = devices.map_forward(lambda _, batch: jax.grad(loss)(batch["z"]))({}, batch)
    assert float(total) == pytest.approx(expected(projection), rel=1e-12)
    for place in [(0, 0, 0), (3, 1, 2), (7, 1, 4)]:  # central differences of the formulas
        moved = np.zeros_like(projection)
        moved[place] = 1e-5
        slope = (expected(projection + moved) - expected(projection - moved)) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=1e-6)


def test_collapse_costs_the_variance_alone() -> None:
    terms = vicreg_terms(jnp.ones((6, 2, 4)), None)
    assert float(terms["invariance"]) == float(terms["covariance"]) == 0.0
    assert float(terms["variance"]) == pytest.approx(2 * (1 - 0.01), rel=1e-5)  # epsilon's root
