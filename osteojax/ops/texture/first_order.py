"""Dense first-order maps: statistics of the grey values in the window around every voxel.

PyRadiomics' voxel-based `RadiomicsFirstOrder`, computed from window sums (`window_statistics`).
This file checks the input. The arithmetic has 64 bits, whatever the caller's `jax_enable_x64`, and
values whose results would not fit are refused before anything is computed.

van Griethuysen et al., Cancer Res 77:e104, 2017 (PyRadiomics 3.0.1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from osteojax.ops.texture.window_statistics import (
    counted_extent,
    level_maps,
    value_maps,
    window_size,
)

OF_VALUES = (
    "Mean", "Variance", "Minimum", "Maximum", "Range", "RootMeanSquared", "Energy",
)  # fmt: skip
OF_LEVELS = ("Entropy", "Uniformity")
FEATURES = OF_VALUES + OF_LEVELS

_LARGEST_INTEGER = 2**53
"""Integers up to this one are exact in float64."""


class _Extent(NamedTuple):
    """Smallest and largest value among the voxels that windows count."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))


def first_order_maps(
    image: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None = None,
    *,
    kernel_radius: int,
    features: tuple[str, ...] = FEATURES,
    levels: jax.Array | np.ndarray | None = None,
    masked_kernel: bool = True,
    voxel_array_shift: int = 0,
    force_2d_axis: int | None = None,
    init_value: float = 0.0,
    dtype: Any = jnp.float32,
) -> dict[str, jax.Array]:
    """Maps of first-order features over the (2 * kernel_radius + 1)^3 window of every voxel.

    As PyRadiomics' `RadiomicsFirstOrder(voxelBased=True)` with the same settings: windows are
    clipped at the array's border and count the voxels of the mask only. Differences:

    - Entropy is -sum p log2 p, exactly 0 in a flat window; PyRadiomics adds 2e-16 to each p inside
      the logarithm and gets -3e-16.
    - PyRadiomics discretises float32 images in float64 here, in float32 for its GLCM, so that its
      own two classes disagree on values near an edge. Here both get the caller's `levels`.
    - A mask of one voxel is a window of one; PyRadiomics raises `RuntimeError`.
    - NaN inside the mask is refused; PyRadiomics fails on it or leaves it out, depending on
      where it is.

    Args:
      image: integer or float[..., D, H, W], in its own unit (HU). Integers up to +-2^53. Leading
        axes are a batch.
      mask: bool[..., D, H, W], same shape, or None for the whole array.
      kernel_radius: r in voxels, at least 1.
      features: names out of `FEATURES`.
      levels: integer[..., D, H, W], grey levels from 1 wherever windows count (in the mask, or
        everywhere without `masked_kernel`); needed for Entropy and Uniformity, see
        `grey_levels.radiomics_levels`. The time these two take grows with the number of different
        levels.
      masked_kernel: windows count the mask's voxels only; False: all voxels of the array. Maps
        have values inside the mask either way.
      voxel_array_shift: whole number added to the image in Energy and RootMeanSquared.
      force_2d_axis: axis along which windows are one voxel thick (0 depth, 1 height, 2 width:
        `force2Ddimension`), or None for 3D.
      init_value: value outside the mask; with an empty mask, of every voxel.
      dtype: of the maps, float32 or float64. The arithmetic is the same; float64 keeps its
        relative accuracy of 1e-12.

    Returns:
      dtype[..., D, H, W] per feature: Mean, Minimum, Maximum, Range, RootMeanSquared in the
      image's unit, Variance and Energy in its square, Entropy in bits, Uniformity without a unit.

    Raises:
      ValueError: a shape, dtype, name or setting that is not supported; NaN or infinite values
        where windows count (under a caller's `jit` values cannot be checked, and these give NaN or
        infinite windows); values whose features do not fit `dtype`; a caller's `jit` without
        `jax_enable_x64`.
    """
    arrays = (image, mask, levels)
    traced = any(isinstance(array, jax.core.Tracer) for array in arrays)
    if traced and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError(
            "first_order_maps computes in 64 bits, which this jit lacks: call it outside, or "
            "wrap the jitted call in `with jax.enable_x64(True):`."
        )
    _check_settings(kernel_radius, features, voxel_array_shift, force_2d_axis, dtype)
    with jax.enable_x64(True):
        image = jnp.asarray(image)
        mask = None if mask is None else jnp.asarray(mask)
        levels = None if levels is None else jnp.asarray(levels)
        _check_arrays(image, mask, levels, features)
        # A window wider than the array sums the whole array: clip it, for fewer additions.
        depth, height, width = (
            0 if axis == force_2d_axis else min(int(kernel_radius), max(size - 1, 0))
            for axis, size in enumerate(image.shape[-3:])
        )
        radii = (depth, height, width)
        # A mask of ones is cheap, and one program serves calls with and without a mask.
        everywhere = jnp.ones(image.shape, bool)
        mask = everywhere if mask is None else mask
        counted = mask if masked_kernel else everywhere
        of_values = tuple(name for name in features if name in OF_VALUES)
        of_levels = tuple(name for name in features if name in OF_LEVELS)
        fill = jnp.asarray(init_value, dtype)
        maps: dict[str, jax.Array] = {}
        if of_values:
            extent = _dtype_extent(image) if traced else _extent(image, counted)
            most, shift = window_size(image.shape, radii), int(voxel_array_shift)
            _check_range(extent, most, shift, of_values, dtype)
            exact = _exact_sums(image, extent, most, shift)
            image = image.astype(_computing_dtype(image.dtype, extent))
            maps |= value_maps(
                image, counted, mask, jnp.int64(shift), fill,
                radii=radii, features=of_values, exact=exact,
            )  # fmt: skip
        if of_levels:
            levels = levels if traced or image.size == 0 else _checked_levels(levels, counted)
            maps |= level_maps(levels, counted, mask, fill, radii=radii, features=of_levels)
        return {name: maps[name] for name in features}


# ---------------------------------------------------------------- what is refused


def _check_settings(kernel_radius, features, voxel_array_shift, force_2d_axis, dtype) -> None:
    if isinstance(features, str):
        raise ValueError(f"features is the text {features!r}; pass a tuple of names.")
    unknown = [name for name in features if name not in FEATURES]
    if unknown:
        raise ValueError(f"no first-order map named {unknown}; there are {list(FEATURES)}.")
    if kernel_radius != int(kernel_radius) or kernel_radius < 1:
        raise ValueError(f"kernel_radius is {kernel_radius}; it must be a whole number from 1.")
    if voxel_array_shift != int(voxel_array_shift) or abs(voxel_array_shift) > _LARGEST_INTEGER:
        raise ValueError(
            f"voxel_array_shift is {voxel_array_shift}; it must be a whole number up to 2^53."
        )
    if force_2d_axis is not None and (
        isinstance(force_2d_axis, bool) or force_2d_axis not in (0, 1, 2)
    ):
        raise ValueError(
            f"force_2d_axis is {force_2d_axis}; it must be an axis, 0, 1 or 2, or None."
        )
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype is {np.dtype(dtype)}; maps are float32 or float64.")


def _check_arrays(image, mask, levels, features) -> None:
    if image.ndim < 3:
        raise ValueError(
            f"the image has shape {image.shape}: three axes or more are needed; pass a 2D image as "
            "one slice, image[None]."
        )
    real = jnp.issubdtype(image.dtype, jnp.integer) or jnp.issubdtype(image.dtype, jnp.floating)
    if not real:
        raise ValueError(f"the image is {image.dtype}; integers or floats are needed.")
    if mask is not None and (mask.shape != image.shape or mask.dtype != jnp.bool_):
        raise ValueError(
            f"mask is {mask.dtype}{mask.shape}; it must be bool{image.shape}, like the image."
        )
    wanted = [name for name in features if name in OF_LEVELS]
    if wanted and levels is None:
        raise ValueError(
            f"{wanted} are statistics of grey levels: pass levels=radiomics_levels(image, mask, "
            f"bin_width=...), or choose features out of {list(OF_VALUES)}."
        )
    if levels is not None and (
        levels.shape != image.shape or not jnp.issubdtype(levels.dtype, jnp.integer)
    ):
        raise ValueError(
            f"levels are {levels.dtype}{levels.shape}; they must be integers of shape "
            f"{image.shape}, like the image."
        )


def _extent(image, counted) -> _Extent:
    """The extent of an image of known values; (0, 0) if windows count no voxel."""
    if image.size == 0:
        return _Extent(0, 0)
    low, high, broken = (value.item() for value in counted_extent(image, counted))
    if broken:
        raise ValueError(
            f"{broken} of the {int(counted.sum())} voxels that windows count (the mask's, or all "
            "of the image) are NaN or infinite: repair them, or leave them out of the mask."
        )
    return _Extent(low, high) if low <= high else _Extent(0, 0)


def _checked_levels(levels, counted) -> jax.Array:
    """int32 levels, 1 and up wherever windows count."""
    low, high, _ = (value.item() for value in counted_extent(levels, counted))
    if low <= high and not (low >= 1 and high < np.iinfo(np.int32).max):
        raise ValueError(
            f"grey levels where windows count (in the mask, or in all of the image) run from {low} "
            f"to {high}; they must be from 1 to 2^31 - 2."
        )
    return levels.astype(jnp.int32)


def _dtype_extent(image) -> _Extent:
    """The extent that a traced integer image can have; for floats, one that passes the checks."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return _Extent(0, 0)
    info = jnp.iinfo(image.dtype)
    if info.bits == 64:
        raise ValueError(
            f"the image is {image.dtype}, whose values cannot be checked under jit: cast it to "
            "int32."
        )
    return _Extent(int(info.min), int(info.max))


def _check_range(extent: _Extent, most: int, shift: int, features, dtype) -> None:
    """Raises ValueError for values whose features would overflow or lose exactness."""
    if isinstance(extent.low, int) and extent.magnitude > _LARGEST_INTEGER:
        raise ValueError(
            f"the image runs from {extent.low} to {extent.high}: integers beyond 2^53 are not "
            "exact in float64; subtract an offset, or pass the image as float64."
        )
    size, shifted = float(extent.magnitude), float(extent.magnitude) + abs(shift)
    # Squares are written as products: in Python 1e200 ** 2 raises OverflowError, 1e200 * 1e200 is
    # infinite.
    largest = {"Range": 2 * size, "RootMeanSquared": shifted}
    largest |= {"Variance": size * size, "Energy": most * shifted * shifted}
    for name in features:
        value = largest.get(name, size)
        squared = name in ("Variance", "Energy", "RootMeanSquared")
        sums = 4 * most * shifted * shifted if squared else value
        limit, wide_limit = float(jnp.finfo(dtype).max), float(np.finfo(np.float64).max)
        if value > limit or sums > wide_limit:
            wider = " or ask for dtype float64" if np.dtype(dtype) == np.float32 else ""
            raise ValueError(
                f"{name} of values up to {size:.3g} can reach {value:.3g}, beyond "
                f"{np.dtype(dtype)}: rescale the image{wider}."
            )


def _computing_dtype(dtype, extent: _Extent) -> Any:
    """One dtype for all images that can share a program: int32, int64, float32 or float64."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.promote_types(dtype, jnp.float32)
    fits = extent.magnitude <= np.iinfo(np.int32).max
    return jnp.int32 if fits else jnp.int64


def _exact_sums(image, extent: _Extent, most: int, shift: int) -> bool:
    """Whether all integer sums fit 64 bits."""
    if not jnp.issubdtype(image.dtype, jnp.integer):
        return False
    spread, shifted = int(extent.high) - int(extent.low), int(extent.magnitude) + abs(shift)
    return max((most * spread) ** 2, most * shifted**2, most * int(extent.magnitude)) < 2**63
