"""The region of interest: one label of a mask, its checks, and the crop around it.

Geometry and checks are PyRadiomics' (radiomics/imageoperations.py 3.0.1): `getMask`, `checkMask`,
`cropToTumorMask`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import SimpleITK as sitk

from osteojax.errors import UserError

DEFAULT_TOLERANCE = 1e-6
"""ITK's tolerance for differences of origin and spacing, in voxels of the first axis."""


def read_image(source: Any, what: str) -> sitk.Image:
    """An image of three axes, given as a file or an image. Raises UserError."""
    if isinstance(source, str | PurePath):
        if not os.path.isfile(source):
            raise UserError(f"{what} {source}: no such file.")
        try:
            image = sitk.ReadImage(str(source))
        except RuntimeError as error:
            raise UserError(f"{what} {source}: SimpleITK cannot read it.") from error
    elif isinstance(source, sitk.Image):
        image = source
    else:
        raise UserError(f"{what}: a file or a SimpleITK image is needed, not {type(source)}.")
    if image.GetDimension() != 3:
        raise UserError(
            f"{what}: {image.GetDimension()} axes, three are needed. Of a 2D image make one slice "
            "with sitk.JoinSeries(image)."
        )
    return image


def scalar_image(image: sitk.Image) -> sitk.Image:
    """Returns the image. Raises UserError if it has several values per voxel."""
    if (parts := image.GetNumberOfComponentsPerPixel()) > 1:
        raise UserError(f"image: {parts} values a voxel, one is needed. Choose a channel.")
    return image


def label_mask(mask: sitk.Image, settings: Mapping[str, Any]) -> sitk.Image:
    """The mask as uint32 labels, or one channel of it if it has several. Raises UserError."""
    label, channel = settings["label"], settings.get("label_channel", 0)
    parts = mask.GetNumberOfComponentsPerPixel()
    if parts > 1 or "vector" in mask.GetPixelIDTypeAsString():
        if channel >= parts:
            raise UserError(f"mask: label_channel {channel}, but it has {parts} channels from 0.")
        mask = sitk.VectorIndexSelectionCast(mask, channel)
    mask = sitk.Cast(mask, sitk.sitkUInt32)
    found = np.unique(sitk.GetArrayViewFromImage(mask))
    if label not in found:
        labels = ", ".join(str(value) for value in found[found != 0][:20]) or "none"
        raise UserError(f"mask: label {label} is not in it; its labels: {labels}.")
    return mask


def bounding_box(image: sitk.Image, mask: sitk.Image, settings: Mapping[str, Any]) -> np.ndarray:
    """The label's first and last voxel along x, y, z: i64[2, 3].

    Raises:
      UserError: image and mask of different geometry; a region of fewer voxels or axes than
        minimumROISize and minimumROIDimensions ask for, or of one voxel.
    """
    _check_geometry(image, mask, settings.get("geometryTolerance"))
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(mask)
    label = settings["label"]
    bounds = np.array(shapes.GetBoundingBox(label), np.int64).reshape(2, 3)
    first, size = bounds
    axes, least = int((size > 1).sum()), settings.get("minimumROIDimensions", 2)
    if axes == 0:
        raise UserError(f"mask: label {label} is one voxel, which has no texture.")
    if axes < least:
        raise UserError(
            f"mask: label {label} is longer than one voxel along {axes} axes, "
            f"minimumROIDimensions is {least}."
        )
    voxels, smallest = shapes.GetNumberOfPixels(label), settings.get("minimumROISize")
    if smallest is not None and voxels <= smallest:
        raise UserError(
            f"mask: label {label} has {voxels} voxels, more than minimumROISize {smallest} are "
            "needed."
        )
    return np.stack([first, first + size - 1])


def _check_geometry(image: sitk.Image, mask: sitk.Image, tolerance: float | None) -> None:
    """Raises UserError by the same test that ITK's filters of two images make."""
    tolerance = DEFAULT_TOLERANCE if tolerance is None else tolerance
    if image.GetSize() != mask.GetSize():
        raise UserError(
            f"mask: {mask.GetSize()} voxels, the image has {image.GetSize()}. Resample the mask "
            "onto the image."
        )
    for what, limit in (
        ("Spacing", tolerance * abs(image.GetSpacing()[0])),
        ("Origin", tolerance * abs(image.GetSpacing()[0])),
        ("Direction", tolerance),
    ):
        of_image, of_mask = (np.array(getattr(i, f"Get{what}")()) for i in (image, mask))
        if np.abs(of_image - of_mask).max() > limit:
            raise UserError(
                f"mask: {what.lower()} {of_mask.tolist()}, the image has {of_image.tolist()}. "
                "Resample the mask onto the image, or set a larger geometryTolerance."
            )


def crop(image: sitk.Image, box: np.ndarray, pad_voxels: int) -> sitk.Image:
    """The image inside a box of `bounding_box` and up to `pad_voxels` voxels around it."""
    size = np.array(image.GetSize())
    lower = np.maximum(box[0] - pad_voxels, 0)
    upper = np.maximum(size - 1 - box[1] - pad_voxels, 0)
    return sitk.Crop(image, lower.tolist(), upper.tolist())
