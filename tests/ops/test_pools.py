"""Pools against flax."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.ops.pools import max_pool

SHAPES = [(2, 8, 8, 8, 3), (1, 9, 5, 6, 2), (2, 1, 2, 3, 2), (2, 7, 8, 3)]


def _drawn(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_max_pool_equals_reduce_window_in_value_and_gradient(shape):
    x = jnp.asarray(
        np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape), jnp.float32
    )
    rank = len(shape) - 2

    def flax(x):
        return nn.max_pool(x, (3,) * rank, (2,) * rank, padding=((1, 1),) * rank)

    y, transpose = jax.vjp(jax.jit(max_pool), x)
    expected, expected_transpose = jax.vjp(jax.jit(flax), x)
    np.testing.assert_array_equal(y, expected)
    dy = _drawn(y.shape, seed=1)
    np.testing.assert_allclose(transpose(dy)[0], expected_transpose(dy)[0], rtol=1e-5, atol=1e-6)
