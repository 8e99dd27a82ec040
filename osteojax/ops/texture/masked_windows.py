"""Window means of pair values inside a mask: one angle at a time, in uint32.

The number of pairs differs per angle and voxel, so every angle is summed and divided by itself
before angles are added. The number of pairs and the sums of all requested values are packed into as
few uint32 words as hold them (for the paper's four features, 48 levels and radius 3: 78 bits in 3
words), so that three box passes serve several sums. Whether they fit is known from `num_levels` and
the window before anything runs; a sum that does not fit a word, or that is of real values such as
Id's, is kept in float32, which rounds but never wraps.

Each angle is a separate program: in one program for all angles, XLA fuses across passes and
recomputes (2 times slower on a CPU).
"""

from __future__ import annotations

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from osteojax.ops.texture.pair_features import PAIR_VALUES, pair_mean
from osteojax.ops.texture.windows import Angle, Window, pair_ends, pairs_in_window, window_sum

PAIRS = "pairs"
"""Name of the field that counts pairs."""


class Field(NamedTuple):
    """Where a sum is packed: bits [shift, shift + bits) of a uint32 word, or a float32 word."""

    name: str
    word: int
    shift: int
    bits: int
    is_float: bool


def masked_maps(
    levels: jax.Array,
    mask: jax.Array | None,
    window: Window,
    features: tuple[str, ...],
    num_levels: int,
) -> dict[str, jax.Array]:
    """f32[..., D, H, W] per feature of `PAIR_MEANS`; NaN where a window has no pair.

    mask: bool[..., D, H, W]; None counts every voxel.
    """
    values = tuple(dict.fromkeys(pair_mean(n, window.symmetrical).value for n in features))
    radii = window.radii(levels.shape)
    totals = no_totals(levels.shape, len(values))
    for angle, fields in plan(window, levels.shape[-3:], values, round_up(num_levels)):
        totals = _add_angle(
            totals, levels, mask, num_levels, angle=angle, radii=radii, fields=fields
        )
    means = dict(zip(values, angle_means(totals), strict=True))
    entries = {name: pair_mean(name, window.symmetrical) for name in features}
    return {
        n: means[e.value] if e.scale == 1 else e.scale * means[e.value] for n, e in entries.items()
    }


@partial(jax.jit, static_argnames=("angle", "radii", "fields"), donate_argnames="totals")
def _add_angle(totals, levels, mask, num_levels, *, angle: Angle, radii, fields):
    """Adds one angle's window means to `totals`: (angles with a pair, sum of means of each)."""
    words = pack(levels, mask, angle, fields, num_levels)
    words = [window_sum(word, radii, angle) for word in words]
    sums = {field.name: unpack(words[field.word], field) for field in fields}
    pairs = sums[PAIRS]
    share = jnp.where(pairs > 0, 1 / jnp.maximum(pairs, 1), 0)
    angles, *means = totals
    added = (mean + sums[f.name] * share for mean, f in zip(means, fields[1:], strict=True))
    return (angles + (pairs > 0), *added)


@jax.jit
def angle_means(totals) -> tuple[jax.Array, ...]:
    angles, *sums = totals
    share = jnp.where(angles > 0, 1 / jnp.maximum(angles, 1), jnp.nan)
    return tuple(total * share for total in sums)


def no_totals(shape: tuple[int, ...], number: int) -> tuple[jax.Array, ...]:
    """The totals before the first angle: uint8 number of angles with a pair, f32 per value."""
    return jnp.zeros(shape, jnp.uint8), *(jnp.zeros(shape, jnp.float32) for _ in range(number))


@functools.cache
def plan(
    window: Window, shape: tuple[int, ...], values: tuple[str, ...], num_levels: int
) -> tuple[tuple[Angle, tuple[Field, ...]], ...]:
    """The angles, each with the fields that its sums are packed into."""
    radii = window.radii(shape)
    return tuple(
        (angle, layout(values, pairs_in_window(radii, angle), num_levels))
        for angle in window.angles(shape)
    )


def round_up(num_levels: int) -> int:
    """Rounds up to 48 * 2^k, so that ROIs of different numbers of levels share programs."""
    rounded = 48
    while rounded < num_levels:
        rounded *= 2
    return rounded


def layout(values: tuple[str, ...], most_pairs: int, num_levels: int) -> tuple[Field, ...]:
    """Packs fields into words, first fit; any sum of at most `most_pairs` pairs fits its field."""
    fields: list[Field] = []
    used: list[int] = []  # bits of each word; 32 where it is a float
    for name in (PAIRS, *values):
        value = None if name == PAIRS else PAIR_VALUES[name]
        bits = (most_pairs * (value.bound(num_levels) if value else 1)).bit_length()
        is_float = bits > 32 or (value is not None and not value.integer)
        bits = 32 if is_float else bits
        word = next((w for w, full in enumerate(used) if full + bits <= 32), len(used))
        if word == len(used):
            used.append(0)
        fields.append(Field(name, word, used[word], bits, is_float))
        used[word] += bits
    return tuple(fields)


def pack(levels, mask, angle: Angle, fields: tuple[Field, ...], num_levels) -> list:
    """The words of every pair along an angle, 0 where an end is outside the mask."""
    i, j = pair_ends(levels, angle)
    valid = jnp.ones(i.shape, jnp.bool_)
    if mask is not None:
        valid = jnp.logical_and(*pair_ends(mask, angle))
    words: dict[int, jax.Array] = {}
    for field in fields:
        dtype = jnp.float32 if field.is_float else jnp.uint32
        if field.name == PAIRS:
            image = valid.astype(dtype)
        else:
            value = PAIR_VALUES[field.name]
            ends = i.astype(dtype), j.astype(dtype)
            image = jnp.where(valid, value.of(*ends, num_levels), 0).astype(dtype)
        image = image if field.is_float else image << field.shift
        words[field.word] = words[field.word] + image if field.word in words else image
    return [words[w] for w in range(len(words))]


def unpack(word: jax.Array, field: Field) -> jax.Array:
    """f32 sums of one field, converted from exact integers."""
    if field.is_float:
        return word
    sums = unpack_integers(word, field)
    # CPUs convert signed words to float in full-width vectors, unsigned ones they do not.
    return (sums.astype(jnp.int32) if field.bits < 32 else sums).astype(jnp.float32)


def unpack_integers(word: jax.Array, field: Field) -> jax.Array:
    """uint32 sums of a field that is not a float."""
    sums = word >> field.shift
    if field.shift + field.bits < 32:
        sums = sums & jnp.uint32((1 << field.bits) - 1)
    return sums
