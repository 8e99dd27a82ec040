"""The voxel grid of a simulated CT, and fine grids inside it.

Slices, rows and columns run along three orthonormal axes of the patient's space (LPS, mm). Arrays
are [slice, row, column]; coordinates are kept broadcastable, which saves memory.
"""

from __future__ import annotations

import dataclasses

import numpy as np

Box = tuple[slice, slice, slice]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A CT's geometry.

    Attributes:
      origin_mm: f64[3] patient position of voxel [0, 0, 0].
      axes: f64[3, 3], columns: patient directions of increasing column, row and slice.
      spacing_mm: (column, row, slice).
      shape: (slices, rows, columns).
    """

    origin_mm: np.ndarray
    axes: np.ndarray
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    def patient_mm(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patient x, y, z of every voxel, f32, broadcastable to `shape`."""
        everything: Box = (
            slice(0, self.shape[0]),
            slice(0, self.shape[1]),
            slice(0, self.shape[2]),
        )
        return self.frame_mm(everything, np.zeros(3), np.eye(3))

    def centres_mm(self, axis: int, where: slice) -> np.ndarray:
        """f64[N] positions along one grid axis (0 column, 1 row, 2 slice), from voxel 0."""
        return np.arange(where.start, where.stop) * self.spacing_mm[axis]

    def frame_mm(
        self, box: Box, centre_mm: np.ndarray, frame: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates in a frame (rows of `frame`, LPS) of the voxels of a box, f32."""
        along = [self.centres_mm(axis, box[2 - axis]) for axis in range(3)]
        return self.points_mm(along, centre_mm, frame)

    def points_mm(
        self, along: list[np.ndarray], centre_mm: np.ndarray, frame: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates in a frame of the points at `along` (column, row, slice; mm from voxel 0).

        A coordinate array has length 1 along axes on which the coordinate does not depend.
        """
        turn = frame @ self.axes
        start = frame @ (self.origin_mm - centre_mm)
        shapes = ((1, 1, -1), (1, -1, 1), (-1, 1, 1))
        result = []
        for k in range(3):
            terms = [
                (turn[k, a] * along[a]).astype(np.float32).reshape(shapes[a])
                for a in range(3)
                if abs(turn[k, a]) > 1e-9
            ]
            result.append(np.float32(start[k]) + sum(terms))
        return result[0], result[1], result[2]

    def extent_mm(
        self, centre_mm: np.ndarray, frame: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) f64[3] along the grid's axes of a box given in a frame, mm from voxel 0."""
        corners = np.array(
            [[(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]]
             for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        )  # fmt: skip
        points = (corners @ frame + centre_mm - self.origin_mm) @ self.axes
        return points.min(0), points.max(0)

    def box(
        self,
        centre_mm: np.ndarray,
        frame: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> Box | None:
        """The voxels that a box given in a frame covers; None if it is outside the grid."""
        bottom, top = self.extent_mm(centre_mm, frame, low, high)
        return self.voxels(bottom, top)

    def voxels(self, low_mm: np.ndarray, high_mm: np.ndarray) -> Box | None:
        """Voxels between two corners along the grid's axes; None where there are none."""
        slices = []
        for axis in (2, 1, 0):
            first = max(int(np.floor(low_mm[axis] / self.spacing_mm[axis])), 0)
            last = int(np.ceil(high_mm[axis] / self.spacing_mm[axis])) + 1
            last = min(last, self.shape[2 - axis])
            if last <= first:
                return None
            slices.append(slice(first, last))
        return slices[0], slices[1], slices[2]


def apply_axes(
    matrices: tuple[np.ndarray, np.ndarray, np.ndarray], volume: np.ndarray
) -> np.ndarray:
    """Applies one matrix along each axis.

    Args:
      matrices: f32[N0, M0], f32[N1, M1], f32[N2, M2].
      volume: f32[M0, M1, M2].

    Returns:
      f32[N0, N1, N2]
    """
    first, second, third = matrices
    result = np.matmul(second, volume @ third.T)
    return (first @ result.reshape(result.shape[0], -1)).reshape(-1, *result.shape[1:])


def linear_weights(fine_mm: np.ndarray, coarse_mm: np.ndarray) -> np.ndarray:
    """f32[N, M] linear interpolation from evenly spaced `coarse_mm` [M] to `fine_mm` [N]."""
    position = (fine_mm - coarse_mm[0]) / (coarse_mm[1] - coarse_mm[0])
    return np.maximum(1 - np.abs(position[:, None] - np.arange(len(coarse_mm))[None, :]), 0).astype(
        np.float32
    )
