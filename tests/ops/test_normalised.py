"""A norm applied, and ReLU: what a GPU runs against JAX's own gradients, and float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.ops import normalised as module
from osteojax.ops.normalised import gradients_in_few_passes, normalised, plain, relu_of_sum

SHAPE = (4, 6, 5, 4, 6)


def _inputs(dtype=jnp.float32, samples=1):
    """x, mean, mul and bias; factors of either sign, one of them zero."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(SHAPE), dtype)
    affine = rng.standard_normal((2, samples, 1, 1, 1, SHAPE[-1]))
    bias = rng.standard_normal((1, 1, 1, 1, SHAPE[-1]))
    mean, mul, bias = (jnp.asarray(a, jnp.float32) for a in (*affine, bias))
    return x, mean, mul.at[..., 2].set(0.0), bias


def _dy(dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE), dtype)


@pytest.mark.parametrize("samples", [1, SHAPE[0]])
@pytest.mark.parametrize("with_relu", [True, False])
def test_gradients_in_few_passes_are_those_of_jax(samples, with_relu):
    inputs, dy = _inputs(samples=samples), _dy()
    apply = functools.partial(plain, dtype=jnp.float32, relu=with_relu)
    expected = jax.jit(lambda *inputs: jax.vjp(apply, *inputs)[1](dy))(*inputs)
    found = jax.jit(functools.partial(gradients_in_few_passes, jnp.float32, with_relu))(*inputs, dy)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("with_relu", [True, False])
def test_in_bfloat16_they_are_no_further_from_float64(with_relu):
    """XLA's own form rounds the gradient behind the ReLU to bfloat16 before it is summed."""
    inputs, dy = _inputs(jnp.bfloat16), _dy(jnp.bfloat16)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, float)) for a in (*inputs, dy)]
        # The mask is that of the rounded result, as it is in both.
        on = np.asarray(plain(*inputs, dtype=jnp.bfloat16) > 0) if with_relu else 1.0
        apply = functools.partial(plain, dtype=jnp.float64)
        exact = jax.vjp(apply, *wide[:4])[1](wide[4] * on)
        exact = [np.asarray(a) for a in exact]
    apply = functools.partial(plain, dtype=jnp.bfloat16, relu=with_relu)
    theirs = jax.vjp(apply, *inputs)[1](dy)
    ours = gradients_in_few_passes(jnp.bfloat16, with_relu, *inputs, dy)
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        error = [np.linalg.norm(np.asarray(g, float) - truth) for g in (a, b)]
        print("ours, JAX's:", error)
        assert error[0] <= 1.01 * error[1] + 1e-6 * np.linalg.norm(truth)


def test_relu_of_a_sum_equals_jax_in_value_and_gradient():
    x, other = jnp.asarray([-1.0, -0.0, 0.0, 1e-30, 1.0]), jnp.asarray([0.5, 0.0, 0.0, 0.0, 1.0])
    for function in (relu_of_sum, lambda x, y: jax.nn.relu(x + y)):
        y, transpose = jax.vjp(function, x, other)
        np.testing.assert_array_equal(y, jnp.maximum(x + other, 0))
        for gradient in transpose(jnp.full(5, 3.0)):
            np.testing.assert_array_equal(gradient, [0, 0, 0, 3, 3])


def test_what_is_differentiated_off_a_gpu_is_plain(monkeypatch):
    """The few passes are for NVIDIA GPUs: the CPU's operations stay what they were."""

    def wrong(dtype, relu, *inputs):
        return tuple(jnp.full_like(a, jnp.nan) for a in inputs[:4])

    monkeypatch.setattr(module, "gradients_in_few_passes", wrong)
    inputs, dy = _inputs(), _dy()
    found = jax.jit(
        lambda *inputs: jax.vjp(lambda *a: normalised(*a, jnp.float32, True), *inputs)[1](dy)
    )(*inputs)
    apply = functools.partial(plain, dtype=jnp.float32, relu=True)
    expected = jax.jit(lambda *inputs: jax.vjp(apply, *inputs)[1](dy))(*inputs)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
