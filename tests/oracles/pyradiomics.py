"""PyRadiomics itself, on arrays. Skips the test where it is not installed (Python 3.12 and up)."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest


def _glcm(image, mask, spacing_mm, **settings):
    radiomics = pytest.importorskip("radiomics", reason="PyRadiomics needs Python < 3.12")
    import SimpleITK as sitk
    from radiomics.glcm import RadiomicsGLCM

    radiomics.setVerbosity(logging.ERROR)
    images = []
    for array in (image, mask.astype(np.uint8)):
        images.append(sitk.GetImageFromArray(array))
        images[-1].SetSpacing([float(s) for s in spacing_mm[::-1]])
    return RadiomicsGLCM(*images, **settings)


def _run(extractor, features):
    for name in features:
        extractor.enableFeatureByName(name)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return extractor.execute()


def glcm_maps(image, mask, features, spacing_mm=(1, 1, 1), **settings) -> dict[str, np.ndarray]:
    """Voxel-based maps by feature name; all voxels in one batch of its C code."""
    extractor = _glcm(image, mask, spacing_mm, voxelBased=True, **settings)
    import SimpleITK as sitk

    return {n: sitk.GetArrayFromImage(m) for n, m in _run(extractor, features).items()}


def glcm_features(image, mask, features, spacing_mm=(1, 1, 1), **settings) -> dict[str, float]:
    """Segment-based features by name."""
    found = _run(_glcm(image, mask, spacing_mm, **settings), features)
    return {name: float(np.squeeze(value)) for name, value in found.items()}
