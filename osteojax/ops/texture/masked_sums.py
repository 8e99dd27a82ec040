"""Maps inside masks from three words an angle, in two passes over memory: for an NVIDIA GPU.

As `masked_windows`, whose maps these are, with sums of pairs (i, j) of one angle that are packed
where they cost least. Levels are 0 outside the mask, m is 1 inside it, and one number a voxel
holds both: A = m + 2^k * level.

  A_i * A_j                      pairs + 2^k * S + 4^k * P     P of products, S of i + j
  s + 2^b * min(i, j)            S + 2^b * M                   s = i * m_j + j * m_i
  s^2                            squares of i + j

S is read from the second word and taken from the first, which leaves pairs and P. The sum of
|i - j| is S - 2 M, that of (i - j)^2 the third word minus 4 P. All of it is exact modulo 2^32. As
in `shared_sums`, the border is zeros, and what lies between the passes is summed along depth and
width.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from osteojax.ops.texture.masked_windows import angle_means, masked_maps, no_totals, round_up
from osteojax.ops.texture.pair_features import pair_mean
from osteojax.ops.texture.shared_sums import Axis, D, H, W, add_up, narrowest
from osteojax.ops.texture.windows import Angle, Window, pair_ends, pairs_in_window


class Words(NamedTuple):
    """Where sums are packed: k of the first word and b of the second (see above)."""

    product_shift: int
    minimum_shift: int


def inside_masks(
    levels: jax.Array,
    mask: jax.Array,
    window: Window,
    features: tuple[str, ...],
    num_levels: int,
) -> dict[str, jax.Array]:
    """`masked_windows.masked_maps` in one program, in the form that suits the platform.

    window: plain (`Window.plain`). features: such that their pair values are in `shared_sums.SUMS`.
    """
    limit = round_up(num_levels)  # volumes of different numbers of levels share programs
    return _inside_masks(levels, mask, window=window, features=features, limit=limit)


@partial(jax.jit, static_argnames=("window", "features", "limit"))
def _inside_masks(levels, mask, *, window, features, limit: int) -> dict[str, jax.Array]:
    entries = {name: pair_mean(name, symmetrical=True) for name in features}
    values = tuple(dict.fromkeys(entry.value for entry in entries.values()))
    words = layout(window, levels.shape, limit)
    default = partial(masked_maps, window=window, features=features, num_levels=limit)
    if words is None:
        return default(levels, mask)

    def from_words(levels, mask):
        means = masked_means(levels, mask, window, values, limit, words)
        return {name: entry.scale * means[entry.value] for name, entry in entries.items()}

    return lax.platform_dependent(levels, mask, cuda=from_words, default=default)


def layout(window: Window, shape: tuple[int, ...], num_levels: int) -> Words | None:
    """Words in which no sum of a window passes its bits; None where there are none."""
    radii = window.radii(shape)
    pairs = max((pairs_in_window(radii, angle) for angle in window.angles(shape)), default=0)
    product_shift = (pairs.bit_length() + 1) // 2
    minimum_shift = (pairs * 2 * num_levels).bit_length()
    first = 2 * product_shift + (pairs * num_levels**2).bit_length()
    second = minimum_shift + (pairs * num_levels).bit_length()
    return Words(product_shift, minimum_shift) if pairs and max(first, second) <= 32 else None


def masked_means(
    levels, mask, window: Window, values: tuple[str, ...], num_levels: int, words: Words
) -> dict[str, jax.Array]:
    """Means over the angles that have a pair, of the window means of some pair values.

    Args:
      levels: integer[..., D, H, W], 0..num_levels in the mask.
      mask: bool of the same shape.
      values: names of `shared_sums.SUMS`.
      words: of `layout`.

    Returns:
      f32[..., D, H, W] per value; NaN where a window has no pair.
    """
    radius = max(window.radii(levels.shape))
    axes = {place: Axis(levels.shape[place], radius, place) for place in (D, H, W)}
    dtype = narrowest((num_levels << words.product_shift) + 1)
    both = jnp.where(mask, (levels.astype(dtype) << words.product_shift) + dtype(1), dtype(0))
    around = [(0, 0)] * (levels.ndim - 3) + [(radius, radius)] * 3
    padded = lax.optimization_barrier(jnp.pad(both, around))
    squares = "squared difference" in values
    angles = window.angles(levels.shape)
    rows = {angle: _rows(padded, angle, axes, words, squares) for angle in angles}
    rows = lax.optimization_barrier(rows)
    totals = no_totals(levels.shape, len(values))
    for angle in angles:
        pairs, sums = _sums_of(rows[angle], angle, axes, words)
        share = jnp.where(pairs > 0, 1 / jnp.maximum(pairs, 1).astype(jnp.float32), 0)
        counted, *means = totals
        added = (
            mean + sums[value].astype(jnp.float32) * share
            for value, mean in zip(values, means, strict=True)
        )
        totals = (counted + (pairs > 0), *added)
    return dict(zip(values, angle_means(totals), strict=True))


def _rows(padded, angle: Angle, axes, words: Words, squares: bool) -> list[jax.Array]:
    """The words of an angle's pairs, summed along depth and width: u32[..., D, H + 2r - step, W].

    squares: whether the third word is wanted.
    """
    depth, width = axes[D], axes[W]
    first, second = pair_ends(padded, angle)

    def seen(end, tap: int, row: int):
        return depth.cut(width.cut(end, tap), row)

    columns = []
    for tap in width.taps(abs(angle[2])):
        # Sums over the depth first: voxels of a thread, which lie along the width, share them.
        found = [
            _pack(seen(first, tap, row), seen(second, tap, row), words)
            for row in depth.taps(abs(angle[0]))
        ]
        columns.append([add_up(images) for images in zip(*found, strict=True)])
    summed = [add_up(images) for images in zip(*columns, strict=True)]
    return summed if squares else summed[:2]


def _pack(first, second, words: Words) -> tuple[jax.Array, ...]:
    """The three words of pairs of voxels."""
    a, b = first.astype(jnp.uint32), second.astype(jnp.uint32)
    i, j = a >> words.product_shift, b >> words.product_shift
    both = i * (b & 1) + j * (a & 1)
    return a * b, both + (jnp.minimum(i, j) << words.minimum_shift), both * both


def _sums_of(rows, angle: Angle, axes, words: Words) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pairs of each window and the sums of pair values over them, u32[..., D, H, W]."""
    height = axes[H]
    boxes = [add_up(height.cut(row, first) for first in height.taps(abs(angle[1]))) for row in rows]
    total = boxes[1] & jnp.uint32((1 << words.minimum_shift) - 1)
    minima = boxes[1] >> words.minimum_shift
    rest = boxes[0] - (total << words.product_shift)
    product = rest >> (2 * words.product_shift)
    pairs = rest & jnp.uint32((1 << 2 * words.product_shift) - 1)
    sums = {"sum": total, "product": product, "difference": total - 2 * minima}
    if len(boxes) > 2:
        sums["squared difference"] = boxes[2] - 4 * product
    return pairs, sums
