"""Computes a vertebra's texture pool: the four GLCM maps of an image of HU codes.

Codes are those of `osteojax.data.vertebrae.image_spec`: code = floor((clipped HU + 200) / 5). Grey
level 1 starts at -200 HU in every case, so that the same HU has the same level in every box. A
level is a whole number of codes, so that levels follow from codes by integer division.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osteojax.data.vertebrae import HU_MAX, HU_MIN, IMAGE_STEP_HU, POOL
from osteojax.errors import UserError
from osteojax.ops.texture import glcm
from osteojax.ops.texture.patches import patch_maps
from osteojax.ops.texture.windows import Window

MAPS = POOL[1:]
DOMAINS = ("box", "vertebra")
ENGINES = ("jax", "pyradiomics")

LOWEST_VALUE = {
    "Autocorrelation": 1.0,
    "JointAverage": 1.0,
    "Contrast": 0.0,
    "DifferenceAverage": 0.0,
}
"""Smallest value that each map can take; it is stored where there is no texture."""

_NUM_CODES = round((HU_MAX - HU_MIN) / IMAGE_STEP_HU)


@dataclasses.dataclass(frozen=True)
class TextureSettings:
    """Settings of the maps of a pool. Raises UserError for an invalid value.

    Attributes:
      bin_width: HU per grey level, a multiple of the image code's 5 HU (levels stay exact).
      kernel_radius: voxels; the window is (2 * kernel_radius + 1)^3.
      domain: "box", every voxel of the ROI, or "vertebra", pairs inside the mask only.
      patch_stride: None: dense maps with grey levels common to all windows (PyRadiomics' voxel
        mode). A number: patches this many voxels apart, each with its own grey levels, and maps
        interpolated between their centres (the paper's sliding window;
        `osteojax.ops.texture.patches`).
      engine: "jax" (`osteojax.ops.texture.glcm`), or "pyradiomics", the reference, which is about
        5,000 times slower and needs Python < 3.12.
    """

    bin_width: float = 25.0
    kernel_radius: int = 3
    domain: str = "box"
    engine: str = "jax"
    patch_stride: int | None = None

    def __post_init__(self) -> None:
        codes = self.bin_width / IMAGE_STEP_HU
        if not (math.isfinite(codes) and codes == int(codes) and 1 <= codes <= _NUM_CODES):
            raise UserError(
                f"texture bin width {self.bin_width:g} HU: it must be a multiple of "
                f"{IMAGE_STEP_HU:g} HU from {IMAGE_STEP_HU:g} to {HU_MAX - HU_MIN:g}, so that grey "
                "levels stay exact in the stored image. The default is 25."
            )
        if int(self.kernel_radius) != self.kernel_radius or self.kernel_radius < 1:
            raise UserError(
                f"texture kernel radius {self.kernel_radius}: it must be a whole number of voxels "
                "from 1. The default is 3, a window of 7 x 7 x 7."
            )
        stride = self.patch_stride
        if stride is not None and (stride != int(stride) or stride < 1):
            raise UserError(
                f"texture patch stride {stride}: it must be a whole number of voxels from 1."
            )
        if stride is not None and self.engine == "pyradiomics":
            raise UserError(
                "texture engine 'pyradiomics' makes dense maps only. Use the engine 'jax' with a "
                "patch stride: the patches are equal to PyRadiomics on each."
            )
        for what, value, choices in (
            ("domain", self.domain, DOMAINS),
            ("engine", self.engine, ENGINES),
        ):
            if value not in choices:
                raise UserError(f"texture {what} {value!r}: choose one of {', '.join(choices)}.")

    @property
    def codes_per_level(self) -> int:
        return int(self.bin_width / IMAGE_STEP_HU)

    @property
    def num_levels(self) -> int:
        """Grey levels of the clipped range; the last may be narrower than the others."""
        return -(-_NUM_CODES // self.codes_per_level)


def texture_pool(
    codes: np.ndarray, mask: np.ndarray | None, settings: TextureSettings
) -> dict[str, np.ndarray]:
    """The four texture maps of one ROI.

    Args:
      codes: uint8[D, H, W] image codes, 0..239.
      mask: bool[D, H, W], the vertebra; only the domain "vertebra" uses it, and needs it.
      settings: see `TextureSettings`.

    Returns:
      float32[D, H, W] by name, in grey levels (JointAverage, DifferenceAverage) or squared grey
      levels (Autocorrelation, Contrast); finite everywhere. In the domain "vertebra" a voxel
      outside the mask holds the map's lowest value (`LOWEST_VALUE`: flat bone of the lowest
      level), and so does a voxel inside it that has no neighbour in its window.

    Raises:
      UserError: the mask is missing or empty, or the engine is not installed.
    """
    pools = texture_pools(codes[None], None if mask is None else mask[None], settings)
    return {name: maps[0] for name, maps in pools.items()}


def texture_pools(
    codes: np.ndarray, masks: np.ndarray | None, settings: TextureSettings
) -> dict[str, np.ndarray]:
    """`texture_pool` of a batch: uint8[B, D, H, W], bool[B, D, H, W] -> float32[B, D, H, W]."""
    if codes.ndim != 4 or codes.dtype != np.uint8:
        raise ValueError(f"codes are {codes.dtype}{codes.shape}; uint8[B, D, H, W] is needed")
    if codes.size and codes.max() >= _NUM_CODES:
        raise ValueError(f"image code {codes.max()}: codes run from 0 to {_NUM_CODES - 1}")
    inside = _domain_mask(codes, masks, settings)
    levels = codes // np.uint8(settings.codes_per_level) + np.uint8(1)
    maps: Mapping[str, Any]
    if settings.engine == "pyradiomics":
        maps = _pyradiomics_maps(levels, inside, settings)
    elif settings.patch_stride is not None:
        maps = _patch_maps(levels, inside, settings, settings.patch_stride)
    else:
        maps = glcm.texture_maps(
            levels,
            inside,
            kernel_radius=settings.kernel_radius,
            num_levels=settings.num_levels,
            features=MAPS,
            init_value=math.nan,
        )
    pools = {}
    for name in MAPS:
        pool = np.array(maps[name], np.float32)
        pool[np.isnan(pool)] = LOWEST_VALUE[name]
        pools[name] = pool
    return pools


def _domain_mask(
    codes: np.ndarray, masks: np.ndarray | None, settings: TextureSettings
) -> np.ndarray | None:
    """bool[B, D, H, W] of the voxels whose pairs count, or None for the whole box."""
    if settings.domain == "box":
        return None
    if masks is None or masks.shape != codes.shape:
        raise UserError(
            f"texture domain 'vertebra' needs a mask of the image's shape {codes.shape[1:]}; "
            f"there is {'none' if masks is None else masks.shape[1:]}. Use the domain 'box'."
        )
    empty = np.flatnonzero(~masks.reshape(len(masks), -1).any(axis=1))
    if empty.size:
        raise UserError(
            f"texture domain 'vertebra': the mask is empty in ROI {empty.tolist()} of the batch. "
            "Leave it out, or use the domain 'box'."
        )
    return masks.astype(bool)


def _patch_maps(
    levels: np.ndarray, masks: np.ndarray | None, settings: TextureSettings, stride: int
) -> dict[str, np.ndarray]:
    """float32[B, D, H, W] by name from strided patches; NaN where no patch has a pair."""
    window = Window(settings.kernel_radius)
    volumes = [
        patch_maps(
            volume,
            None if masks is None else masks[index],
            window,
            stride=stride,
            features=MAPS,
            init_value=math.nan,
        )
        for index, volume in enumerate(levels)
    ]
    return {name: np.stack([np.asarray(v[name]) for v in volumes]) for name in MAPS}


# ---------------------------------------------------------------- the reference engine


def _pyradiomics_maps(
    levels: np.ndarray, masks: np.ndarray | None, settings: TextureSettings
) -> dict[str, np.ndarray]:
    """float64[B, D, H, W] by name, NaN outside the mask, from PyRadiomics' voxel-based GLCM."""
    volumes: dict[str, list[np.ndarray]] = {name: [] for name in MAPS}
    for index, volume in enumerate(levels):
        mask = np.ones(volume.shape, bool) if masks is None else masks[index]
        for name, image in pyradiomics_maps(volume, mask, settings.kernel_radius).items():
            volumes[name].append(image)
    return {name: np.stack(images) for name, images in volumes.items()}


def pyradiomics_maps(
    levels: np.ndarray,
    mask: np.ndarray,
    kernel_radius: int,
    voxel_batch: int = 100,
    features: Sequence[str] = MAPS,
) -> dict[str, np.ndarray]:
    """PyRadiomics' own voxel-based maps of given grey levels.

    Two methods of `RadiomicsGLCM` are replaced. Its discretisation starts at the ROI's minimum and
    has an edge at 0 HU; here levels are given and used unchanged. Its JointAverage, where an angle
    has no pair, is NaN or not depending on `voxelBatch`; here it is the mean over the other angles,
    as for the other features. Everything else is PyRadiomics' code.

    Args:
      levels: integer[D, H, W], 1 and up inside the mask.
      mask: bool[D, H, W] with at least one voxel.
      kernel_radius: voxels.
      voxel_batch: windows per call of its C code; 100 was fastest, larger batches take GBs.
      features: names of GLCM features.

    Returns:
      float64[D, H, W] by name, NaN outside the mask.
    """
    import SimpleITK as sitk

    images = _executed(
        levels,
        mask,
        features,
        voxelBased=True,
        maskedKernel=True,
        kernelRadius=int(kernel_radius),
        voxelBatch=voxel_batch,
        initValue=math.nan,
    )
    return {name: sitk.GetArrayFromImage(images[name]) for name in features}


def pyradiomics_features(
    levels: np.ndarray, mask: np.ndarray, features: Sequence[str]
) -> dict[str, float]:
    """PyRadiomics' own GLCM features of a segment: one number of all its pairs of neighbours.

    Grey levels are given, and two methods replaced, as for `pyradiomics_maps`.

    Args:
      levels: integer[D, H, W], 1 and up inside the mask.
      mask: bool[D, H, W] with at least two neighbours.
      features: names of `RadiomicsGLCM`.

    Returns:
      feature by name.

    Raises:
      UserError: PyRadiomics is not installed.
    """
    found = _executed(levels, mask, features)
    return {name: float(np.squeeze(found[name])) for name in features}


def _executed(
    levels: np.ndarray, mask: np.ndarray, features: Sequence[str], **settings: Any
) -> dict[str, Any]:
    import SimpleITK as sitk

    extractor = _level_glcm_class()(
        sitk.GetImageFromArray(levels.astype(np.int32)),
        sitk.GetImageFromArray(mask.astype(np.uint8)),
        distances=[1],
        **settings,
    )
    for name in features:
        extractor.enableFeatureByName(name)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of windows without a pair
        return extractor.execute()


def require_pyradiomics() -> None:
    """Raises UserError where PyRadiomics is not installed."""
    try:
        import radiomics
    except ImportError as error:
        raise UserError(
            "PyRadiomics is not installed. For maps use the texture engine 'jax', which gives the "
            "same ones; or, on Python 3.11: pip install -U setuptools numpy && pip install "
            "--no-build-isolation 'osteojax[reference]' (`make` in a clone does it)."
        ) from error
    radiomics.setVerbosity(logging.ERROR)


def _level_glcm_class() -> Any:
    """PyRadiomics' GLCM class, taking grey levels instead of an image."""
    require_pyradiomics()
    from radiomics.glcm import RadiomicsGLCM

    class LevelGLCM(RadiomicsGLCM):
        def _applyBinning(self, matrix):
            matrix = np.where(self.maskArray, matrix, 0)
            self.coefficients["grayLevels"] = np.unique(matrix[self.maskArray])
            self.coefficients["Ng"] = int(matrix.max())
            return matrix

        def getJointAverageFeatureValue(self):
            i = self.coefficients["i"][None, :, :, None]
            return np.nanmean((self.P_glcm * i).sum((1, 2)), 1)

    return LevelGLCM
