"""The `diagnostics_*` entries of a result: versions, settings, and facts about image and mask.

Keys, their order and values are PyRadiomics' (radiomics/generalinfo.py 3.0.1), with two exceptions:
Versions_PyRadiomics names OsteoJAX, and Versions_PyWavelet says that it is not used.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk

from osteojax import __version__


def diagnostics(
    image: sitk.Image,
    mask: sitk.Image,
    label: int,
    settings: Mapping[str, Any],
    image_types: Mapping[str, Any],
) -> dict[str, Any]:
    """All entries, in PyRadiomics' order.

    Args:
      image, mask: as loaded, before any crop; the mask as uint32 labels.
      label: in the mask.
      settings, image_types: that the extraction uses.
    """
    found = {
        "Versions_PyRadiomics": f"OsteoJAX {__version__} (definitions of v3.0.1)",
        "Versions_Numpy": np.__version__,
        "Versions_SimpleITK": sitk.Version().VersionString(),
        "Versions_PyWavelet": "not used",
        "Versions_Python": platform.python_version(),
        "Configuration_Settings": settings,
        "Configuration_EnabledImageTypes": image_types,
        **{f"Image-original_{name}": value for name, value in _of_image(image).items()},
        **{f"Mask-original_{name}": value for name, value in _of_mask(mask, label).items()},
    }
    return {f"diagnostics_{name}": value for name, value in found.items()}


def _of_image(image: sitk.Image) -> dict[str, Any]:
    values = sitk.GetArrayFromImage(image).astype(np.float64)
    return {
        "Hash": sitk.Hash(image),
        "Dimensionality": f"{image.GetDimension()}D",
        "Spacing": image.GetSpacing(),
        "Size": image.GetSize(),
        "Mean": np.mean(values),
        "Minimum": np.min(values),
        "Maximum": np.max(values),
    }


def _of_mask(mask: sitk.Image, label: int) -> dict[str, Any]:
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(mask)
    region = mask == label
    parts = sitk.ConnectedComponentImageFilter()
    parts.FullyConnectedOn()
    parts.Execute(region)
    places = np.array(np.where(sitk.GetArrayFromImage(region) == 1))
    center_xyz = tuple(np.mean(places, axis=1)[::-1])
    return {
        "Hash": sitk.Hash(mask),
        "Spacing": mask.GetSpacing(),
        "Size": mask.GetSize(),
        "BoundingBox": shapes.GetBoundingBox(label),
        "VoxelNum": shapes.GetNumberOfPixels(label),
        "VolumeNum": parts.GetObjectCount(),
        "CenterOfMassIndex": center_xyz,
        "CenterOfMass": mask.TransformContinuousIndexToPhysicalPoint(center_xyz),
    }
