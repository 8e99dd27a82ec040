"""A norm's statistics and parameters applied, ReLU and a max-pool: in the order that is cheaper.

The forms of one function differ by platform: on CPU a gradient that scatters voxel by voxel is
slow, on a GPU every pass over memory counts, on a TPU registers are 128 channels wide. The platform
is chosen when the program is lowered, as in `osteojax.ops.conv3d`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from osteojax.ops.normalised import plain
from osteojax.ops.pairs import fill_registers, in_pairs, paired, unpaired
from osteojax.ops.pools import WINDOW, max_pool
from osteojax.ops.varying import same_varying_axes


def oriented_by(scale: Array, x: Array) -> tuple[Array, Array]:
    """Turns channels so that `normalised_max_pool` can pool first.

    On GPU and TPU a channel whose factor would be positive is multiplied by -1, so that the largest
    of the normalised voxels is the smallest of those that come in, whatever the channel.

    Args:
      scale: f32[C] of the norm; its sign is that of the factor.
      x: f[B, *space, C].

    Returns:
      x times the signs; the signs, f32[C], all 1 on a CPU. They have no gradient.
    """
    sign = lax.platform_dependent(
        lax.stop_gradient(scale),
        cpu=jnp.ones_like,
        default=lambda scale: jnp.where(scale < 0, 1, -1).astype(scale.dtype),
    )
    of_pairs = in_pairs(jnp.multiply) if fill_registers(x) else jnp.multiply
    turned = lax.platform_dependent(x, sign.astype(x.dtype), tpu=of_pairs, default=jnp.multiply)
    return turned, sign


def normalised_max_pool(x: Array, mean: Array, mul: Array, bias: Array, dtype: Any) -> Array:
    """`max_pool(normalised(x, mean, mul, bias, dtype, relu=True))` with fewer passes over memory.

    On GPU and TPU the pool comes first: an affine map of a channel is monotone and so is its
    rounding, so that the largest of the normalised voxels is the normalised smallest voxel. Equal
    to the bit, and so are gradients to rounding where no voxels tie. Where `mul` is exactly zero
    every voxel ties, and the gradient of `mul` is that of one or two voxels of the window.

    In bfloat16 ties are common, and giving all gradient to one of two made its error a third
    larger. The first and the last of the voxels that tie share it: a GPU keeps where they were, in
    two bytes; a TPU selects and scatters twice (docs/compile.md).

    Args:
      x: f[B, *space, C], turned (`oriented_by`), as mean and mul are.
      mean, mul, bias: f32, broadcastable to x; equal over space. On GPU and TPU `mul` is not
        positive.
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
    def early(*arguments: Array) -> tuple[Array, ...]:
        inputs, dy = arguments[:4], arguments[-1]
        return jax.vjp(lambda *inputs: _early(dtype, *inputs)[0], *inputs)[1](dy)

    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=early,
        cuda=functools.partial(_late_kept_gradients, dtype),
        default=functools.partial(_late_gradients, dtype),
    )


_pooled.defvjp(_pooled_fwd, _pooled_bwd)


# ---------------------------------------------------------------- one form for each platform
# Each gives its result and what it keeps: the smallest voxels, and two bytes that say where they
# are: on a GPU in the window, on a TPU of pairs in which of its columns.


Kept = tuple[Array, Array, Array, Array]


def _early(dtype: Any, x: Array, mean: Array, mul: Array, bias: Array) -> Kept:
    y = max_pool(plain(x, mean, mul, bias, dtype=dtype, relu=True))
    return y, jnp.zeros_like(y, x.dtype), *_no_places(y)


def _late(dtype: Any, x: Array, mean: Array, mul: Array, bias: Array) -> Kept:
    if fill_registers(x):
        smallest, first, last = _smallest_of_pairs(x)
    else:
        # The infinity is a constant, by which lax knows a minimum.
        smallest = lax.reduce_window(x, np.inf, lax.min, **_windows_of(x.ndim, x.ndim - 2))
        first, last = _no_places(smallest)
    y = plain(smallest, mean, mul, bias, dtype=dtype, relu=True)
    return y, smallest, first, last


def _late_kept(dtype: Any, x: Array, mean: Array, mul: Array, bias: Array) -> Kept:
    smallest, first, last = _smallest_and_places(_windows(x))
    return plain(smallest, mean, mul, bias, dtype=dtype, relu=True), smallest, first, last


Gradients = tuple[Array, ...]
"""Of x, mean, mul and bias."""


def _late_gradients(dtype: Any, *arguments: Array) -> Gradients:
    """Arguments are x, mean, mul, bias, what `_late` keeps, and dy."""
    x, *affine, smallest, first, last, dy = arguments
    d_smallest, *d_affine = _after_the_pool(dtype, smallest, *affine, dy)
    if fill_registers(x):
        return _gradient_of_pairs(x, first, last, d_smallest), *d_affine
    return _selected_and_scattered(d_smallest, x, x.ndim - 2), *d_affine


def _late_kept_gradients(dtype: Any, *arguments: Array) -> Gradients:
    """Arguments are x, mean, mul, bias, what `_late_kept` keeps, and dy."""
    x, *affine, smallest, first, last, dy = arguments
    d_smallest, *d_affine = _after_the_pool(dtype, smallest, *affine, dy)
    return _to_places(d_smallest, first, last, x.shape), *d_affine


def _after_the_pool(dtype: Any, *arguments: Array) -> Gradients:
    """Gradients of the smallest voxels, mean, mul and bias; the last argument is dy."""
    *inputs, dy = arguments
    return jax.vjp(functools.partial(plain, dtype=dtype, relu=True), *inputs)[1](dy)


def _no_places(y: Array) -> tuple[Array, Array]:
    """In the place of the bytes, where they are not needed. The compiler removes it."""
    place = jnp.zeros_like(y, jnp.uint8)
    return place, place


def _windows_of(ndim: int, axes: int) -> dict[str, tuple[Any, ...]]:
    """Windows over the first so many axes of space, as lax takes them."""
    others = ndim - 1 - axes
    return {
        "window_dimensions": (1, *[WINDOW] * axes, *[1] * others),
        "window_strides": (1, *[2] * axes, *[1] * others),
        "padding": ((0, 0), *[(1, 1)] * axes, *[(0, 0)] * others),
    }


def _selected_and_scattered(dy: Array, x: Array, axes: int) -> Array:
    """The gradient of the smallest voxel of every window over the first axes of space; the first
    and the last of those that tie have half of it each."""
    half = dy * jnp.array(0.5, dy.dtype)
    # A comparison that is true of equals keeps the first of them, the other one takes the last.
    of_first, of_last = (
        lax.select_and_scatter_add_p.bind(half, x, select_prim=compare, **_windows_of(x.ndim, axes))
        for compare in (lax.le_p, lax.lt_p)
    )
    return of_first + of_last


def _smallest_of_pairs(x: Array) -> tuple[Array, Array, Array]:
    """(minimum of every window; of the three columns of the window, along the last axis of space,
    the first and the last that have it, u8), with full registers but for the last step."""
    rows = lax.reduce_window(paired(x), np.inf, lax.min, **_windows_of(x.ndim, 2))
    before = _moved(rows, 1, jnp.array(jnp.inf, x.dtype))
    even, odd = jnp.split(rows, 2, axis=-1)
    return _smallest_and_places((jnp.split(before, 2, axis=-1)[1], even, odd))


def _gradient_of_pairs(x: Array, first: Array, last: Array, dy: Array) -> Array:
    zero, half = jnp.zeros((), dy.dtype), dy * jnp.array(0.5, dy.dtype)
    before, even, odd = (_share(half, first, last, column) for column in range(WINDOW))
    rows = jnp.concatenate([even, odd], axis=-1)
    rows = rows + _moved(jnp.concatenate([jnp.zeros_like(before), before], axis=-1), -1, zero)
    return unpaired(_selected_and_scattered(rows, paired(x), 2))


def _moved(pairs: Array, by: int, vacated: Array) -> Array:
    """Moved along the last axis of space. Pairs move whole: half of them would be a copy."""
    return lax.pad(pairs, vacated, [(0, 0, 0)] * (pairs.ndim - 2) + [(by, -by, 0), (0, 0, 0)])


def _share(half: Array, first: Array, last: Array, place: int) -> Array:
    """The gradient that one place of the windows has of two that share it."""
    zero = jnp.zeros((), half.dtype)
    return jnp.where(first == place, half, zero) + jnp.where(last == place, half, zero)


def _windows(x: Array) -> Iterator[Array]:
    """One voxel of every window at a time, the last axis fastest; infinity beyond the edges."""
    rank = x.ndim - 2
    counts = [-(-size // 2) for size in x.shape[1:-1]]
    sizes = zip(x.shape[1:-1], counts, strict=True)
    config = [(0, 0, 0), *((1, 2 * count - size, 0) for size, count in sizes), (0, 0, 0)]
    padded = lax.pad(x, jnp.array(jnp.inf, x.dtype), config)
    for taps in itertools.product(range(WINDOW), repeat=rank):
        ends = (tap + 2 * count - 1 for tap, count in zip(taps, counts, strict=True))
        start, end = (0, *taps, 0), (x.shape[0], *ends, x.shape[-1])
        yield lax.slice(padded, start, end, (1, *[2] * rank, 1))


def _smallest_and_places(windows: Iterable[Array]) -> tuple[Array, Array, Array]:
    """(minimum of every window, first and last voxel that is equal to it u8), in one pass.

    Args:
      windows: one voxel of every window at a time, all f[B, *windows, C].
    """
    smallest, *others = windows
    first = last = jnp.zeros_like(smallest, jnp.uint8)
    for number, voxel in enumerate(others, start=1):
        first = jnp.where(voxel < smallest, jnp.uint8(number), first)
        last = jnp.where(voxel <= smallest, jnp.uint8(number), last)
        smallest = jnp.minimum(voxel, smallest)
    return smallest, first, last


def _to_places(dy: Array, first: Array, last: Array, shape: tuple[int, ...]) -> Array:
    """The transpose of taking the mean of two voxels of every window: for every voxel the sum over
    the windows that it is in."""
    zero, half = jnp.zeros((), dy.dtype), dy * jnp.array(0.5, dy.dtype)
    total = jnp.zeros_like(dy, shape=shape)
    for number, taps in enumerate(itertools.product(range(WINDOW), repeat=len(shape) - 2)):
        share = _share(half, first, last, number)
        config = [(0, 0, 0)]
        for tap, size, count in zip(taps, shape[1:-1], dy.shape[1:-1], strict=True):
            low = tap - 1
            config.append((low, size - (low + 2 * count - 1), 1))
        total = total + lax.pad(share, zero, [*config, (0, 0, 0)])
    return total
