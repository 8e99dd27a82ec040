"""Texture of whole patches, and maps of strided patches brought back to the image's size.

The paper's sliding window: every `stride` voxels a patch of (2r + 1)^3 is treated as a separate
image, so that its smallest value is grey level 1 (PyRadiomics' segment-based extraction on each
patch). With o = smallest level - 1, Autocorrelation loses 2 o JointAverage - o^2
against the dense map, JointAverage o; Contrast and DifferenceAverage are the same.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from osteojax.ops.texture.exact_windows import (
    Pairs,
    angles_and_weights,
    check_range,
    features_of_windows,
)
from osteojax.ops.texture.packed_patches import packed_patch_grid, packs
from osteojax.ops.texture.pair_features import FEATURES, check_features
from osteojax.ops.texture.windows import Window, pairs_in_window


def region_features(
    levels: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None = None,
    window: Window | None = None,
    *,
    features: tuple[str, ...] = FEATURES,
) -> dict[str, np.ndarray]:
    """GLCM features of whole regions: PyRadiomics' segment-based extraction on given grey levels.

    Args:
      levels: integer[..., D, H, W], 1 and up inside the mask. Leading axes are a batch of regions.
      mask: bool[..., D, H, W]; None is the whole array.
      window: distances, 2D, symmetry, weights; its kernel_radius does not matter.
      features: names out of `pair_features.ALL_FEATURES`. Idn and Idmn use the region's own
        largest level.

    Returns:
      float64[...] per feature; NaN for a region without a pair.
    """
    check_features(features)
    levels = np.asarray(levels)
    mask = np.ones(levels.shape, bool) if mask is None else np.asarray(mask)
    if levels.ndim < 3 or mask.shape != levels.shape:
        raise ValueError(
            f"levels {levels.shape} and mask {mask.shape}: [..., D, H, W], both of one shape."
        )
    window = _whole(window or Window(), levels.shape)
    top = int(levels.max(where=mask, initial=1))
    check_range(features, math.prod(levels.shape[-3:]), top)
    with jax.enable_x64(True):
        found = _regions(
            jnp.asarray(levels, jnp.int32), jnp.asarray(mask), window=window, features=features
        )
    return {name: np.asarray(value) for name, value in found.items()}


def patch_maps(
    levels: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None = None,
    window: Window | None = None,
    *,
    stride: int,
    features: tuple[str, ...] = FEATURES,
    init_value: float = 0.0,
    dtype: Any = jnp.float32,
) -> dict[str, jax.Array]:
    """Features of strided patches with grey levels of their own, interpolated to every voxel.

    Patches are centred at r, r + stride, ... and lie whole inside the array (one clipped patch
    along an axis shorter than a patch). Between the centres values are interpolated linearly;
    beyond the outermost ones they are repeated. Patches without a pair take no part.

    Args:
      levels: integer[D, H, W] grey levels from 1, of any origin: only differences matter.
      mask: bool[D, H, W] or None; pairs inside it count.
      window: see `Window`; None is kernel radius 3 and 13 angles at distance 1.
      stride: voxels between centres, at least 1.
      features: names out of `pair_features.ALL_FEATURES`.
      init_value: value of the voxels outside the mask.
      dtype: float32 or float64.

    Returns:
      dtype[D, H, W] per feature; NaN at voxels whose neighbouring patches all have no pair.
    """
    window = window or Window()
    check_features(features)
    levels = jnp.asarray(levels)
    inside = jnp.ones(levels.shape, bool) if mask is None else jnp.asarray(mask)
    if levels.ndim != 3 or not jnp.issubdtype(levels.dtype, jnp.integer):
        raise ValueError(f"levels are {levels.dtype}{levels.shape}; integer[D, H, W] is needed.")
    if inside.shape != levels.shape or inside.dtype != jnp.bool_:
        raise ValueError(f"mask is {inside.dtype}{inside.shape}; bool{levels.shape} is needed.")
    if stride != int(stride) or stride < 1:
        raise ValueError(f"stride is {stride}; it must be a whole number from 1.")
    radii = window.radii(levels.shape)
    centres = tuple(
        _centres(size, radius, stride) for size, radius in zip(levels.shape, radii, strict=True)
    )
    lowest = int(levels.min())
    num_levels = int(levels.max()) - lowest + 1
    if np.dtype(dtype) == np.float32 and packs(window, features, num_levels, levels.shape):
        where = None if mask is None else inside
        # int32, because 255 - 0 + 1 does not fit uint8.
        own = levels.astype(jnp.int32) - lowest + 1
        grid = packed_patch_grid(own, where, window, features, num_levels, stride)
        return {
            name: _brought_back(values, inside, init_value, centres=centres, dtype=dtype)
            for name, values in grid.items()
        }
    most = max((pairs_in_window(radii, a) for a in window.angles(levels.shape)), default=0)
    check_range(features, most, num_levels)
    with jax.enable_x64(True):
        grid = _patch_grid(
            levels.astype(jnp.int32),
            inside,
            window=window,
            features=features,
            centres=centres,
        )
        return {
            name: _brought_back(values, inside, init_value, centres=centres, dtype=dtype)
            for name, values in grid.items()
        }


def _whole(window: Window, shape: tuple[int, ...]) -> Window:
    """The same window settings with a radius that covers the whole array."""
    return dataclasses.replace(window, kernel_radius=max(shape[-3:]))


@partial(jax.jit, static_argnames=("window", "features"))
def _regions(levels, mask, *, window: Window, features) -> dict[str, jax.Array]:
    """f64[...]: features of each [..., D, H, W] as one window."""
    angles = window.angles(levels.shape)
    if not angles:
        return {name: jnp.full(levels.shape[:-3], jnp.nan) for name in features}
    top = jnp.where(mask, levels, 1).max(axis=(-3, -2, -1), keepdims=True)
    pairs = Pairs(levels, mask, top, max(window.distances), window.symmetrical, _total)
    found = features_of_windows(pairs, *angles_and_weights(window, angles), features)
    return {name: value[..., 0, 0, 0] for name, value in found.items()}


def _total(image, _angle) -> jax.Array:
    return image.sum(axis=(-3, -2, -1), keepdims=True)


def _centres(size: int, radius: int, stride: int) -> tuple[int, ...]:
    """Patch centres along an axis."""
    if size < 2 * radius + 1:
        return (size // 2,)
    return tuple(range(radius, size - radius, stride))


@partial(jax.jit, static_argnames=("window", "features", "centres"))
def _patch_grid(levels, mask, *, window: Window, features, centres) -> dict[str, jax.Array]:
    """f64[nz, ny, nx] features of the patches, a row at a time to bound memory."""
    offsets = [np.arange(-radius, radius + 1) for radius in window.radii(levels.shape)]
    (z, y, x), (dz, dy, dx) = [np.array(c) for c in centres], offsets
    pad = [(len(o) // 2,) * 2 for o in offsets]  # clipped patches: padding is outside the mask
    levels, mask = jnp.pad(levels, pad), jnp.pad(mask, pad)
    rows, columns = y[:, None] + dy + pad[1][0], x[:, None] + dx + pad[2][0]

    def one_row(centre):
        planes = centre + dz + pad[0][0]
        picked = (planes[:, None, None], rows[:, None, None, :, None], columns[:, None, None, :])
        patches, inside = levels[picked], mask[picked]
        lowest = jnp.where(inside, patches, jnp.iinfo(jnp.int32).max).min(
            (-3, -2, -1), keepdims=True
        )
        own = jnp.where(inside, patches - lowest + 1, 0)
        return _regions(own, inside, window=window, features=features)

    return lax.map(one_row, jnp.array(z))


@partial(jax.jit, static_argnames=("centres", "dtype"))
def _brought_back(values, mask, init_value, *, centres, dtype) -> jax.Array:
    """Linear interpolation from patch centres to voxels, over the values that are not NaN."""
    known = ~jnp.isnan(values)
    image, weight = jnp.where(known, values, 0), known.astype(values.dtype)
    for axis, (own, size) in enumerate(zip(centres, mask.shape, strict=True)):
        matrix = np.stack([np.interp(np.arange(size), own, row) for row in np.eye(len(own))], 1)
        image, weight = (
            jnp.moveaxis(
                jnp.tensordot(matrix.astype(values.dtype), volume, (1, axis), precision="highest"),
                0,
                axis,
            )
            for volume in (image, weight)
        )
    image = jnp.where(weight > 0, image / jnp.where(weight > 0, weight, 1), jnp.nan)
    return jnp.where(mask, image, init_value).astype(dtype)
