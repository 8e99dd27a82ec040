"""Pairs of neighbours and sums over windows: what texture maps are made of."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from jax import lax

ANGLES = tuple(a for a in itertools.product((-1, 0, 1), repeat=3) if a > (0, 0, 0))
"""One of each opposite pair of the 26 neighbours, as (depth, height, width) steps."""


def pair_ends(image, angle):
    """The two ends of every pair along `angle`, [..., D-|dz|, H-|dy|, W-|dx|] each."""
    first = tuple(slice(max(-step, 0), -step if step > 0 else None) for step in angle)
    second = tuple(slice(max(step, 0), step if step < 0 else None) for step in angle)
    return image[(..., *first)], image[(..., *second)]


def box_sum(image, axis: int, radius: int, taps: int):
    """Sums of `taps` neighbours along a negative axis padded by `radius` zeros at either end."""
    padding = [(0, 0)] * image.ndim
    padding[axis] = (radius, radius)
    padded = jnp.pad(image, padding)
    size = padded.shape[axis] - taps + 1
    axis += image.ndim
    # One fused loop over all taps: its loads hit the first cache, where log-step partial sums
    # would be written out and read again.
    total = lax.slice_in_dim(padded, 0, size, axis=axis)
    for tap in range(1, taps):
        total = total + lax.slice_in_dim(padded, tap, tap + size, axis=axis)
    return total
