"""Windows, pairs of neighbouring voxels, and sums over them, for all texture maps."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

Angle = tuple[int, int, int]
"""Steps along (depth, height, width) from a voxel i to its neighbour j."""

ANGLES: tuple[Angle, ...] = tuple(
    a for a in itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)) if a > (0, 0, 0)
)
"""One of each opposite pair of the 26 neighbours."""

WEIGHTING_NORMS = ("infinity", "euclidean", "manhattan", "no_weighting")


@dataclasses.dataclass(frozen=True)
class Window:
    """The window around a voxel and the pairs in it: PyRadiomics' settings of these names.

    Attributes:
      kernel_radius: r; the window is (2r + 1)^3 voxels, clipped at the array's border.
      distances: between the two ends of a pair, in the infinity norm (Chebyshev): 13 angles at 1,
        49 at 2, 109 at 3.
      force_2d_axis: windows and angles stay inside the slices across this axis (0 depth, 1 height,
        2 width: `force2Ddimension`); None is 3D.
      symmetrical: count each pair as (i, j) and as (j, i) (`symmetricalGLCM`).
      weighting_norm: None: each angle is normalised and features are averaged over the angles
        that have a pair. A norm: matrices are added with the weight exp(-|angle|^2) in mm and
        features are those of the sum ("no_weighting": weight 1).
      spacing_mm: of the voxels along (depth, height, width); weights only.
    """

    kernel_radius: int = 3
    distances: tuple[int, ...] = (1,)
    force_2d_axis: int | None = None
    symmetrical: bool = True
    weighting_norm: str | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        radius, distances = self.kernel_radius, self.distances
        if radius != int(radius) or radius < 1:
            raise ValueError(f"kernel_radius is {radius}; it must be a whole number from 1.")
        if not distances or any(d != int(d) or d < 1 for d in distances):
            raise ValueError(f"distances are {distances}; whole numbers from 1 are needed.")
        if self.force_2d_axis not in (None, 0, 1, 2):
            raise ValueError(f"force_2d_axis is {self.force_2d_axis}; it must be 0, 1, 2 or None.")
        if self.weighting_norm not in (None, *WEIGHTING_NORMS):
            raise ValueError(
                f"weighting_norm is {self.weighting_norm!r}; choose None or one of "
                f"{', '.join(WEIGHTING_NORMS)}."
            )
        if len(self.spacing_mm) != 3 or not all(0 < s < math.inf for s in self.spacing_mm):
            raise ValueError(f"spacing_mm is {self.spacing_mm}; three positive lengths are needed.")

    @property
    def plain(self) -> bool:
        """Whether these are the settings of the fast paths: 13 symmetric angles at distance 1,
        averaged."""
        return self == Window(self.kernel_radius, spacing_mm=self.spacing_mm)

    def radii(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Half-widths along each axis, clipped to the array: the same pairs, fewer additions."""
        radius = min(self.kernel_radius, max(shape[-3:]))
        depth, height, width = (0 if a == self.force_2d_axis else radius for a in range(3))
        return depth, height, width

    def angles(self, shape: tuple[int, ...]) -> tuple[Angle, ...]:
        """The angles that have a pair somewhere in a volume of this shape and fit the window."""
        farthest = max(self.distances)
        reach = [
            min(2 * radius, size - 1, farthest)
            for radius, size in zip(self.radii(shape), shape[-3:], strict=True)
        ]
        z, y, x = (range(-n, n + 1) for n in reach)
        steps = itertools.product(z, y, x)
        return tuple(
            step for step in steps if step > (0, 0, 0) and max(map(abs, step)) in self.distances
        )

    def weights(self, angles: tuple[Angle, ...]) -> np.ndarray:
        """f64 weights of the angles' matrices, scaled so that the largest is 1: only their ratios
        matter, and with long spacings unscaled weights would underflow."""
        mm = np.abs(np.array(angles)) * np.array(self.spacing_mm)
        length_mm = {
            "no_weighting": np.zeros(len(mm)),
            "infinity": mm.max(axis=1),
            "euclidean": np.sqrt((mm**2).sum(axis=1)),
            "manhattan": mm.sum(axis=1),
        }[self.weighting_norm or "no_weighting"]
        return np.exp(length_mm.min() ** 2 - length_mm**2)


def pairs_in_window(radii: tuple[int, int, int], angle: Angle) -> int:
    """Pairs of one angle in an unclipped window."""
    return math.prod(
        max(2 * radius + 1 - abs(step), 0) for radius, step in zip(radii, angle, strict=True)
    )


def pair_ends(image, angle):
    """The first and second end of every pair along `angle`: [..., D-|dz|, H-|dy|, W-|dx|] each."""
    first = tuple(slice(max(-step, 0), -step if step > 0 else None) for step in angle)
    second = tuple(slice(max(step, 0), step if step < 0 else None) for step in angle)
    return image[(..., *first)], image[(..., *second)]


def window_sum(pairs, radii: tuple[int, int, int], angle: Angle):
    """Sums over the pairs whose ends are both in each voxel's window; [D-|dz|, ...] -> [D, ...]."""
    for axis in (-1, -2, -3):
        pairs = box_sum(pairs, axis, radii[axis], 2 * radii[axis] + 1 - abs(angle[axis]))
    return pairs


def box_sum(image, axis: int, radius: int, taps: int):
    """Sums of `taps` neighbours along a negative axis padded by `radius` zeros at either end."""
    padding = [(0, 0)] * image.ndim
    padding[axis] = (radius, radius)
    padded = jnp.pad(image, padding)
    size = padded.shape[axis] - taps + 1
    axis += image.ndim
    # One fused loop over all taps loads from the first-level cache; partial sums of doubling
    # length would be written out and read again.
    total = lax.slice_in_dim(padded, 0, size, axis=axis)
    for tap in range(1, taps):
        total = total + lax.slice_in_dim(padded, tap, tap + size, axis=axis)
    return total
