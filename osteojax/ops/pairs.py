"""Two neighbours along the last axis of space as one voxel of twice the channels: for a TPU.

A TPU's registers and its matrix unit are 128 channels wide, so that a layer of 64 leaves half of
them empty. Layers that take and give pairs do the same with full ones; between two of them the
reshapes cancel, because `paired(unpaired(x))` is x.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct

CHANNELS = 64
"""A layer of so many is computed in pairs."""
SHORTEST = 16
"""Below so many voxels along the axis there is little to gain."""

Pads = tuple[tuple[int, int], ...]


def fill_registers(x: Array | ShapeDtypeStruct) -> bool:
    """Whether pairs of the volumes f[N, D, H, W, C] do."""
    return (
        x.ndim == 5 and x.shape[-1] == CHANNELS and x.shape[-2] % 2 == 0 and x.shape[-2] >= SHORTEST
    )


def paired(x: Array) -> Array:
    """f[..., W, C] -> f[..., W / 2, 2 C], the first of two voxels first."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // 2, 2 * x.shape[-1])


def unpaired(x: Array) -> Array:
    """f[..., W / 2, 2 C] -> f[..., W, C]."""
    return x.reshape(*x.shape[:-2], 2 * x.shape[-2], x.shape[-1] // 2)


def for_both(parameter: Array) -> Array:
    """f[..., C] -> f[..., 2 C]: the same for both voxels of a pair."""
    return jnp.concatenate([parameter, parameter], axis=-1)


def in_pairs(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of voxels and parameters of their channels, computed for pairs."""

    def of_pairs(x: Array, *parameters: Array) -> Array:
        return unpaired(function(paired(x), *map(for_both, parameters)))

    return of_pairs


def pair_kernel(kernel: Array, width: int, pads: Pads) -> tuple[Array, Pads]:
    """What a convolution of stride 1 of pairs needs to be that of the voxels.

    A tap reads the voxel w + tap - low of voxel w. Of pair q that is voxel 2 (q + u) + i, i of the
    pair q + u, for the pair's own voxels w = 2 q and 2 q + 1.

    Args:
      kernel: f[.., taps, C, O].
      width: voxels along the last axis of space, even, as the result's must be.
      pads: zeros before and behind each axis of space.

    Returns:
      kernel f[.., pair taps, 2 C, 2 O], pads.
    """
    taps, (low, high) = kernel.shape[-3], pads[-1]
    first = -low // 2  # rounded down
    pair_taps = (taps - low) // 2 - first + 1
    both = []
    for voxel in (0, 1):
        before = voxel - low - 2 * first
        around = [(0, 0)] * kernel.ndim
        around[-3] = (before, 2 * pair_taps - taps - before)
        placed = jnp.pad(kernel, around)
        channels = 2 * kernel.shape[-2]
        both.append(placed.reshape(*kernel.shape[:-3], pair_taps, channels, kernel.shape[-1]))
    count = width + low + high - taps + 1
    behind = count // 2 - width // 2 + first + pair_taps - 1
    return jnp.concatenate(both, axis=-1), (*pads[:-1], (-first, behind))
