"""Features of strided patches by strided box sums, without cutting out a patch.

A patch's own grey levels are the image's levels minus an offset o = (smallest level of the patch) -
1, so its sums over pairs follow from the image's in exact integers: sum (i - o)(j - o) = sum ij -
o sum (i + j) + o^2 pairs. One pass of box sums, evaluated only at the patch centres, serves all
patches.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from osteojax.ops.texture.masked_windows import (
    PAIRS,
    Field,
    angle_means,
    no_totals,
    pack,
    plan,
    round_up,
    unpack_integers,
)
from osteojax.ops.texture.pair_features import PAIR_MEANS, PAIR_VALUES
from osteojax.ops.texture.windows import Angle, Window


def packs(window: Window, features: tuple[str, ...], num_levels: int, shape) -> bool:
    """Whether this path can serve the settings: integer features whose sums fit 31 bits."""
    most = (2 * window.kernel_radius + 1) ** 3
    return (
        window.plain
        and all(size >= 2 * window.kernel_radius + 1 for size in shape)
        and all(n in PAIR_MEANS and PAIR_VALUES[PAIR_MEANS[n].value].integer for n in features)
        and most * round_up(num_levels) ** 2 < 2**31
    )


def packed_patch_grid(
    levels: jax.Array,
    mask: jax.Array | None,
    window: Window,
    features: tuple[str, ...],
    num_levels: int,
    stride: int,
) -> dict[str, jax.Array]:
    """f32[nz, ny, nx] features of the patches centred at r, r + stride, ...; NaN without a pair.

    levels: integer[D, H, W], 1..num_levels. mask: bool[D, H, W] or None.
    """
    radii = window.radii(levels.shape)
    means = {name: PAIR_MEANS[name] for name in features}
    values = dict.fromkeys(mean.value for mean in means.values())
    if "product" in values:
        values |= {"sum": None}  # the offset is removed with it
    offset = _lowest(levels, mask, radius=window.kernel_radius, stride=stride) - 1
    totals = no_totals(offset.shape, len(values))
    for angle, fields in plan(window, levels.shape, tuple(values), round_up(num_levels)):
        totals = _add_angle(
            totals, levels, mask, offset, angle=angle, radii=radii, stride=stride, fields=fields
        )
    found = dict(zip(values, angle_means(totals), strict=True))
    return {name: mean.scale * found[mean.value] for name, mean in means.items()}


@partial(jax.jit, static_argnames=("radius", "stride"))
def _lowest(levels, mask, *, radius: int, stride: int) -> jax.Array:
    """i32[nz, ny, nx]: smallest level of each patch; 1 where it has no voxel of the mask."""
    levels, big = levels.astype(jnp.int32), jnp.iinfo(jnp.int32).max
    inside = levels if mask is None else jnp.where(mask, levels, big)
    size = (2 * radius + 1,) * 3
    lowest = lax.reduce_window(inside, big, lax.min, size, (stride,) * 3, "VALID")
    return jnp.where(lowest == big, 1, lowest)


@partial(jax.jit, static_argnames=("angle", "radii", "stride", "fields"), donate_argnames="totals")
def _add_angle(
    totals, levels, mask, offset, *, angle: Angle, radii, stride: int, fields: tuple[Field, ...]
):
    """Adds one angle's patch means to `totals`: (angles with a pair, sum of means of each)."""
    words = [_patch_sums(w, radii, angle, stride) for w in pack(levels, mask, angle, fields, None)]
    raw = {f.name: unpack_integers(words[f.word], f).astype(jnp.int32) for f in fields}
    pairs = raw[PAIRS]
    if "product" in raw:
        raw["product"] += offset * (offset * pairs - raw["sum"])
    if "sum" in raw:
        raw["sum"] -= 2 * offset * pairs
    share = jnp.where(pairs > 0, 1 / jnp.maximum(pairs, 1).astype(jnp.float32), 0)
    angles, *means = totals
    added = (m + raw[f.name] * share for m, f in zip(means, fields[1:], strict=True))
    return (angles + (pairs > 0), *added)


def _patch_sums(pairs, radii, angle: Angle, stride: int) -> jax.Array:
    """Sums over the pairs that lie whole in each patch; [D-|dz|, ...] -> [nz, ...]."""
    for axis in (2, 1, 0):
        taps = 2 * radii[axis] + 1 - abs(angle[axis])
        number = (pairs.shape[axis] - taps) // stride + 1
        slices = (
            lax.slice_in_dim(pairs, tap, tap + (number - 1) * stride + 1, stride, axis)
            for tap in range(taps)
        )
        pairs = sum(slices, start=jnp.uint32(0))
    return pairs
