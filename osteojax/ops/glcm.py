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

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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

ANGLES = tuple(a for a in itertools.product((-1, 0, 1), repeat=3) if a > (0, 0, 0))
"""One of each opposite pair of the 26 neighbours, as (depth, height, width) steps."""

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


def discretise(
    hu: jax.Array | np.ndarray,
    bin_width: int,
    origin: int | None = None,
    mask: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Fixed-width grey levels of an integer image, exactly.

    Level 1 holds [origin, origin + bin_width). `origin=None` is PyRadiomics' own rule: edges at
    multiples of the width, the smallest value inside the mask in level 1. Integers only: in
    float32 a value beside an edge can land in the neighbouring bin (XLA divides by multiplying
    with a reciprocal).

    Args:
      hu: integer[...], at least `origin` inside the mask.
      bin_width: width of a level in the image's unit (HU), a positive integer.
      origin: lower edge of level 1, or None.
      mask: bool[...] or None; the ROI of the `origin=None` rule. Levels below 1 outside it are 0.

    Returns:
      int32[...] levels, 1 and up.
    """
    hu = jnp.asarray(hu)
    if not jnp.issubdtype(hu.dtype, jnp.integer) or int(bin_width) != bin_width or bin_width < 1:
        raise ValueError(
            f"image of dtype {hu.dtype} with bin width {bin_width}: levels are exact for integers "
            "only. Round the image to integers and take a whole bin width of at least 1."
        )
    hu = hu.astype(jnp.int32)
    if origin is None:
        bins = hu // int(bin_width)
        inside = bins if mask is None else jnp.where(mask, bins, jnp.iinfo(jnp.int32).max)
        levels = bins - inside.min() + 1
    else:
        levels = (hu - int(origin)) // int(bin_width) + 1
    return jnp.maximum(levels, 0)


def levels_from_codes(codes: jax.Array | np.ndarray, codes_per_level: int) -> jax.Array:
    """uint8[...] image codes (`schema.image_spec`) -> uint8[...] grey levels from 1."""
    return jnp.asarray(codes) // jnp.uint8(codes_per_level) + jnp.uint8(1)


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
        return feature.scale * _box_mean(levels, feature.value, bound, radius)
    mean = feature.scale * _masked_mean(levels, mask, feature.value, bound, radius)
    return jnp.where(mask, mean, init_value)


# ---------------------------------------------------------------- the whole box


def _box_mean(levels, value, bound: int, radius: int) -> jax.Array:
    """Mean over angles of the window means of `value`, every voxel in the mask."""
    shape = levels.shape[-3:]
    moves = [(0,) if size == 1 else (0, 1) for size in shape]  # one slice: no angle leaves it
    classes = [c for c in itertools.product(*moves) if any(c)]
    if not classes:
        return jnp.full(levels.shape, jnp.nan, jnp.float32)
    # The first pass adds 4 * (2r + 1) pairs at most.
    cells = levels.astype(_integer_or_float(4 * (2 * radius + 1) * bound))
    sums: Mapping[tuple[int, ...], jax.Array] = {c: _cell_sums(cells, c, value) for c in classes}
    for axis in (-1, -2, -3):
        # Classes that differ only along this axis are added as soon as it is done.
        groups: dict[tuple[int, ...], dict[int, jax.Array]] = {}
        for (*rest, moved), image in sums.items():
            groups.setdefault(tuple(rest), {})[moved] = image
        size = shape[axis]
        sums = {rest: _axis_mean(images, axis, size, radius) for rest, images in groups.items()}
    num_angles = sum(2 ** (sum(c) - 1) for c in classes)
    return sums[()] / num_angles


def _cell_sums(levels, moved: tuple[int, ...], value) -> jax.Array:
    """Sum of `value` over the diagonals of the cell at each voxel, one voxel shorter where moved.

    The 2^(k-1) angles that move along the same k axes are the diagonals of one cell (an edge, a
    square, a cube), and a window holds a cell when it holds any one of its diagonals.
    """
    diagonals = [angle for angle in ANGLES if tuple(map(abs, angle)) == moved]
    total = value(*_pair_ends(levels, diagonals[0]))
    for angle in diagonals[1:]:
        total = total + value(*_pair_ends(levels, angle))
    return total


def _axis_mean(images: dict[int, jax.Array], axis: int, size: int, radius: int) -> jax.Array:
    """Sum over `images` of their window means along an axis of `size` voxels.

    images: by how far their pairs move along the axis (0 or 1); f32 or integer[size - moved].
    """
    center = np.arange(size)
    length = np.minimum(center + radius, size - 1) - np.maximum(center - radius, 0) + 1
    total = jnp.float32(0)
    for moved, image in images.items():
        sums = _box_sum(image, axis, radius, 2 * radius + 1 - moved).astype(jnp.float32)
        weight = (1 / (length - moved)).astype(np.float32)
        total = total + sums * weight.reshape(-1, *[1] * (-1 - axis))
    return total


def _integer_or_float(bound: int):
    """The narrowest accumulator that `bound` fits; float32, which rounds but never wraps, above."""
    if bound < 2**16:
        return jnp.uint16
    return jnp.int32 if bound < 2**31 else jnp.float32


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
    valid = jnp.logical_and(*_pair_ends(mask, angle))
    word = jnp.float32 if sum_bits > 32 else jnp.uint32
    values = jnp.where(valid, value(*_pair_ends(levels.astype(word), angle)), 0)
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
        pairs = _box_sum(pairs, axis, radius, 2 * radius + 1 - abs(angle[axis]))
    return pairs


# ---------------------------------------------------------------- both


def _pair_ends(image, angle):
    """The two ends of every pair along `angle`, [..., D-|dz|, H-|dy|, W-|dx|] each."""
    first = tuple(slice(max(-step, 0), -step if step > 0 else None) for step in angle)
    second = tuple(slice(max(step, 0), step if step < 0 else None) for step in angle)
    return image[(..., *first)], image[(..., *second)]


def _box_sum(image, axis: int, radius: int, taps: int):
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
