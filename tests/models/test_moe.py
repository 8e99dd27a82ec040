"""Eq. 2 and 3 against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.models.heads import Projector, Prototypes, l2_normalise
from osteojax.models.moe import MixtureOfExperts


def embedding(batch: int = 6, features: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, features)).astype(np.float32)


def dense(p: dict, x: np.ndarray, expert: int | None = None) -> np.ndarray:
    kernel, bias = (np.asarray(p[k], np.float64) for k in ("kernel", "bias"))
    if expert is not None:
        kernel, bias = kernel[expert], bias[expert]
    return x @ kernel + bias


def test_equals_the_equations() -> None:
    x, device = embedding(), jnp.array([0, 1, 2, 3, 0, 1])
    module = MixtureOfExperts(num_scanners=4, gate_dim=5, expert_dim=7)
    variables = module.init(jax.random.key(1), x, device)
    got = module.apply(variables, x, device)
    p = variables["params"]
    table = np.asarray(p["device_embedding"]["embedding"], np.float64)
    hidden = np.maximum(dense(p["gate_hidden"], x + table[np.asarray(device)]), 0)
    gate = np.exp(dense(p["gate_output"], hidden))
    gate /= gate.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got["gate"], gate, rtol=1e-4)
    expected = {"diagnosis": 0.0, "bmd": 0.0, "position": 0.0}
    for expert in range(3):
        hidden = np.maximum(dense(p["experts"]["hidden"], x, expert), 0)
        for name in expected:
            weighted = gate[:, expert, None] * dense(p["experts"][name], hidden, expert)
            expected[name] = expected[name] + weighted
    np.testing.assert_allclose(got["logits"], expected["diagnosis"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["bmd"], expected["bmd"][:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["level_logits"], expected["position"], rtol=1e-4, atol=1e-5)


def test_experts_start_different_and_the_device_matters() -> None:
    x = embedding()
    module = MixtureOfExperts(num_scanners=4)
    variables = module.init(jax.random.key(1), x, jnp.zeros(6, jnp.int32))
    kernel = variables["params"]["experts"]["hidden"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    first = module.apply(variables, x, jnp.zeros(6, jnp.int32))
    other = module.apply(variables, x, jnp.ones(6, jnp.int32))
    assert not np.allclose(first["bmd"], other["bmd"])
    blind = MixtureOfExperts(num_scanners=4, use_device=False)
    variables = blind.init(jax.random.key(1), x, jnp.zeros(6, jnp.int32))
    np.testing.assert_array_equal(
        blind.apply(variables, x, jnp.zeros(6, jnp.int32))["bmd"],
        blind.apply(variables, x, jnp.ones(6, jnp.int32))["bmd"],
    )


def test_one_expert_is_the_plain_head() -> None:
    x = embedding()
    module = MixtureOfExperts(num_scanners=4, num_experts=1)
    variables = module.init(jax.random.key(1), x, jnp.zeros(6, jnp.int32))
    assert set(variables["params"]) == {"experts"}
    assert (module.apply(variables, x, jnp.zeros(6, jnp.int32))["gate"] == 1).all()


def test_projections_and_prototypes_are_on_the_unit_sphere() -> None:
    x = embedding()
    projector = Projector(hidden_dim=16, output_dim=8)
    z, _ = projector.apply(
        projector.init(jax.random.key(0), x, train=False), x, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-5)
    prototypes = Prototypes(num_prototypes=5, dim=8)
    variables = prototypes.init(jax.random.key(0), z)
    vectors = np.asarray(variables["params"]["vectors"], np.float64)
    cosines = np.asarray(z) @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    np.testing.assert_allclose(prototypes.apply(variables, z), cosines, atol=1e-5)


def test_normalising_zero_keeps_the_gradient_finite() -> None:
    gradient = jax.grad(lambda x: l2_normalise(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()
    assert l2_normalise(jnp.full((1, 4), 3.0)).sum() == pytest.approx(2.0)
