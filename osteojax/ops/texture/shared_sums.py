"""Maps of a whole box from window sums that they share, in two passes over memory: for a GPU.

Four functions of the grey levels (i, j) of a pair come from four sums over the window:

  i * j           P
  i + j           S
  |i - j|         S - 2 M, M of min(i, j)
  (i - j)^2       Q - 2 P, Q of i^2 + j^2

P and M are sums over pairs that need no mask: a zero beyond the box makes a pair's value 0. S and Q
are sums over voxels, a filter along one axis after the other. The box is padded by zeros first, so
that no kernel asks where the border is, and the compiler keeps what neighbouring voxels of a thread
have in common. The first pass sums along depth and width, all additions of a voxel in one kernel,
and writes 30 bytes a voxel for the four maps; the second sums along the height.

Sums are integers modulo 2^32. What is divided in the end must `fit`, so that differences are exact
and two float32 divisions are all that rounds. A mean over `length` voxels or over length - 1 pairs
along an axis is a sum with the weight length - 1 or length, over length * (length - 1): weights
that depend on the place along their own axis only and stay out of the sums along the others.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from osteojax.ops.texture.windows import ANGLES, pair_ends

SUMS: Mapping[str, tuple[str, ...]] = {
    "product": ("P",),
    "sum": ("S",),
    "difference": ("S", "M"),
    "squared difference": ("Q", "P"),
}
"""Pair value -> the sum that it is, or the two of which it is the first minus twice the second."""
D, H, W = -3, -2, -1


def shared_means(
    levels: jax.Array, values: tuple[str, ...], num_levels: int, radius: int
) -> dict[str, jax.Array]:
    """Means over 13 angles of the window means of some pair values, where every voxel counts.

    Args:
      levels: integer[..., D, H, W], 0..num_levels.
      values: names of `SUMS`; those that do not `fit` are wrong.
      num_levels: no level is larger.
      radius: of the window, from 1 to the longest edge.

    Returns:
      f32[..., D, H, W] per value, as `whole_box.whole_box_mean` to 6e-7.
    """
    axes = {place: Axis(levels.shape[place], radius, place) for place in (D, H, W)}
    moves = [(0, 1) if axes[place].size > 1 else (0,) for place in (D, H, W)]
    classes = [moved for moved in itertools.product(*moves) if any(moved)]
    if not classes or not values:
        return {value: jnp.full(levels.shape, jnp.nan, jnp.float32) for value in values}
    around = [(0, 0)] * (levels.ndim - 3) + [(radius, radius)] * 3
    padded = lax.optimization_barrier(jnp.pad(levels.astype(narrowest(num_levels)), around))
    square = num_levels**2
    first_pass: dict[str, Callable[[], dict[Any, jax.Array]]] = {
        "P": lambda: _rows_of_pairs(operator.mul, padded, axes, classes, square),
        "M": lambda: _rows_of_pairs(jnp.minimum, padded, axes, classes, num_levels),
        "S": lambda: _rows_of_voxels(lambda level: level, padded, axes, num_levels),
        "Q": lambda: _rows_of_voxels(lambda level: level * level, padded, axes, square),
    }
    needed = sorted({name for value in values for name in SUMS[value]})
    rows = lax.optimization_barrier({name: first_pass[name]() for name in needed})
    boxes = {
        name: (_boxes_of_pairs if name in "PM" else _boxes_of_voxels)(rows[name], axes)
        for name in needed
    }
    angles = sum(2 ** (sum(moved) - 1) for moved in classes)
    return {value: _mean([boxes[name] for name in SUMS[value]], axes, angles) for value in values}


def fit(value_bound: int, shape: tuple[int, ...], radius: int) -> bool:
    """Whether the sums that are divided stay below 2^32, of pair values up to a bound."""
    depth, height, width = (Axis(shape[place], radius, place).longest for place in (D, H, W))
    return 9 * value_bound * depth**2 * height * width**2 < 2**32


class Axis(NamedTuple):
    """One axis of the box: voxels along it, radius of the window, which one."""

    size: int
    radius: int
    place: int

    @property
    def longest(self) -> int:
        """Most voxels of the box in a window."""
        return min(self.size, 2 * self.radius + 1)

    @property
    def lengths(self) -> np.ndarray:
        """u32[size], voxels of the box in the window of each place."""
        center = np.arange(self.size)
        last = np.minimum(center + self.radius, self.size - 1)
        return (last - np.maximum(center - self.radius, 0) + 1).astype(np.uint32)

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """u32[size] of sums over voxels, and of sums over pairs with a step along this axis."""
        length = self.lengths
        return (length - 1, length) if self.size > 1 else (length, 0 * length)

    @property
    def divisors(self) -> np.ndarray:
        """u32[size], what weighted sums are divided by."""
        length = self.lengths
        return length * (length - 1) if self.size > 1 else length

    def along(self, values: np.ndarray) -> np.ndarray:
        """Values of each place, to broadcast against a box."""
        return values.reshape(-1, *[1] * (-1 - self.place))

    def cut(self, padded, first: int):
        """What every voxel sees at the offset first - radius."""
        return lax.slice_in_dim(padded, first, first + self.size, axis=self.place)

    def taps(self, moved: int = 0) -> range:
        """First places of the voxels in a window, or of the pairs with a step along this axis."""
        return range(2 * self.radius + 1 - moved)


# ---------------------------------------------------------------- along depth and width


def _rows_of_pairs(function, padded, axes, classes, bound: int) -> dict[Any, jax.Array]:
    """Sums of a function of pairs over depth and width, by their step (0 or 1) along the height.

    Args:
      bound: of the function.

    Returns:
      integer[..., D, H + 2r - step, W] for each step.
    """
    depth, width = axes[D], axes[W]
    rows: dict[Any, jax.Array] = {}
    for down, moved, across in classes:
        diagonals = [angle for angle in ANGLES if tuple(map(abs, angle)) == (down, moved, across)]
        pairs = [pair_ends(padded, angle) for angle in diagonals]
        # Sums over the depth first: voxels of a thread, which lie along the width, share them.
        columns = (
            add_up(
                function(*(_wide(depth.cut(width.cut(end, tap), first)) for end in ends))
                for ends in pairs
                for first in depth.taps(down)
            )
            for tap in width.taps(across)
        )
        weights = depth.along(depth.weights[down]) * width.along(width.weights[across])
        weighted = add_up(columns) * weights
        rows[moved] = rows[moved] + weighted if moved in rows else weighted
    dtype = narrowest(9 * bound * depth.longest**2 * width.longest**2)
    return {moved: row.astype(dtype) for moved, row in rows.items()}


def _rows_of_voxels(function, padded, axes, bound: int) -> dict[Any, jax.Array]:
    """Sums of a function of voxels over depth and width.

    Args:
      bound: of the function.

    Returns:
      integer[..., D, H + 2r, W]: "all" classes of angles together, weighted, and those of "still"
      voxels, without a weight.
    """
    depth, width = axes[D], axes[W]
    columns = [
        [function(_wide(depth.cut(width.cut(padded, tap), first))) for first in depth.taps()]
        for tap in width.taps()
    ]
    longest = depth.longest * width.longest
    moving = _all_classes([_all_classes(column, depth) for column in columns], width)
    return {
        "all": moving.astype(narrowest(9 * bound * longest**2)),
        "still": add_up(map(add_up, columns)).astype(narrowest(bound * longest)),
    }


# ---------------------------------------------------------------- along the height


def _boxes_of_pairs(rows, axes) -> dict[int, jax.Array]:
    """u32[..., D, H, W] sums over the window, by the step of the pairs along the height."""
    height = axes[H]
    return {
        moved: add_up(_wide(height.cut(row, first)) for first in height.taps(moved))
        for moved, row in rows.items()
    }


def _boxes_of_voxels(rows, axes) -> dict[int, jax.Array]:
    """As `_boxes_of_pairs`, from sums of voxels. A pair has a step along some axis, so that what
    is still along all three is taken off."""
    height = axes[H]
    taps = [_wide(height.cut(rows["all"], first)) for first in height.taps()]
    still = add_up(_wide(height.cut(rows["still"], first)) for first in height.taps())
    for axis in (axes[D], axes[W]):
        still = still * axis.along(axis.weights[0])
    boxes = {0: add_up(taps) - still}
    if height.size > 1:
        boxes[1] = add_up(taps) + _inner(taps, height)
    return boxes


def _mean(parts: list[dict[int, jax.Array]], axes, angles: int) -> jax.Array:
    """The mean over angles of the first sums minus twice the second."""
    height = axes[H]
    total: Any = 0.0
    for moved, box in parts[0].items():
        whole = box - 2 * parts[1][moved] if len(parts) > 1 else box
        share = (1 / (height.lengths.astype(float) - moved)).astype(np.float32)
        total = total + whole.astype(jnp.float32) * height.along(share)
    places = (axes[place].along(axes[place].divisors.astype(float)) for place in (D, W))
    return total * (1 / (operator.mul(*places) * angles)).astype(np.float32)


# ---------------------------------------------------------------- along one axis


def _all_classes(taps: list, axis: Axis):
    """Weighted sums over voxels and over both ends of pairs with a step along an axis: pairs hold
    every voxel of the window twice, but its first and last once."""
    voxels, pairs = axis.weights
    total = add_up(taps) * axis.along(voxels + pairs)
    return total + _inner(taps, axis) * axis.along(pairs) if axis.size > 1 else total


def _inner(taps: list, axis: Axis):
    """Sum over the window but for the first and the last voxel of the box in it."""
    inside = np.ones(axis.size + 2 * axis.radius, np.uint32)
    inside[[axis.radius, axis.radius + axis.size - 1]] = 0
    return add_up(
        taps[first] * axis.along(inside[first : first + axis.size])
        for first in range(1, 2 * axis.radius)
    )


def _wide(image):
    return image.astype(jnp.uint32)


def add_up(images: Iterable):
    """The sum of some images, one added after the other."""
    return functools.reduce(operator.add, images)


def narrowest(bound: int):
    """The narrowest unsigned dtype, up to 32 bits, that holds a bound."""
    if bound < 2**8:
        return jnp.uint8
    return jnp.uint16 if bound < 2**16 else jnp.uint32
