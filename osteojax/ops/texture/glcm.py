"""Dense texture maps: GLCM features of the window around every voxel, without building a GLCM.

No co-occurrence matrix is needed for features that are the mean of a function of the two grey
levels over the window's pairs (x, x + angle), as Contrast is the mean of (i - j)^2
(`pair_features`). A pair belongs to the window of radius r around c when both ends are in it, so
the sum is a box filter of the pair image, 2r + 1 voxels long along axes on which the angle has no
step and 2r + 1 - |step| along the others.

Four paths, chosen by the arguments:

  whole_box        every voxel counts, neighbours at distance 1: 13 angles in 13 passes; on an
                   NVIDIA GPU `shared_sums`, where maps share sums and few passes are written out
  masked_windows   the same inside a mask: an angle at a time, sums packed into uint32 words; on
                   an NVIDIA GPU `masked_sums`, all angles in one program of two passes
  moment_windows   central moments on a CPU, with a mask or without: an angle at a time, narrow sums
  exact_windows    the rest (other angles, weights, float64 maps, moments elsewhere): 64-bit sums

The least memory traffic is one byte read and 4 written per map and voxel (17 for the paper's four).
By XLA's own count the whole-box path at radius 3 and 96^3 moves 377 bytes and does 229 operations
per map and voxel, since every pass is written out; caches must absorb that. So on a CPU arrays are
cut into slabs, and each whole-box map is a separate program whose buffers stay below 32 MiB. Up to
that size malloc keeps its pages from call to call; with larger buffers, the same program ran 2-5
times slower on fresh pages.

van Griethuysen et al., Cancer Res 77:e104, 2017 (PyRadiomics 3.0.1); Zwanenburg et al., IBSI
reference manual, 2019.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from osteojax.ops.texture.box_maps import box_maps, separate_maps
from osteojax.ops.texture.exact_windows import exact_maps
from osteojax.ops.texture.masked_sums import inside_masks
from osteojax.ops.texture.masked_windows import masked_maps
from osteojax.ops.texture.moment_windows import fits, moment_maps
from osteojax.ops.texture.pair_features import (
    FEATURES,
    MOMENTS,
    PAIR_VALUES,
    check_features,
    pair_mean,
)
from osteojax.ops.texture.windows import Window

_SLAB_VOXELS = {"box": 1_000_000, "masked": 1_000_000, "moments": 1_000_000, "exact": 500_000}
"""Largest number of voxels that one CPU program handles."""
_CROP_STEP = 16
"""ROIs are cut to multiples of this, so that few shapes are compiled."""


def texture_maps(
    levels: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None = None,
    *,
    kernel_radius: int = 3,
    num_levels: int,
    features: tuple[str, ...] = FEATURES,
    init_value: float = 0.0,
) -> dict[str, jax.Array]:
    """Maps of GLCM features over the (2 * kernel_radius + 1)^3 window of every voxel, in float32.

    See `window_maps`, here with 13 angles at distance 1, symmetric, averaged.
    """
    window = Window(kernel_radius)
    return window_maps(
        levels, mask, window, num_levels=num_levels, features=features, init_value=init_value
    )


def window_maps(
    levels: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None,
    window: Window,
    *,
    num_levels: int,
    features: tuple[str, ...] = FEATURES,
    init_value: float = 0.0,
    dtype: Any = jnp.float32,
) -> dict[str, jax.Array]:
    """Maps of GLCM features over the window of every voxel.

    PyRadiomics' `RadiomicsGLCM(voxelBased=True)` on given grey levels: windows are clipped at the
    array's border, a pair counts when both ends are in the mask, each angle is normalised, angles
    without a pair are left out of the mean. An array of one slice has 4 angles. A voxel whose
    window has no pair at all (isolated in the mask) is NaN, as in PyRadiomics.

    One difference: PyRadiomics takes JointAverage's mean over angles without leaving out the
    empty ones, so that some voxels are NaN or not depending on `voxelBatch`. Here JointAverage is
    the mean over the angles that have a pair, like the others.

    Args:
      levels: integer[..., D, H, W], grey levels 1..num_levels inside the mask (anything from 0 to
        num_levels outside). Leading axes are a batch.
      mask: bool[..., D, H, W], same shape, or None for the whole box (several times faster).
      window: radius, distances, 2D or 3D, symmetry, weights: see `Window`.
      num_levels: largest grey level (Ng of Idn and Idmn); decides how wide the accumulators are.
        Checked against `levels`; under a caller's `jit`, where values cannot be seen, larger
        levels give NaN maps.
      features: names out of `pair_features.ALL_FEATURES`.
      init_value: value of the voxels outside the mask.
      dtype: float32, exact to a few 1e-7, or float64, exact to a few 1e-13 (the 64-bit path for
        every feature).

    Returns:
      dtype[..., D, H, W] per feature, in powers of grey levels.

    Raises:
      ValueError: a shape, dtype, level, radius or feature name that is not supported; 64-bit sums
        under a caller's `jit` without `jax.enable_x64`.
    """
    levels = jnp.asarray(levels)
    mask = None if mask is None else jnp.asarray(mask)
    _check(levels, mask, num_levels)
    check_features(features)
    traced = isinstance(levels, jax.core.Tracer) or isinstance(mask, jax.core.Tracer)
    if not traced and levels.size:
        _check_range(levels, num_levels)
    in_pieces = not traced and levels.size > 0 and _on_cpu(levels)
    maps: dict[str, jax.Array] = {}
    for path, names in _paths(
        features, levels.shape, mask, window, num_levels, dtype, in_pieces
    ).items():
        run = partial(_run, path=path, window=window, features=names, num_levels=num_levels)
        if in_pieces:
            maps |= _by_volume(run, levels, mask, path, window)
        else:
            maps |= run(levels, mask)
    if traced:
        bad = (levels > num_levels).any() | (levels < 0).any()
        maps = {name: jnp.where(bad, jnp.nan, image) for name, image in maps.items()}
    if mask is not None:
        maps = {n: _outside(image, mask, init_value) for n, image in maps.items()}
    return {name: maps[name] for name in features}


def _check(levels, mask, num_levels) -> None:
    if levels.ndim < 3:
        raise ValueError(
            f"levels have shape {levels.shape}: three axes or more are needed; pass a 2D image as "
            "one slice, levels[None]."
        )
    if not jnp.issubdtype(levels.dtype, jnp.integer):
        raise ValueError(f"levels are {levels.dtype}; discretise the image to integers first.")
    if mask is not None and (mask.shape != levels.shape or mask.dtype != jnp.bool_):
        raise ValueError(
            f"mask is {mask.dtype}{mask.shape}; it must be bool{levels.shape}, like the levels."
        )
    if num_levels != int(num_levels) or num_levels < 1:
        raise ValueError(f"num_levels is {num_levels}; it must be a whole number from 1.")


def _check_range(levels, num_levels: int) -> None:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > num_levels:
        raise ValueError(
            f"levels run from {low} to {high}, num_levels is {num_levels}: pass the largest level, "
            "or discretise with a wider bin."
        )


def _on_cpu(array: jax.Array) -> bool:
    return next(iter(array.devices())).platform == "cpu"


def _paths(
    features, shape, mask, window: Window, num_levels, dtype, in_pieces
) -> dict[str, tuple[str, ...]]:
    """Path -> the features that are computed on it, in one program each."""
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype is {dtype}; float32 or float64.")
    paths: dict[str, list[str]] = {}
    for name in features:
        if dtype == np.float64:
            path = "exact64"
        elif name in MOMENTS:
            # Compiled for an accelerator or into a caller's program, it has not been measured.
            narrow = in_pieces and fits(name, window, shape, num_levels)
            path = "moments" if narrow else "exact"
        elif not window.plain:
            path = "exact"
        elif mask is None:
            path = f"box {name}" if in_pieces else "box"
        else:
            at_once = not in_pieces and _is_integer(name)
            path = "masked at once" if at_once else "masked"
        paths.setdefault(path, []).append(name)
    return {path: tuple(names) for path, names in paths.items()}


def _is_integer(name: str) -> bool:
    """Whether a mean over pairs is one of integers."""
    return PAIR_VALUES[pair_mean(name, symmetrical=True).value].integer


def _run(levels, mask, *, path, window, features, num_levels) -> dict[str, jax.Array]:
    """Maps of one path, NaN where there is no pair; values outside the mask are arbitrary."""
    if path.startswith("box"):
        radius = max(window.radii(levels.shape))
        of_box = box_maps if path == "box" else separate_maps
        return of_box(levels, features, num_levels, radius)
    if path.startswith("masked"):
        of_mask = inside_masks if path == "masked at once" else masked_maps
        return of_mask(levels, mask, window, features, num_levels)
    if isinstance(levels, jax.core.Tracer) and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{', '.join(features)} need 64-bit sums, and this jit was traced without 64-bit "
            "types. Call outside jit, or trace inside jax.enable_x64(True)."
        )
    with jax.enable_x64(True):
        if path == "moments":
            return moment_maps(levels, mask, window, features, num_levels)
        maps = exact_maps(levels, mask, window, features, num_levels)
        if path == "exact64":
            return maps
        return {name: image.astype(jnp.float32) for name, image in maps.items()}


def _outside(image, mask, init_value):
    with jax.enable_x64(image.dtype == jnp.float64):
        return jnp.where(mask, image, jnp.asarray(init_value, image.dtype))


# ---------------------------------------------------------------- pieces that fit a CPU


def _by_volume(run, levels, mask, path: str, window: Window) -> dict[str, jax.Array]:
    """Maps of concrete arrays on a CPU: volume by volume, cut to the mask, slab by slab."""
    volumes = []
    for index in np.ndindex(levels.shape[:-3]):
        inside = None if mask is None else mask[index]
        cut = _bounding_box(inside)
        part = _by_slabs(
            run, levels[index][cut], None if inside is None else inside[cut], path, window
        )
        volumes.append({n: _place(image, cut, levels.shape[-3:]) for n, image in part.items()})
    if levels.ndim == 3:
        return volumes[0]
    wide = path == "exact64"
    with jax.enable_x64(wide):
        return {
            name: jnp.stack([v[name] for v in volumes]).reshape(levels.shape) for name in volumes[0]
        }


def _bounding_box(mask) -> tuple[slice, ...]:
    """Slices around the mask, which holds both ends of every pair, lengthened to a multiple of
    `_CROP_STEP`."""
    if mask is None:
        return (slice(None),) * 3
    inside = np.asarray(mask)
    cut = []
    for axis, size in enumerate(inside.shape):
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (found[0], found[-1]) if found.size else (0, 0)
        length = min(size, -(-(last + 1 - first) // _CROP_STEP) * _CROP_STEP)
        start = min(int(first), size - length)
        cut.append(slice(start, start + length))
    return tuple(cut)


def _place(image, cut: tuple[slice, ...], shape: tuple[int, ...]):
    """Puts a cut image back into an array of `shape`, NaN around it."""
    if image.shape == shape:
        return image
    around = [(c.start, size - c.stop) for c, size in zip(cut, shape, strict=True)]
    with jax.enable_x64(image.dtype == jnp.float64):
        return jnp.pad(image, around, constant_values=jnp.nan)


def _by_slabs(run, levels, mask, path: str, window: Window) -> dict[str, jax.Array]:
    """Maps of one volume in pieces that fit the caches and bound memory.

    A slab has `radius` more slices on either side than are kept, so that the kept voxels see their
    whole window. All slabs have one shape, so one program serves them all.
    """
    depth, height, width = levels.shape
    radius = window.radii(levels.shape)[0]
    slices = _SLAB_VOXELS[path.split()[0].removesuffix("64")] // (height * width)
    slices = min(depth, max(slices, 4 * radius + 1))
    if slices == depth:
        return run(levels, mask)
    parts, keep, done = [], [], 0
    while done < depth:
        start = min(max(done - radius, 0), depth - slices)
        stop = depth if start + slices == depth else start + slices - radius
        piece = slice(start, start + slices)
        parts.append(run(levels[piece], None if mask is None else mask[piece]))
        keep.append((done - start, stop - start))
        done = stop
    with jax.enable_x64(path == "exact64"):
        return {name: _join([p[name] for p in parts], tuple(keep)) for name in parts[0]}


@partial(jax.jit, static_argnames="keep")
def _join(parts: list[jax.Array], keep: tuple[tuple[int, int], ...]) -> jax.Array:
    """The kept slices of each slab, one after the other."""
    return jnp.concatenate([part[low:high] for part, (low, high) in zip(parts, keep, strict=True)])
