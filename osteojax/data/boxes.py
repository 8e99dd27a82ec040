"""The boxes that `osteojax prepare` cuts around a vertebra: their size, place and margin.

A box is given in millimetres, relative to the centre of the vertebral body and along the vertebra's
own axes. What is stored is the box and a margin on every side. The network sees the box without its
margin, the *shown* window; a shift in training moves that window within the margin, so that it
shows what is there.
"""

from __future__ import annotations

import dataclasses
import math

MARGIN_MM = 4.0
"""Of the boxes that have a margin, on every side."""

REGIONS = ("box", "vertebra", "body")
"""Sets of voxels of a shown window: all of them, the vertebra's, and the vertebral body's."""


@dataclasses.dataclass(frozen=True)
class BoxGrid:
    """The voxels of a box.

    Attributes:
      shape: (D, H, W), inferior to superior, anterior to posterior, right to left; with the margin.
      spacing_mm: edge of a voxel.
      back_mm: how far the middle of the box lies behind the centre of the vertebral body.
      margin: voxels on every side that are stored beyond the shown window.
    """

    shape: tuple[int, int, int]
    spacing_mm: float
    back_mm: float = 0.0
    margin: int = 0

    @property
    def shown(self) -> tuple[int, int, int]:
        """Shape of the shown window."""
        return shown_shape(self.shape, self.margin)

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The index of the shown window in a volume of this grid."""
        return shown_window(self.shape, self.margin)


def cube_grid(edge: int, spacing_mm: float) -> BoxGrid:
    """A cube of `edge` voxels about the centre of the vertebral body."""
    return BoxGrid((edge, edge, edge), spacing_mm)


@dataclasses.dataclass(frozen=True)
class Box:
    """A box of `osteojax prepare --box`.

    Attributes:
      name: of the option.
      shape_mm: (D, H, W) of the shown window.
      back_mm: how far its middle lies behind the centre of the vertebral body.
      margin_mm: stored beyond the shown window on every side.
    """

    name: str
    shape_mm: tuple[float, float, float]
    back_mm: float
    margin_mm: float

    def voxels(self, spacing_mm: float) -> tuple[int, int, int]:
        """(D, H, W) of the shown window in voxels: edges rounded up to even numbers."""
        depth, height, width = (2 * _ceil(edge / spacing_mm / 2) for edge in self.shape_mm)
        return depth, height, width

    def margin(self, spacing_mm: float) -> int:
        """Voxels of the margin on each side, rounded up."""
        return _ceil(self.margin_mm / spacing_mm)

    def grid(self, spacing_mm: float) -> BoxGrid:
        """The stored voxels: the shown window with its margin."""
        margin = self.margin(spacing_mm)
        depth, height, width = (edge + 2 * margin for edge in self.voxels(spacing_mm))
        return BoxGrid((depth, height, width), spacing_mm, self.back_mm, margin)


CUBE = "cube"

BOXES = {
    box.name: box
    for box in (
        Box(CUBE, (96.0, 96.0, 96.0), back_mm=0.0, margin_mm=0.0),
        Box("vertebra", (56.0, 80.0, 96.0), back_mm=12.0, margin_mm=MARGIN_MM),
        Box("body", (40.0, 48.0, 60.0), back_mm=0.0, margin_mm=MARGIN_MM),
    )
}


def shown_shape(shape: tuple[int, int, int], margin: int) -> tuple[int, int, int]:
    """(D, H, W) without the margin."""
    depth, height, width = (edge - 2 * margin for edge in shape)
    return depth, height, width


def shown_window(shape: tuple[int, int, int], margin: int) -> tuple[slice, slice, slice]:
    """The index of the shown window in a volume of this shape."""
    depth, height, width = (slice(margin, edge - margin) for edge in shape)
    return depth, height, width


def _ceil(number: float) -> int:
    """Rounds up; a number that rounding has put just above an integer is that integer."""
    return math.ceil(number - 1e-9)
