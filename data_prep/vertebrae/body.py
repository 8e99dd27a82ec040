"""Finds the vertebral body in the mask of one vertebra, and measures both.

The body is what a morphological opening in millimetres keeps; pedicles are too narrow for it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

OPENING = 0.58
"""Radius of the opening that keeps only the body, in inscribed radii; pedicles are narrower."""
ANALYSIS_MM = 1.0
"""Masks finer than this are subsampled before distances are measured."""
MIN_ELEMENTS_VOLUME = 0.08
"""Smallest volume of posterior elements, in volumes of the body; usually 0.3 to 0.8."""
MIN_ELEMENTS_DISTANCE = 1.2
"""Smallest distance of their centroid from the body's, in inscribed radii; usually 2 to 3."""


@dataclasses.dataclass(frozen=True)
class Body:
    """Measurements of the mask of one vertebra, without its neighbours.

    Attributes:
      level_class: 1-18.
      centre_mm: f64[3], centroid of the body, LPS.
      elements_mm: f64[3] from there to the centroid of the posterior elements; None where the mask
        has too few of them.
      truncated: whether the label touches the border of the volume.
      radius_mm: radius of the largest ball inside the body.
      body_volume_mm3, mask_volume_mm3: of the body, and of the whole label.
      image: uint8, 1 in the body, on the grid of the analysis (`ANALYSIS_MM`).
    """

    level_class: int
    centre_mm: np.ndarray
    elements_mm: np.ndarray | None
    truncated: bool
    radius_mm: float
    body_volume_mm3: float
    mask_volume_mm3: float
    image: sitk.Image


def measure_bodies(class_mask: sitk.Image) -> list[Body]:
    """The bodies of every vertebra in a mask of classes 1-18, from T1 downwards."""
    classes = sitk.GetArrayViewFromImage(class_mask)
    boxes = ndimage.find_objects(classes)
    return [
        _measure_body(class_mask, classes, label, box)
        for label, box in enumerate(boxes, start=1)
        if box is not None
    ]


def _measure_body(
    class_mask: sitk.Image, classes: np.ndarray, label: int, box: tuple[slice, ...]
) -> Body:
    """Separates the body of one label from its posterior elements. box: the label's extent."""
    spacing_mm = np.array(class_mask.GetSpacing())[::-1]
    inside = classes[box] == label
    stride = np.maximum(1, np.floor(ANALYSIS_MM / spacing_mm + 1e-6)).astype(int)
    sampled = np.pad(inside[tuple(slice(None, None, s) for s in stride)], 1)
    if not sampled.any():  # the label lies between the samples
        stride, sampled = np.ones(3, int), np.pad(inside, 1)
    step_mm = spacing_mm * stride
    body, rest, radius_mm = _opened(sampled, step_mm)
    first = np.array([s.start for s in box])

    def place_mm(index: np.ndarray) -> np.ndarray:
        """LPS of an index z, y, x of `sampled`."""
        own = (index - 1) * stride + first
        return np.array(class_mask.TransformContinuousIndexToPhysicalPoint(own[::-1].tolist()))

    centre_mm = place_mm(np.argwhere(body).mean(axis=0))
    elements_mm = None
    if rest.sum() >= MIN_ELEMENTS_VOLUME * body.sum():
        towards_mm = place_mm(np.argwhere(rest).mean(axis=0)) - centre_mm
        if np.linalg.norm(towards_mm) >= MIN_ELEMENTS_DISTANCE * radius_mm:
            elements_mm = towards_mm
    image = sitk.GetImageFromArray(body.astype(np.uint8))
    image.SetSpacing(step_mm[::-1].tolist())
    image.SetDirection(class_mask.GetDirection())
    image.SetOrigin(place_mm(np.zeros(3)).tolist())
    return Body(
        level_class=label,
        centre_mm=centre_mm,
        elements_mm=elements_mm,
        truncated=any(s.start == 0 or s.stop == n for s, n in zip(box, classes.shape, strict=True)),
        radius_mm=radius_mm,
        body_volume_mm3=float(body.sum() * np.prod(step_mm)),
        mask_volume_mm3=float(inside.sum() * np.prod(spacing_mm)),
        image=image,
    )


def _opened(sampled: np.ndarray, step_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(body, posterior elements, radius of the largest ball) of a vertebra, bool[D, H, W] each."""
    depth_mm = ndimage.distance_transform_edt(sampled, sampling=step_mm)
    radius_mm = float(depth_mm.max())
    core, _ = ndimage.label(depth_mm > OPENING * radius_mm)
    core = core == 1 + np.argmax(np.bincount(core.ravel())[1:])
    away_mm = ndimage.distance_transform_edt(~core, sampling=step_mm)
    body = sampled & (away_mm <= OPENING * radius_mm)
    margin_mm = max(2.0, float(step_mm.max()))
    rest = sampled & (away_mm > OPENING * radius_mm + margin_mm)
    return body, rest, radius_mm
