"""Plain texture numbers of a vertebral body, computed on the device.

They are the columns `body_*` of a prepared folder's table (`osteojax.data.vertebra_columns`), which
`prepare` computes in float64: a model that takes them is trained on the table, and an exported
program computes them itself.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from osteojax.data.vertebra_columns import BODY_LAGS

LEAST_SQUARE_HU2 = 1.0
"""Smallest mean square whose logarithm is taken: far below the noise of any CT."""

AnyArray = TypeVar("AnyArray", Array, np.ndarray)


def body_numbers(hu_BDHW: Array, body_BDHW: Array) -> Array:
    """Mean, SD and mean square differences of the HU of bodies; jittable.

    Args:
      hu_BDHW: f32[B, D, H, W] HU, already clipped to the window of the stored images.
      body_BDHW: bool[B, D, H, W], the voxels that count.

    Returns:
      f32[B, 11]: mean HU, SD of HU (divided by the number of voxels), then in HU^2 the mean square
      difference of voxels 1, 2 and 3 apart along D, along H and along W, both in the body. NaN
      where there is no such voxel or pair.
    """
    space = (1, 2, 3)
    count_B = jnp.sum(body_BDHW, axis=space, dtype=jnp.float32)
    mean_B = jnp.sum(jnp.where(body_BDHW, hu_BDHW, 0.0), axis=space) / count_B
    # Differences from the mean are small, so that float32 sums of their squares stay exact enough.
    centred = jnp.where(body_BDHW, hu_BDHW - mean_B[:, None, None, None], 0.0)
    numbers = [mean_B, jnp.sqrt(jnp.sum(jnp.square(centred), axis=space) / count_B)]
    for axis in space:
        size = body_BDHW.shape[axis]
        for lag in BODY_LAGS:
            low, high = (0, max(size - lag, 0)), (min(lag, size), size)
            both = _part(body_BDHW, axis, low) & _part(body_BDHW, axis, high)
            step = jnp.where(both, _part(centred, axis, high) - _part(centred, axis, low), 0.0)
            pairs_B = jnp.sum(both, axis=space, dtype=jnp.float32)
            numbers.append(jnp.sum(jnp.square(step), axis=space) / pairs_B)
    return jnp.stack(numbers, axis=-1)


def _part(volumes: Array, axis: int, limits: tuple[int, int]) -> Array:
    return lax.slice_in_dim(volumes, *limits, axis=axis)


def log_squares(numbers: AnyArray) -> AnyArray:
    """Takes the natural logarithm of the mean squares of f[..., 11], which spread over decades, at
    least of `LEAST_SQUARE_HU2`; mean and SD stay as they are. NaN stays NaN."""
    xp = jnp if isinstance(numbers, jax.Array) else np
    logs = xp.log(xp.maximum(numbers[..., 2:], LEAST_SQUARE_HU2))
    return xp.concatenate([numbers[..., :2], logs], axis=-1)


def z_scored(numbers: Array, mean: Array, std: Array) -> Array:
    """f32[B, 11] in units of the SD from the mean; 0, the mean, where a number is missing."""
    scores = (numbers - mean) / std
    return jnp.where(jnp.isfinite(scores), scores, 0.0)
