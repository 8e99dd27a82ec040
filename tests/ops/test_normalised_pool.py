"""A norm with a max-pool: its forms against float64 NumPy and one another."""

from __future__ import annotations

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.ops import normalised_pool as pools
from osteojax.ops.normalised_pool import normalised_max_pool, oriented_by
from tests.platform_forms import traced_as_on

SHAPES = [(2, 8, 8, 8, 3), (1, 9, 5, 6, 2), (2, 1, 2, 3, 2), (2, 7, 8, 3), (2, 5, 6, 16, 64)]
FORMS = ("_early", "_late", "_late_kept")


def _drawn(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def _affine(channels):
    """Mean, factor and bias; factors of either sign."""
    mean, mul, bias = (_drawn((channels,), seed=seed) for seed in (2, 3, 4))
    signs = jnp.where(jnp.arange(channels) % 2, -1.0, 1.0)
    return mean, signs * (jnp.abs(mul) + 0.1), bias


def _run(form, dtype, inputs, dy=None):
    """(result, gradients) of one form, as `normalised_max_pool` puts them together."""

    @jax.jit
    def run(dy, *inputs):
        oriented = _oriented(form, inputs)
        y, *kept = getattr(pools, form)(dtype, *oriented)
        dy = jnp.ones_like(y) if dy is None else dy
        if form == "_early":
            _, transpose = jax.vjp(lambda *a: pools._early(dtype, *a)[0], *inputs)
            return y, transpose(dy)
        gradients = getattr(pools, f"{form}_gradients")
        return y, _oriented(form, gradients(dtype, *oriented, *kept, dy), inputs[2])

    return run(dy, *inputs)


def _oriented(form, inputs, mul=None):
    """x, mean and mul, or their gradients, with the signs of the platform; bias as it is."""
    x, mean, factor, bias = inputs
    mul = factor if mul is None else mul
    with contextlib.nullcontext() if form == "_early" else traced_as_on("tpu"):
        x, sign = oriented_by(mul, x)
    return x, mean * sign, factor * sign, bias


@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_with_a_pool_equals_float64_numpy(shape):
    x, affine = _drawn(shape), _affine(shape[-1])
    wide = np.asarray(x, float)
    mean, mul, bias = (np.asarray(a, float) for a in affine)
    normed = np.maximum((wide - mean) * mul + bias, 0)
    rank = len(shape) - 2
    padded = np.pad(normed, [(0, 0), *[(1, 2)] * rank, (0, 0)], constant_values=-np.inf)
    counts = [-(-size // 2) for size in shape[1:-1]]
    windows = [
        padded[(slice(None), *(slice(t, t + 2 * c, 2) for t, c in zip(taps, counts, strict=True)))]
        for taps in itertools.product(range(3), repeat=rank)
    ]
    expected = np.max(windows, axis=0)
    for form in FORMS:
        np.testing.assert_allclose(_run(form, jnp.float32, (x, *affine))[0], expected, atol=1e-5)
    np.testing.assert_allclose(normalised_max_pool(x, *affine, jnp.float32), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_forms_are_equal_to_the_bit(shape, dtype):
    inputs = (_drawn(shape, dtype), *_affine(shape[-1]))
    first, *others = (_run(form, dtype, inputs)[0] for form in FORMS)
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS[1:])
def test_their_gradients_are_equal_in_float32(shape, form):
    inputs = (_drawn(shape), *_affine(shape[-1]))
    dy = _drawn(pools._early(jnp.float32, *inputs)[0].shape, seed=5)
    for ours, early in zip(
        _run(form, jnp.float32, inputs, dy)[1], _run("_early", jnp.float32, inputs, dy)[1],
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(ours, early, rtol=0, atol=1e-6 * float(jnp.abs(early).max()))


@pytest.mark.parametrize(("form", "channels"), [("_late_kept", 4), ("_late", 4), ("_late", 64)])
def test_the_gradients_error_in_bfloat16_is_not_larger_than_that_of_the_plain_form(form, channels):
    """Ties are common: two of them share the gradient, as in the plain form; of three it is two."""
    shape = (8, 16, 16, 16, channels)
    x, affine = _drawn(shape), _affine(channels)
    dy = _drawn((8, 8, 8, 8, channels), seed=5)
    exact = _run("_early", jnp.float32, (x, *affine), dy)[1]

    def error(form):
        inputs = (x.astype(jnp.bfloat16), *affine)
        found = _run(form, jnp.bfloat16, inputs, dy.astype(jnp.bfloat16))[1]
        return [
            float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
            for a, b in zip(found, exact, strict=True)
        ]

    ours, plain = error(form), error("_early")
    print(form, ours, "plain", plain)
    assert ours[0] <= 1.005 * plain[0]
    assert max(ours[1:]) <= 0.02  # rounding of sums


@pytest.mark.parametrize("form", FORMS)
def test_a_factor_of_zero(form):
    """Every voxel ties: no gradient reaches x, and that of the factor is of one voxel of the
    window, or of several of them."""
    x, (mean, mul, _) = _drawn((2, 8, 8, 8, 3)), _affine(3)
    mul, bias = mul.at[1].set(0.0), jnp.array([0.1, 0.5, -0.5])
    y, (dx, d_mean, d_mul, d_bias) = _run(form, jnp.float32, (x, mean, mul, bias))
    np.testing.assert_array_equal(y[..., 1], 0.5)
    assert not dx[..., 1].any()
    assert d_mean[1] == 0
    np.testing.assert_allclose(d_bias[1], y[..., 1].size)
    centred = x[..., 1] - mean[1]
    assert centred.min() <= d_mul[1] / y[..., 1].size <= centred.max()


def test_the_smallest_voxel_and_its_places():
    x = jnp.round(2 * _drawn((2, 5, 6, 3, 2)))  # with many ties
    smallest, first, last = jax.jit(lambda x: pools._smallest_and_places(pools._windows(x)))(x)
    padded = np.pad(np.asarray(x), [(0, 0), *[(1, 2)] * 3, (0, 0)], constant_values=np.inf)
    for n, i, j, k, c in np.ndindex(*smallest.shape):
        window = padded[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, 2 * k : 2 * k + 3, c].ravel()
        assert smallest[n, i, j, k, c] == window.min()
        assert first[n, i, j, k, c] == window.argmin()
        assert last[n, i, j, k, c] == 26 - window[::-1].argmin()
    assert (np.asarray(first) != np.asarray(last)).any()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_channels_are_turned_on_accelerators_alone(platform):
    scale, x = jnp.array([-2.0, -0.0, 0.0, 3.0]), _drawn((2, 4, 4, 4, 4))
    same, ones = oriented_by(scale, x)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(ones, 1)
    with traced_as_on(platform):
        turned, signs = oriented_by(scale, x)
    np.testing.assert_array_equal(signs, [1, -1, -1, -1])
    np.testing.assert_array_equal(turned, x * signs)
