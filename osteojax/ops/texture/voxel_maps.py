"""PyRadiomics' voxel-based extraction with its names of settings and features.

    settings = VoxelSettings.from_dict({"binWidth": 25, "kernelRadius": 2})
    maps = voxel_maps(image, mask, {"glcm": ["Contrast"], "firstorder": ["Entropy"]}, settings)
    maps["glcm_Contrast"]

Settings and features that are not supported raise ValueError with their name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from osteojax.ops.texture import first_order
from osteojax.ops.texture.glcm import window_maps
from osteojax.ops.texture.grey_levels import radiomics_levels
from osteojax.ops.texture.pair_features import ALL_FEATURES, check_features
from osteojax.ops.texture.windows import Window

CLASSES = {"glcm": ALL_FEATURES, "firstorder": first_order.FEATURES}


@dataclasses.dataclass(frozen=True)
class VoxelSettings:
    """Settings of `RadiomicsGLCM` and `RadiomicsFirstOrder`, names, meaning and defaults.

    Attributes:
      binWidth: width of a grey level in the image's unit; not used where binCount is given.
      binCount: number of grey levels, or None.
      kernelRadius: the window is (2 * kernelRadius + 1)^3.
      maskedKernel: windows count the mask's voxels only. False: every voxel of the array, which is
        then discretised whole, as PyRadiomics' feature classes do. (Its extractor first crops to
        the mask's bounding box and kernelRadius voxels around it: crop the array to get its maps.)
      distances: between the voxels of a pair.
      force2D, force2Ddimension: windows and pairs inside the slices across this axis (0 depth).
      symmetricalGLCM: pairs count both ways.
      weightingNorm: None, "manhattan", "euclidean", "infinity" or "no_weighting".
      initValue: value outside the mask.
      voxelArrayShift: added to the image in Energy and RootMeanSquared.
    """

    binWidth: float = 25.0
    binCount: int | None = None
    kernelRadius: int = 1
    maskedKernel: bool = True
    distances: tuple[int, ...] = (1,)
    force2D: bool = False
    force2Ddimension: int = 0
    symmetricalGLCM: bool = True
    weightingNorm: str | None = None
    initValue: float = 0.0
    voxelArrayShift: int = 0

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> VoxelSettings:
        """Raises ValueError for a setting that is not supported."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ValueError(
                f"settings {', '.join(unknown)} are not supported; there are {', '.join(known)}."
            )
        values = dict(settings)
        if "distances" in values:
            values["distances"] = tuple(values["distances"])
        return cls(**values)

    def window(self, spacing_mm: tuple[float, float, float]) -> Window:
        return Window(
            self.kernelRadius,
            self.distances,
            self.force2Ddimension if self.force2D else None,
            self.symmetricalGLCM,
            self.weightingNorm,
            spacing_mm,
        )


def voxel_maps(
    image: np.ndarray,
    mask: np.ndarray,
    features: Mapping[str, Sequence[str]],
    settings: VoxelSettings | None = None,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    dtype: Any = jnp.float32,
) -> dict[str, jax.Array]:
    """Maps of one image.

    Args:
      image: integer or float[D, H, W]; a 2D image as one slice. Integers are discretised exactly.
      mask: bool[D, H, W], a voxel at least.
      features: class ("glcm", "firstorder") -> PyRadiomics' feature names.
      settings: None is PyRadiomics' defaults.
      spacing_mm: of the voxels along (depth, height, width), for weightingNorm.
      dtype: float32 or float64.

    Returns:
      dtype[D, H, W] by "class_Feature". A GLCM map is NaN at a voxel whose window has no pair (in
      PyRadiomics too; its extractor refuses a mask of one voxel, its class gives this NaN). Where
      its JointAverage depends on voxelBatch, and in uint8 images, ours is defined: see
      `glcm.window_maps`, `grey_levels.radiomics_levels` and `first_order.first_order_maps`.

    Raises:
      ValueError: a class, feature, setting, shape, dtype or value that is not supported.
    """
    settings = settings or VoxelSettings()
    image, mask = np.asarray(image), np.asarray(mask)
    for name in features:
        if name not in CLASSES:
            raise ValueError(f"no feature class {name!r}; there are {', '.join(CLASSES)}.")
    check_features(tuple(features.get("glcm", ())))
    if image.ndim != 3 or mask.shape != image.shape or mask.dtype != np.bool_:
        raise ValueError(
            f"image {image.shape} and mask {mask.dtype}{mask.shape}: [D, H, W] and bool[D, H, W] "
            "of one shape are needed; pass a 2D image as one slice, image[None]."
        )
    if not mask.any():
        raise ValueError("no voxel is inside the mask: maps need at least one.")
    counted = mask if settings.maskedKernel else np.ones(mask.shape, bool)
    by_count = settings.binCount is not None
    levels = radiomics_levels(
        image,
        counted,
        bin_width=None if by_count else settings.binWidth,
        bin_count=settings.binCount,
    )
    maps = _glcm_maps(levels, mask, counted, features.get("glcm", ()), settings, spacing_mm, dtype)
    if names := tuple(features.get("firstorder", ())):
        found = first_order.first_order_maps(
            image,
            mask,
            kernel_radius=settings.kernelRadius,
            features=names,
            levels=levels,
            masked_kernel=settings.maskedKernel,
            voxel_array_shift=settings.voxelArrayShift,
            force_2d_axis=settings.force2Ddimension if settings.force2D else None,
            init_value=settings.initValue,
            dtype=dtype,
        )
        maps |= {f"firstorder_{name}": found[name] for name in names}
    return maps


def _glcm_maps(levels, mask, counted, features, settings, spacing_mm, dtype):
    if not features:
        return {}
    found = window_maps(
        np.where(counted, levels, 0),
        counted if settings.maskedKernel else None,
        settings.window(spacing_mm),
        num_levels=int(levels[counted].max()),
        features=tuple(features),
        init_value=settings.initValue,
        dtype=dtype,
    )
    if not settings.maskedKernel:  # every voxel counts; values are wanted inside the mask
        with jax.enable_x64(jnp.dtype(dtype) == jnp.float64):
            found = {n: jnp.where(mask, image, settings.initValue) for n, image in found.items()}
    return {f"glcm_{name}": image for name, image in found.items()}
