"""Pedicle screws and rods of a fused lumbar spine, in sizes of common implants.

Metal saturates the CT's range of values. Streak artefacts are not modelled.
"""

from __future__ import annotations

import itertools

import numpy as np

from data_prep.simulate.anatomy import CANAL_DEPTH_MM, Vertebra, capsule_distance, pedicle_offset_mm
from data_prep.simulate.grid import Grid

METAL_HU = 8000.0
"""HU of titanium; beyond the 3071 that 12 bits hold."""
SCREW_RADIUS_MM, ROD_RADIUS_MM = 3.1, 2.75
EDGE_MM = 1.0


def paint_screws(
    volume: np.ndarray, grid: Grid, spine: dict[str, Vertebra], levels: tuple[str, ...]
) -> None:
    """Paints, in place, a screw through each pedicle of `levels` and a rod per side that joins the
    screw heads.

    Args:
      volume: f32[slices, rows, columns] HU.
      levels: adjacent levels; () leaves the volume unchanged.
    """
    for side in (-1, 1):
        heads = []
        for level in levels:
            head, tip = (_patient_mm(spine[level], point) for point in _screw(spine[level], side))
            _paint(volume, grid, head, tip, SCREW_RADIUS_MM)
            heads.append(head)
        for above, below in itertools.pairwise(heads):
            _paint(volume, grid, above, below, ROD_RADIUS_MM)


def _screw(vertebra: Vertebra, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a screw's head, behind the lamina, and of its tip, in the anterior third of the
    body; in the vertebra's frame."""
    scale, wall = vertebra.scale, vertebra.depth_mm / 2
    pedicle = pedicle_offset_mm(vertebra)
    head = (side * (pedicle + 5 * scale), wall + 1.5 * CANAL_DEPTH_MM * scale)
    tip = (side * 0.55 * pedicle, -0.35 * wall)
    height = 0.09 * vertebra.height_mm  # of the pedicle's axis
    return np.array([*head, height]), np.array([*tip, height])


def _patient_mm(vertebra: Vertebra, point: np.ndarray) -> np.ndarray:
    return vertebra.centre_mm + point @ vertebra.frame


def _paint(
    volume: np.ndarray, grid: Grid, start_mm: np.ndarray, end_mm: np.ndarray, radius_mm: float
) -> None:
    """A rod of metal from one patient position to another, in place."""
    reach = radius_mm + 2 * EDGE_MM
    low, high = np.minimum(start_mm, end_mm) - reach, np.maximum(start_mm, end_mm) + reach
    box = grid.box(np.zeros(3), np.eye(3), low, high)
    if box is None:
        return
    coordinates = grid.frame_mm(box, np.zeros(3), np.eye(3))
    distance = capsule_distance(coordinates, tuple(start_mm), tuple(end_mm), radius_mm)
    weight = np.clip(np.float32(0.5) - distance / np.float32(EDGE_MM), 0, 1)
    volume[box] += weight * (np.float32(METAL_HU) - volume[box])
