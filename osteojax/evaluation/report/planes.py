"""Planes of a CT for the page of one patient: sagittal and coronal ones, and an axial one of each
vertebra."""

from __future__ import annotations

import dataclasses

import numpy as np

PAGE_SPACING_MM = 1.5
AXIAL_MM = 90.0
"""Edge of an axial plane: a lumbar vertebra with its processes is 80 to 90 mm wide and deep."""


@dataclasses.dataclass(frozen=True)
class Axial:
    """Axial plane through the centre of one vertebra.

    Attributes:
      hu: f32[Y, X], anterior to posterior, right to left.
      classes: uint8[Y, X], class 1-18 of the vertebra there, or 0.
    """

    hu: np.ndarray
    classes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reformat:
    """Planes of the spine. The sagittal and the coronal one follow the vertebral centres.

    Attributes:
      sagittal_hu: f32[Z, Y], inferior to superior, anterior to posterior.
      coronal_hu: f32[Z, X], inferior to superior, right to left.
      sagittal_classes, coronal_classes: uint8, class 1-18 of the vertebra there, or 0.
      axial: of each vertebra, in the order of the centres.
      spacing_mm: of all axes.
    """

    sagittal_hu: np.ndarray
    coronal_hu: np.ndarray
    sagittal_classes: np.ndarray
    coronal_classes: np.ndarray
    axial: tuple[Axial, ...]
    spacing_mm: float


def reformat(
    hu_ZYX: np.ndarray,
    classes_ZYX: np.ndarray,
    centres_index: np.ndarray,
    spacing_mm: float = PAGE_SPACING_MM,
) -> Reformat:
    """Planes through the vertebral centres.

    Args:
      hu_ZYX, classes_ZYX: on an isotropic grid along superior, posterior, left.
      centres_index: f64[N, 3], centres of the vertebrae as (z, y, x) indices.
    """
    depth = hu_ZYX.shape[0]
    order = np.argsort(centres_index[:, 0])
    heights = np.arange(depth)

    def along(axis: int) -> np.ndarray:
        path = np.interp(heights, centres_index[order, 0], centres_index[order, axis])
        return np.clip(np.rint(path).astype(int), 0, hu_ZYX.shape[axis] - 1)

    half = round(AXIAL_MM / 2 / spacing_mm)

    def axial(centre: np.ndarray) -> Axial:
        z, y, x = np.clip(np.rint(centre).astype(int), 0, np.array(hu_ZYX.shape) - 1)
        inside = np.s_[z, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        return Axial(hu_ZYX[inside].copy(), classes_ZYX[inside].copy())

    y, x = along(1), along(2)
    return Reformat(
        hu_ZYX[heights, :, x],
        hu_ZYX[heights, y, :],
        classes_ZYX[heights, :, x],
        classes_ZYX[heights, y, :],
        tuple(axial(centre) for centre in centres_index),
        spacing_mm,
    )
