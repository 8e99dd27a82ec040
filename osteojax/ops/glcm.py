"""Dense texture maps: GLCM features of the window around every voxel, without a GLCM.

PyRadiomics' voxel-based extraction (fixed grey levels, 13 angles at distance 1, symmetric, the
mean over angles that have a pair) needs no co-occurrence matrix for these features: each is, per
angle, the mean over the window's pairs (x, x + angle) of a function of the two grey levels i, j,

    Autocorrelation i * j, JointAverage (i + j) / 2, Contrast (i - j)^2, DifferenceAverage |i - j|.

A pair belongs to the window of radius r around c when both ends are in it, so the sum is a box
filter of the pair image, 2r + 1 voxels long where the angle does not move and 2r where it does.

Two paths:

  whole box  Counts are known, and factor into one length per axis. The angles that move along the
             same axes (7 classes) have equal counts, so their pairs are added before filtering,
             and after the pass along an axis the classes that differ only there are added too:
             7 + 4 + 2 passes instead of 13 * 3. Integers until the first pass is done, then
             float32: all terms are non-negative, so nothing cancels (4e-7 relative).
  masked     Counts differ per angle and voxel. Sum and count travel in one uint32 word through 3
             passes per angle; they are integers, exact. Settings whose sums do not fit are told
             from `num_levels` and `kernel_radius` before anything runs, and use wider words.

The floor: one byte read and 4 written per map and voxel (17 for four maps). XLA's own count of its
programs at radius 3, 96^3, per map and voxel: 377 bytes and 229 operations in the whole-box path,
1,360 and 597 in the masked one, since every pass is written out; caches must absorb that.
So on a CPU each map is a program of its own, on slabs whose buffers stay below 32 MiB, where
malloc keeps pages from call to call: above it, fresh pages made the same program 2-5 times slower.

van Griethuysen et al., Cancer Res 77:e104, 2017 (PyRadiomics 3.0.1); Zwanenburg et al., IBSI
reference manual, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from osteojax.ops.whole_box import whole_box_mean
from osteojax.ops.windows import ANGLES, box_sum, pair_ends


class PairFeature(NamedTuple):
    """A feature that is the mean over pairs of `scale * value(i, j)`.

    `value` maps two arrays of non-negative integers to one, exactly, in their own dtype, and is
    symmetric; `bound(num_levels)` is its largest value.
    """

    value: Callable[[Any, Any], Any]
    bound: Callable[[int], int]
    scale: float = 1.0


def _difference(i, j):
    """|i - j|, for unsigned integers too."""
    return jnp.maximum(i, j) - jnp.minimum(i, j)


PAIR_FEATURES = {
    "Autocorrelation": PairFeature(lambda i, j: i * j, lambda n: n * n),
    "JointAverage": PairFeature(lambda i, j: i + j, lambda n: 2 * n, scale=0.5),
    "Contrast": PairFeature(lambda i, j: _difference(i, j) ** 2, lambda n: (n - 1) ** 2),
    "DifferenceAverage": PairFeature(_difference, lambda n: n - 1),
}
FEATURES = tuple(PAIR_FEATURES)

_SLAB_VOXELS = {"box": 1_000_000, "masked": 330_000}
"""Voxels of one CPU program: its buffers (26 and 90 bytes a voxel) stay below 32 MiB."""


def texture_maps(
    levels: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None = None,
    *,
    kernel_radius: int = 3,
    num_levels: int,
    features: tuple[str, ...] = FEATURES,
    init_value: float = 0.0,
) -> dict[str, jax.Array]:
    """Maps of GLCM features over the (2 * kernel_radius + 1)^3 window of every voxel.

    PyRadiomics' `RadiomicsGLCM(voxelBased=True, maskedKernel=True, distances=[1])`: windows are
    clipped at the array's border, a pair counts when both ends are in the mask, each angle is
    normalised, angles without a pair are left out of the mean. An array of one slice has 4 angles.
    A voxel whose window has no pair at all (isolated in the mask) is NaN, as in PyRadiomics.

    One difference: PyRadiomics takes JointAverage's mean over angles without leaving out the
    empty ones, so that some voxels are NaN or not depending on `voxelBatch`. Here JointAverage is
    the mean over the angles that have a pair, like the others.

    Args:
      levels: integer[..., D, H, W], grey levels 1..num_levels inside the mask (anything from 0 to
        num_levels outside). Leading axes are a batch.
      mask: bool[..., D, H, W], same shape, or None for the whole box (3 to 5 times faster).
      kernel_radius: r in voxels, at least 1.
      num_levels: largest grey level; decides how wide the accumulators are. Checked against
        `levels`, except under a caller's `jit`, where larger levels give wrong maps.
      features: names out of `FEATURES`.
      init_value: value of the voxels outside the mask.

    Returns:
      float32[..., D, H, W] per feature, in grey levels (JointAverage, DifferenceAverage) or
      squared grey levels (Autocorrelation, Contrast).

    Raises:
      ValueError: shape, dtype, level, radius or feature name that this cannot take.
    """
    levels = jnp.asarray(levels)
    mask = None if mask is None else jnp.asarray(mask)
    _check(levels, mask, kernel_radius, num_levels, features)
    # A radius beyond the array sees the whole array: the same maps with fewer additions.
    radius = min(kernel_radius, max(levels.shape[-3:]))
    settings = {"radius": radius, "num_levels": num_levels, "init_value": init_value}
    traced = isinstance(levels, jax.core.Tracer) or isinstance(mask, jax.core.Tracer)
    if traced or levels.size == 0:
        return {name: _feature_map(levels, mask, name=name, **settings) for name in features}
    if int(levels.max()) > num_levels or int(levels.min()) < 0:
        raise ValueError(
            f"levels run from {int(levels.min())} to {int(levels.max())}, num_levels is "
            f"{num_levels}: pass the largest level, or discretise with a wider bin."
        )
    if next(iter(levels.devices())).platform != "cpu":
        return {name: _feature_map(levels, mask, name=name, **settings) for name in features}
    return {name: _map_by_slabs(levels, mask, name=name, **settings) for name in features}


def _check(levels, mask, kernel_radius, num_levels, features) -> None:
    if levels.ndim < 3:
        raise ValueError(
            f"levels have shape {levels.shape}: three axes or more are needed; pass a 2D image as "
            "one slice, levels[None]."
        )
    if not jnp.issubdtype(levels.dtype, jnp.integer):
        raise ValueError(f"levels are {levels.dtype}; discretise the image to integers first.")
    if mask is not None and (mask.shape != levels.shape or mask.dtype != jnp.bool_):
        raise ValueError(
            f"mask is {mask.dtype}{mask.shape}; it must be bool{levels.shape}, like the levels."
        )
    if kernel_radius != int(kernel_radius) or kernel_radius < 1:
        raise ValueError(f"kernel_radius is {kernel_radius}; it must be a whole number from 1.")
    if num_levels != int(num_levels) or num_levels < 1:
        raise ValueError(f"num_levels is {num_levels}; it must be a whole number from 1.")
    unknown = [name for name in features if name not in PAIR_FEATURES]
    if unknown:
        raise ValueError(f"no texture map named {unknown}; there are {list(FEATURES)}.")


def _map_by_slabs(levels, mask, **settings) -> jax.Array:
    """`_feature_map` of a concrete array on a CPU, in pieces that fit its caches.

    A slab is cut with `radius` slices more on either side: what is further than that from a cut
    is as in the whole. All slabs have one shape, so one program serves them all.
    """
    depth, height, width = levels.shape[-3:]
    radius = settings["radius"]
    slices = _SLAB_VOXELS["box" if mask is None else "masked"] // (height * width)
    slices = min(depth, max(slices, 4 * radius + 1))
    cuts, start, done = [], 0, 0
    while done < depth:
        start = min(max(done - radius, 0), depth - slices)
        stop = depth if start + slices == depth else start + slices - radius
        cuts.append((start, done - start, stop - start))
        done = stop
    volumes = []
    for index in np.ndindex(levels.shape[:-3]):
        parts = []
        for start, _, _ in cuts:
            window = (*index, slice(start, start + slices))
            inside = None if mask is None else mask[window]
            parts.append(_feature_map(levels[window], inside, **settings))
        volumes.append(parts[0] if len(cuts) == 1 else _join(parts, tuple(c[1:] for c in cuts)))
    return volumes[0] if levels.ndim == 3 else jnp.stack(volumes).reshape(levels.shape)


@partial(jax.jit, static_argnames="keep")
def _join(parts: list[jax.Array], keep: tuple[tuple[int, int], ...]) -> jax.Array:
    """The kept slices of each slab, one after the other."""
    return jnp.concatenate([part[low:high] for part, (low, high) in zip(parts, keep, strict=True)])


@partial(jax.jit, static_argnames=("name", "radius", "num_levels"))
def _feature_map(levels, mask, *, name, radius, num_levels, init_value) -> jax.Array:
    """One map, f32[..., D, H, W], as one program."""
    feature = PAIR_FEATURES[name]
    bound = feature.bound(num_levels)
    if mask is None:
        return feature.scale * whole_box_mean(levels, feature.value, bound, radius)
    mean = feature.scale * _masked_mean(levels, mask, feature.value, bound, radius)
    return jnp.where(mask, mean, init_value)


# ---------------------------------------------------------------- inside a mask


def _masked_mean(levels, mask, value, bound: int, radius: int) -> jax.Array:
    """Mean over the angles that have a pair of the window means of `value`; NaN without any."""
    total = jnp.float32(0)
    angles = jnp.float32(0)
    for angle in ANGLES:
        if any(step and size == 1 for step, size in zip(angle, levels.shape[-3:], strict=True)):
            continue
        pairs, sums = _masked_sums(levels, mask, value, bound, radius, angle)
        total = total + jnp.where(pairs > 0, sums / jnp.maximum(pairs, 1), 0)
        angles = angles + (pairs > 0)
    return jnp.where(angles > 0, total / jnp.maximum(angles, 1), jnp.nan)


def _masked_sums(levels, mask, value, bound: int, radius: int, angle) -> tuple[Any, Any]:
    """f32 number of valid pairs in each window along one angle, and f32 sum of `value` over them.

    Both are exact integers until the conversion: in one uint32 word where they fit, else in two,
    and beyond 2^32 the sum is float32 (non-negative terms, so it rounds by 1e-6 at most).
    """
    most = math.prod(2 * radius + 1 - abs(step) for step in angle)
    sum_bits, count_bits = (most * bound).bit_length(), most.bit_length()
    valid = jnp.logical_and(*pair_ends(mask, angle))
    word = jnp.float32 if sum_bits > 32 else jnp.uint32
    values = jnp.where(valid, value(*pair_ends(levels.astype(word), angle)), 0)
    if sum_bits + count_bits <= 32:
        packed = values + (valid.astype(word) << sum_bits)
        packed = _window_sum(packed, radius, angle)
        pairs, sums = packed >> sum_bits, packed & ((1 << sum_bits) - 1)
    else:
        pairs = _window_sum(valid.astype(jnp.uint32), radius, angle)
        sums = _window_sum(values, radius, angle)
    return _as_float(pairs, count_bits), _as_float(sums, sum_bits)


def _as_float(words, bits: int):
    """f32 of integers below 2^bits; CPUs convert signed words at full width, unsigned ones not."""
    return (words.astype(jnp.int32) if bits < 32 else words).astype(jnp.float32)


def _window_sum(pairs, radius: int, angle):
    """Sums over the pairs that lie whole in the window of each voxel; [D-|dz|, ...] -> [D, ...]."""
    for axis in (-1, -2, -3):
        pairs = box_sum(pairs, axis, radius, 2 * radius + 1 - abs(angle[axis]))
    return pairs
