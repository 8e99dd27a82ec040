"""Pooling of images and volumes by windows of stride 2.

f[B, *space, C] -> f[B, *ceil(space / 2), C] everywhere. Axes are pooled one after another from
slices, because on CPU a gradient that scatters voxel by voxel is slow.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

WINDOW = 3
"""Edge of the max-pool's window; one voxel of padding at both ends of every axis."""


def average_pool(x: Array) -> Array:
    """Mean over 2^rank windows, stride 2; at an odd edge, over the voxels that exist.

    In the dtype of `x`; sums are float32 or wider.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        count = -(-size // 2)
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (0, 2 * count - size, 0)
        padded = lax.pad(wide, jnp.zeros((), wide.dtype), config)
        first, second = (
            lax.slice_in_dim(padded, start, start + 2 * count - 1, 2, axis) for start in (0, 1)
        )
        weights = np.full(count, 0.5)
        weights[-1] = 1 / (size - 2 * (count - 1))  # 1 voxel of an odd axis, else 2
        wide = (first + second) * weights.astype(wide.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis))
    return wide.astype(x.dtype)


def max_pool(x: Array) -> Array:
    """Maximum over 3^rank windows, stride 2, one voxel of padding at both ends of every axis.

    Axes are pooled one after another, which takes 9 instead of 27 comparisons. The gradient selects
    from whole arrays, whereas that of `lax.reduce_window` scatters voxel by voxel on CPU. Ties
    share the gradient.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        count = -(-size // 2)
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (1, 2 * count - size, 0)
        padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), config)
        parts = [
            lax.slice_in_dim(padded, start, start + 2 * count - 1, 2, axis)
            for start in range(WINDOW)
        ]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x
