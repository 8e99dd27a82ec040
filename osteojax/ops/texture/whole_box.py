"""Window means of pair functions where every voxel counts: 13 angles in 13 passes.

The number of pairs in a window is known and is a product of one length per axis. Angles with steps
along the same axes (7 classes) have equal numbers, so their pairs are added before filtering; after
the pass along an axis, the classes that differ only in that axis are added too. That makes
7 + 4 + 2 passes instead of 13 * 3. Sums are integers in the first pass, then float32; all terms are
non-negative, so nothing cancels (4e-7 relative).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from osteojax.ops.texture.windows import ANGLES, box_sum, pair_ends


def whole_box_mean(levels, value, bound: float, radius: int) -> jax.Array:
    """Mean over angles of the window means of `value`, where every voxel counts."""
    shape = levels.shape[-3:]
    moves = [(0,) if size == 1 else (0, 1) for size in shape]  # one slice: no step along it
    classes = [c for c in itertools.product(*moves) if any(c)]
    if not classes:
        return jnp.full(levels.shape, jnp.nan, jnp.float32)
    # The first pass adds 4 * (2r + 1) pairs at most.
    cells = levels.astype(integer_or_float(4 * (2 * radius + 1) * bound))
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
    total = value(*pair_ends(levels, diagonals[0]))
    for angle in diagonals[1:]:
        total = total + value(*pair_ends(levels, angle))
    return total


def _axis_mean(images: dict[int, jax.Array], axis: int, size: int, radius: int) -> jax.Array:
    """Sum over `images` of their window means along an axis of `size` voxels.

    images: step of their pairs along the axis (0 or 1) -> f32 or integer[size - step].
    """
    center = np.arange(size)
    length = np.minimum(center + radius, size - 1) - np.maximum(center - radius, 0) + 1
    total = jnp.float32(0)
    for moved, image in images.items():
        sums = box_sum(image, axis, radius, 2 * radius + 1 - moved).astype(jnp.float32)
        weight = (1 / (length - moved)).astype(np.float32)
        total = total + sums * weight.reshape(-1, *[1] * (-1 - axis))
    return total


def integer_or_float(bound: float):
    """The narrowest integer dtype that holds `bound`, else float32 (rounds but never wraps)."""
    if bound < 2**16:
        return jnp.uint16
    return jnp.int32 if bound < 2**31 else jnp.float32


def widest_bound(bound: int, radius: int) -> float:
    """The largest bound with the same accumulator, so that equal accumulators share a program."""
    cells = 4 * (2 * radius + 1)
    for limit in (2**16, 2**31):
        if cells * bound < limit:
            return (limit - 1) // cells
    return math.inf
