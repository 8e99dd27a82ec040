"""Pooling of images and volumes by windows of stride 2, and a norm with a max-pool behind it.

f[B, *space, C] -> f[B, *ceil(space / 2), C] everywhere. The forms of one function differ by
platform: on CPU a gradient that scatters voxel by voxel is slow, on a GPU every pass over memory
counts. The platform is chosen when the program is lowered, as in `osteojax.ops.conv3d`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from osteojax.ops.normalised import plain
from osteojax.ops.varying import same_varying_axes

WINDOW = 3
"""Edge of the max-pool's window; one voxel of padding at both ends of every axis."""


def average_pool(x: Array) -> Array:
    """Mean over 2^rank windows, stride 2; at an odd edge, over the voxels that exist.

    In the dtype of `x`; sums are float32 or wider. Axes are pooled one after another, from slices,
    for the reasons that `max_pool` gives.
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


def normalised_max_pool(x: Array, mean: Array, mul: Array, bias: Array, dtype: Any) -> Array:
    """`max_pool(normalised(x, mean, mul, bias, dtype, relu=True))` with fewer passes over memory.

    On GPU and TPU the pool comes first: an affine map of a channel is monotone and so is its
    rounding, so that the largest of the normalised voxels is the normalised largest voxel, or the
    smallest where `mul` is negative. Equal to the bit, and so are gradients to rounding where no
    voxels tie. Where `mul` is exactly zero every voxel ties, and the gradient of `mul` is that of
    one or two voxels of the window.

    A GPU keeps where the largest voxel was, in two bytes: the first and the last of those that tie,
    which share the gradient. In bfloat16 ties are common, and giving all to one of two made the
    gradient's error a third larger. On TPU the gradient of `lax.reduce_window` is faster
    (docs/benchmarks.md); it gives all to the first.

    Args:
      x: f[B, *space, C].
      mean, mul, bias: f32, broadcastable to x; equal over space.
      dtype: of the result.
    """
    return _pooled(dtype, *same_varying_axes(x, mean, mul, bias))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled(dtype: Any, x: Array, mean: Array, mul: Array, bias: Array) -> Array:
    return _pooled_fwd(dtype, x, mean, mul, bias)[0]


def _pooled_fwd(dtype: Any, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    y, *kept = lax.platform_dependent(
        *inputs,
        cpu=functools.partial(_early, dtype),
        cuda=functools.partial(_late_kept, dtype),
        default=functools.partial(_late, dtype),
    )
    return y, (*inputs, *kept)


def _pooled_bwd(dtype: Any, residuals: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    def gradients(form: Any, *arguments: Array) -> tuple[Array, ...]:
        inputs, dy = arguments[:4], arguments[-1]
        return jax.vjp(lambda *inputs: form(dtype, *inputs)[0], *inputs)[1](dy)

    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(gradients, _early),
        cuda=functools.partial(_late_kept_gradients, dtype),
        default=functools.partial(gradients, _late),
    )


_pooled.defvjp(_pooled_fwd, _pooled_bwd)


# ---------------------------------------------------------------- one form for each platform
# Each gives its result and what a GPU keeps: the largest voxels and where in the windows they are.


Kept = tuple[Array, ...]


def _early(dtype: Any, x: Array, mean: Array, mul: Array, bias: Array) -> Kept:
    return (max_pool(plain(x, mean, mul, bias, dtype=dtype, relu=True)), *_nothing(x))


def _late(dtype: Any, x: Array, mean: Array, mul: Array, bias: Array) -> Kept:
    sign, rank = _sign(mul, x), x.ndim - 2
    largest = lax.reduce_window(
        x * sign,
        -np.inf,  # a constant, by which lax knows a maximum and its gradient
        lax.max,
        (1, *[WINDOW] * rank, 1),
        (1, *[2] * rank, 1),
        ((0, 0), *[(1, 1)] * rank, (0, 0)),
    )
    return (plain(largest * sign, mean, mul, bias, dtype=dtype, relu=True), *_nothing(x))


def _late_kept(dtype: Any, x: Array, mean: Array, mul: Array, bias: Array) -> Kept:
    sign = _sign(mul, x)
    largest, first, last = _largest_and_places(x * sign)
    largest = largest * sign
    return plain(largest, mean, mul, bias, dtype=dtype, relu=True), largest, first, last


def _late_kept_gradients(
    dtype: Any,
    x: Array,
    mean: Array,
    mul: Array,
    bias: Array,
    largest: Array,
    first: Array,
    last: Array,
    dy: Array,
) -> tuple[Array, ...]:
    def after(largest: Array, mean: Array, mul: Array, bias: Array) -> Array:
        return plain(largest, mean, mul, bias, dtype=dtype, relu=True)

    d_largest, *d_affine = jax.vjp(after, largest, mean, mul, bias)[1](dy)
    return _to_places(d_largest, first, last, x.shape), *d_affine


def _nothing(x: Array) -> tuple[Array, Array, Array]:
    """In the place of what a GPU keeps. The compiler removes it."""
    shape = (x.shape[0], *(-(-size // 2) for size in x.shape[1:-1]), x.shape[-1])
    place = jnp.zeros_like(x, jnp.uint8, shape=shape)
    return jnp.zeros_like(x, shape=shape), place, place


def _sign(mul: Array, x: Array) -> Array:
    return jnp.where(mul < 0, -1, 1).astype(x.dtype)


def _windows(x: Array) -> Iterator[Array]:
    """The voxels of all windows, one of each window at a time; -inf beyond the edges."""
    rank = x.ndim - 2
    counts = [-(-size // 2) for size in x.shape[1:-1]]
    sizes = zip(x.shape[1:-1], counts, strict=True)
    config = [(0, 0, 0), *((1, 2 * count - size, 0) for size, count in sizes), (0, 0, 0)]
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), config)
    for taps in itertools.product(range(WINDOW), repeat=rank):
        ends = (tap + 2 * count - 1 for tap, count in zip(taps, counts, strict=True))
        start, end = (0, *taps, 0), (x.shape[0], *ends, x.shape[-1])
        yield lax.slice(padded, start, end, (1, *[2] * rank, 1))


def _largest_and_places(x: Array) -> tuple[Array, Array, Array]:
    """(maximum of every window, first and last voxel that is equal to it u8), in one pass.

    Voxels of a window are numbered as in `_windows`, the last axis fastest.
    """
    windows = _windows(x)
    largest = next(windows)
    first = last = jnp.zeros_like(largest, jnp.uint8)
    for number, voxel in enumerate(windows, start=1):
        first = jnp.where(voxel > largest, jnp.uint8(number), first)
        last = jnp.where(voxel >= largest, jnp.uint8(number), last)
        largest = jnp.maximum(voxel, largest)
    return largest, first, last


def _to_places(dy: Array, first: Array, last: Array, shape: tuple[int, ...]) -> Array:
    """The transpose of taking the mean of two voxels of every window: for every voxel the sum over
    the windows that it is in."""
    zero, half = jnp.zeros((), dy.dtype), dy * jnp.array(0.5, dy.dtype)
    total = jnp.zeros_like(dy, shape=shape)
    for number, taps in enumerate(itertools.product(range(WINDOW), repeat=len(shape) - 2)):
        share = jnp.where(first == number, half, zero) + jnp.where(last == number, half, zero)
        config = [(0, 0, 0)]
        for tap, size, count in zip(taps, shape[1:-1], dy.shape[1:-1], strict=True):
            low = tap - 1
            config.append((low, size - (low + 2 * count - 1), 1))
        total = total + lax.pad(share, zero, [*config, (0, 0, 0)])
    return total
