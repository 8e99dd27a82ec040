"""Statistics of the window around every voxel by window sums, for first-order maps.

  Minimum, Maximum, Range                  running minima and maxima, axis by axis.
  Mean, Energy, RootMeanSquared            window sums. Those of integer images are integers in 64
                                           bits: exact.
  Variance, integer images                 (n * S2 - S1^2) / n^2 of the sums S1, S2 of the n values
                                           above the smallest: the numerator is an exact integer.
  Variance, float images                   S2 - S1^2 / n would lose the variance of a smooth image
                                           to cancellation. Means and squared deviations of rows
                                           are merged to those of slices, then of windows (Chan,
                                           Golub & LeVeque 1983), measured from the window's own
                                           centre: all terms are squares, so nothing cancels.
  Entropy, Uniformity                      one window sum per grey level that occurs: exact counts.

These functions need 64-bit types enabled; call `first_order_maps`, which enables them. On a CPU
`lax.reduce_window` of one axis is 1.5 to 3 times faster here than `windows.box_sum`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Radii = tuple[int, int, int]


def window_size(shape: tuple[int, ...], radii: Radii) -> int:
    """Voxels in the largest window of a [..., D, H, W] array."""
    return math.prod(
        min(2 * radius + 1, size) for radius, size in zip(radii, shape[-3:], strict=True)
    )


@jax.jit
def counted_extent(image, counted):
    """(smallest, largest, number of not finite) of the counted values; low > high if none."""
    finite = jnp.isfinite(image) & counted
    least, most = _limits(image.dtype)
    low = jnp.where(finite, image, most).min()
    high = jnp.where(finite, image, least).max()
    return low, high, counted.sum() - finite.sum()


# ---------------------------------------------------------------- statistics of the values


@partial(jax.jit, static_argnames=("radii", "features", "exact"))
def value_maps(
    image, counted, mask, shift, fill, *, radii, features, exact
) -> dict[str, jax.Array]:
    """The maps of `first_order.OF_VALUES`, as one program.

    Args:
      image: [..., D, H, W], int32, int64, float32 or float64.
      counted: bool[..., D, H, W], the voxels that windows count.
      mask: bool[..., D, H, W], where maps are wanted.
      shift: int64, added to the image in Energy and RootMeanSquared.
      fill: value outside the mask; its dtype is that of the maps.
      exact: whether the image is of integers whose sums all fit 64 bits.
    """
    wide = image.astype(jnp.int64 if exact else jnp.float64)
    values = jnp.where(counted, wide, 0)
    number = jnp.maximum(_sums(counted.astype(jnp.int32), radii), 1).astype(wide.dtype)
    maps: dict[str, jax.Array] = {}
    if "Mean" in features:
        maps["Mean"] = _sums(values, radii) / number
    if "Variance" in features:
        if exact:
            scatter = _integer_scatter(image, values, counted, number, radii) / number
        else:
            scatter = _float_scatter(values, counted, radii)
        maps["Variance"] = scatter / number
    if {"Energy", "RootMeanSquared"} & set(features):
        shifted = jnp.where(counted, values + shift.astype(wide.dtype), 0)
        maps["Energy"] = _sums(shifted**2, radii)
        maps["RootMeanSquared"] = jnp.sqrt(maps["Energy"] / number)
    if {"Minimum", "Maximum", "Range"} & set(features):
        least, most = _limits(image.dtype)
        low = _windows(jnp.where(counted, image, most), radii, lax.min, most)
        high = _windows(jnp.where(counted, image, least), radii, lax.max, least)
        maps["Minimum"], maps["Maximum"] = low.astype(wide.dtype), high.astype(wide.dtype)
        maps["Range"] = maps["Maximum"] - maps["Minimum"]
    return {name: _finished(maps[name], mask, fill) for name in features}


def _integer_scatter(image, values, counted, number, radii):
    """int64 n * S2 - S1^2 of the values above each volume's smallest: n times the scatter."""
    _, most = _limits(image.dtype)
    low = jnp.where(counted, image, most).min((-3, -2, -1), keepdims=True).astype(jnp.int64)
    above = jnp.where(counted, values - low, 0)
    return number * _sums(above**2, radii) - _sums(above, radii) ** 2


def _float_scatter(values, counted, radii):
    """f64 sum of squared deviations from the mean of each window.

    Along one axis after the other, groups of `number` values with mean `values + offset` and sum
    of squared deviations `scatter` are merged. A mean is kept as its offset from the voxel at the
    group's centre, so that close values are subtracted first, which is exact.
    """
    number = counted.astype(jnp.float64)
    # Voxels that do not count are centres of groups too; the mean value loses the fewest digits.
    middle = values.sum((-3, -2, -1), keepdims=True) / jnp.maximum(
        number.sum((-3, -2, -1), keepdims=True), 1
    )
    values = jnp.where(counted, values, middle)
    offset, scatter = jnp.zeros_like(values), jnp.zeros_like(values)
    for axis, radius in zip((-3, -2, -1), radii, strict=True):
        number, offset, scatter = _merged(number, values, offset, scatter, axis, radius)
    return scatter


def _merged(number, values, offset, scatter, axis: int, radius: int):
    """(number, offset, scatter) of the groups of 2 * radius + 1 neighbours along an axis.

    Neighbours are looped over: unrolled, XLA recomputes the operands of each (8 times slower).
    """
    padding = [(0, 0)] * values.ndim
    padding[axis] = (radius, radius)
    numbers, centres, offsets, scatters = (
        jnp.pad(part, padding) for part in (number, values, offset, scatter)
    )

    def neighbour(parts, index):
        return lax.dynamic_slice_in_dim(parts, index, values.shape[axis], axis % values.ndim)

    def step(index):
        return neighbour(centres, index) - values + neighbour(offsets, index)

    def add_mean(index, state):
        count, total = state
        here = neighbour(numbers, index)
        return count + here, total + here * step(index)

    zero = jnp.zeros_like(values)
    count, total = lax.fori_loop(0, 2 * radius + 1, add_mean, (zero, zero))
    mean = total / jnp.maximum(count, 1)

    def add_squares(index, total):
        squares = neighbour(numbers, index) * (step(index) - mean) ** 2
        return total + neighbour(scatters, index) + squares

    return count, mean, lax.fori_loop(0, 2 * radius + 1, add_squares, zero)


# ---------------------------------------------------------------- statistics of the grey levels


@partial(jax.jit, static_argnames=("radii", "features"))
def level_maps(levels, counted, mask, fill, *, radii, features) -> dict[str, jax.Array]:
    """Entropy and Uniformity from the count of every level, one level at a time.

    The loop steps from each level that occurs to the next, so that gaps cost nothing. `levels` are
    integers from 1 where `counted`, below their dtype's largest; the rest as in `value_maps`.
    """
    levels = jnp.where(counted, levels, 0).astype(jnp.promote_types(levels.dtype, jnp.int32))
    end = jnp.iinfo(levels.dtype).max
    # n log2 n of every count: H = log2 N - sum(n log2 n) / N, exactly 0 if one level has all N.
    counts = np.arange(window_size(levels.shape, radii) + 1)
    number_log = jnp.asarray(counts * np.log2(np.maximum(counts, 1)))

    def following(level):
        return jnp.where(levels > level, levels, end).min(initial=end).astype(levels.dtype)

    def add(state):
        level, logs, squares = state
        count = _sums((levels == level).astype(jnp.int32), radii)
        logs = logs + number_log[count]
        squares = squares + count.astype(jnp.int64) ** 2
        return following(level), logs, squares

    start = (following(0), jnp.zeros(levels.shape), jnp.zeros(levels.shape, jnp.int64))
    _, logs, squares = lax.while_loop(lambda state: state[0] < end, add, start)
    number = _sums(counted.astype(jnp.int32), radii)
    divisor = jnp.maximum(number, 1).astype(jnp.float64)
    maps = {"Entropy": (number_log[number] - logs) / divisor, "Uniformity": squares / divisor**2}
    return {name: _finished(maps[name], mask, fill) for name in features}


# ---------------------------------------------------------------- windows


def _windows(image, radii, combine, empty):
    """`combine` over the window of every voxel, axis by axis; `empty` beyond the border."""
    for axis, radius in zip((-3, -2, -1), radii, strict=True):
        lengths, padding = [1] * image.ndim, [(0, 0)] * image.ndim
        lengths[axis], padding[axis] = 2 * radius + 1, (radius, radius)
        start = np.asarray(empty, image.dtype)[()]
        image = lax.reduce_window(image, start, combine, lengths, (1,) * image.ndim, padding)
    return image


def _sums(image, radii):
    """Window sums in the image's own dtype."""
    return _windows(image, radii, lax.add, 0)


def _limits(dtype) -> tuple[Any, Any]:
    """Smallest and largest value of a dtype, in that dtype."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(-np.inf, dtype)[()], np.asarray(np.inf, dtype)[()]
    info = jnp.iinfo(dtype)
    return np.asarray(info.min, dtype)[()], np.asarray(info.max, dtype)[()]


def _finished(image, mask, fill):
    """The map in the dtype of `fill`, with that value outside the mask."""
    return jnp.where(mask, image.astype(fill.dtype), fill)
