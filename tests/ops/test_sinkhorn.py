"""Sinkhorn against a float64 reference in the linear domain, and against exact transport."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from scipy.optimize import linprog

from osteojax.ops.sinkhorn import sinkhorn, sinkhorn_of_each
from tests.platform_forms import traced_as_on


def reference(scores_BK: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """The algorithm as SwAV states it: float64, linear domain, prototypes by samples."""
    q_KB = np.exp(scores_BK.astype(np.float64) / epsilon).T
    q_KB /= q_KB.sum()
    k, b = q_KB.shape
    for _ in range(iterations):
        q_KB /= q_KB.sum(axis=1, keepdims=True) * k
        q_KB /= q_KB.sum(axis=0, keepdims=True) * b
    return (q_KB * b).T


@pytest.mark.parametrize(("batch", "prototypes"), [(32, 128), (128, 16), (8, 8)])
def test_equals_float64_reference(batch: int, prototypes: int) -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (batch, prototypes)).astype(np.float32)
    got = sinkhorn(scores, epsilon=0.05, num_iterations=3)
    np.testing.assert_allclose(got, reference(scores, 0.05, 3), rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(np.sum(got, axis=1), 1.0, rtol=1e-5)


def test_many_iterations_share_prototypes_equally() -> None:
    scores = np.random.default_rng(1).uniform(-1, 1, (64, 8)).astype(np.float32)
    got = sinkhorn(scores, epsilon=0.2, num_iterations=200)
    np.testing.assert_allclose(np.sum(got, axis=0), 64 / 8, rtol=1e-3)


def test_small_epsilon_is_exact_transport() -> None:
    batch, prototypes = 12, 4
    scores = np.random.default_rng(2).uniform(-1, 1, (batch, prototypes)).astype(np.float32)
    rows = np.kron(np.eye(batch), np.ones(prototypes))
    columns = np.kron(np.ones(batch), np.eye(prototypes))
    exact = linprog(
        -scores.ravel(), A_eq=np.vstack([rows, columns]), b_eq=[1.0] * batch + [3.0] * prototypes
    )
    got = sinkhorn(scores, epsilon=0.005, num_iterations=500)
    assert np.sum(got * scores) == pytest.approx(-exact.fun, rel=5e-3)


def test_no_overflow_in_half_precision_and_no_gradient() -> None:
    scores = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (16, 32)), jnp.bfloat16)
    got = sinkhorn(scores, epsilon=0.01)
    assert got.dtype == jnp.float32
    assert np.isfinite(got).all()
    gradient = jax.grad(lambda s: jnp.sum(sinkhorn(s) ** 2))(scores.astype(jnp.float32))
    assert not gradient.any()


@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_equals_one_device(devices: int) -> None:
    scores = np.random.default_rng(4).uniform(-1, 1, (64, 24)).astype(np.float32)
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    spec = PartitionSpec("data")
    sharded = jax.jit(
        jax.shard_map(
            lambda s: sinkhorn(s, axis_name="data"), mesh=mesh, in_specs=spec, out_specs=spec
        )
    )
    np.testing.assert_allclose(sharded(scores), sinkhorn(scores), rtol=1e-5, atol=1e-8)


SEVERAL = [
    np.random.default_rng(7).uniform(-1, 1, (size, 24)).astype(np.float32) for size in (64, 96, 64)
]
SETTINGS = {"epsilon": 0.05, "num_iterations": 3, "axis_name": "data"}


def on_eight(function):
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    spec = PartitionSpec("data")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec))


def each_alone() -> list[jax.Array]:
    return [on_eight(lambda scores: sinkhorn(scores, **SETTINGS))(each) for each in SEVERAL]


def test_on_a_cpu_several_batches_are_each_as_alone_to_the_bit() -> None:
    together = on_eight(lambda scores: sinkhorn_of_each(scores, **SETTINGS))(SEVERAL)
    for found, alone in zip(together, each_alone(), strict=True):
        np.testing.assert_array_equal(found, alone)


def test_on_a_gpu_several_batches_share_their_sums_and_nothing_else() -> None:
    with traced_as_on("cuda"):
        program = on_eight(lambda scores: sinkhorn_of_each(scores, **SETTINGS)).lower(SEVERAL)
    # a maximum and a sum in each of three iterations, whatever the number of batches
    assert program.as_text().count("stablehlo.all_reduce") == 6
    for found, alone in zip(program.compile()(SEVERAL), each_alone(), strict=True):
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-8)


def test_order_of_samples_does_not_matter() -> None:
    scores = np.random.default_rng(5).uniform(-1, 1, (32, 16)).astype(np.float32)
    order = np.random.default_rng(6).permutation(32)
    np.testing.assert_allclose(
        sinkhorn(scores[order]), np.asarray(sinkhorn(scores))[order], rtol=1e-4, atol=1e-8
    )
