"""Grey levels of an image: the discretisation that texture features are defined on.

`discretise` runs on the device, for integer images and whole bin widths; texture pools use it.
`radiomics_levels` runs on the host and accepts every image and setting that PyRadiomics accepts.

van Griethuysen et al., Cancer Res 77:e104, 2017 (PyRadiomics 3.0.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

MOST_LEVELS = 2**20
"""More levels than this are refused: the bin width is probably a mistake."""


def discretise(
    hu: jax.Array | np.ndarray,
    bin_width: int,
    origin: int | None = None,
    mask: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Fixed-width grey levels of an integer image, exactly.

    Level 1 holds [origin, origin + bin_width). `origin=None` is PyRadiomics' own rule: edges at
    multiples of the width, the smallest value inside the mask in level 1. Integers only: in
    float32 a value beside an edge can land in the neighbouring bin (XLA divides by multiplying
    with a reciprocal).

    Args:
      hu: integer[...], at least `origin` inside the mask.
      bin_width: width of a level in the image's unit (HU), a positive integer.
      origin: lower edge of level 1, or None.
      mask: bool[...] or None; the ROI of the `origin=None` rule. Levels below 1 outside it are 0.

    Returns:
      int32[...] levels, 1 and up.
    """
    hu = jnp.asarray(hu)
    if not jnp.issubdtype(hu.dtype, jnp.integer) or int(bin_width) != bin_width or bin_width < 1:
        raise ValueError(
            f"image of dtype {hu.dtype} with bin width {bin_width}: levels are exact for integers "
            "only. Round the image to integers and take a whole bin width of at least 1."
        )
    hu = hu.astype(jnp.int32)
    if origin is None:
        bins = hu // int(bin_width)
        inside = bins if mask is None else jnp.where(mask, bins, jnp.iinfo(jnp.int32).max)
        levels = bins - inside.min() + 1
    else:
        levels = (hu - int(origin)) // int(bin_width) + 1
    return jnp.maximum(levels, 0)


def radiomics_levels(
    image: np.ndarray | jax.Array,
    mask: np.ndarray | jax.Array | None = None,
    *,
    bin_width: float | None = None,
    bin_count: int | None = None,
) -> np.ndarray:
    """Grey levels by PyRadiomics' `binWidth` or `binCount`, over one region of interest.

    Widths: half-open bins with edges at multiples of the width; the smallest value inside the mask
    is in level 1. Counts: the edges of `np.histogram`, the largest value in the last level (a flat
    region of 4 bins is level 3). Integer images with whole widths are exact integer arithmetic.
    Others follow PyRadiomics' floating-point edges with their roundings:

    - If the smallest value is on an edge, rounding can put it into level 2 (-499.2 with width
      0.3). With widths that are sums of powers of 2 (25, 2.5) this does not happen.
    - In float32 images the edges are `float32(low + width) - low` apart: width 0.1 puts 0.5 into
      level 5, and far from 0 the bins are not exactly `bin_width` wide (0.09998 at 1,000). With
      `image.astype(np.float64)` they are.

    It differs from PyRadiomics where PyRadiomics' result depends on the range of a dtype:

    - PyRadiomics adds `2 * binWidth` in the image's own type, which wraps in uint8 and int8 and
      near the end of wider ones: [10, 100, 200, 250] of uint8 is 1, 2, 2, 2 there, 1, 5, 9, 11
      here. In float32 its edges can end below the largest value, and share one level above.
    - With `binCount` it adds 1 to the last edge, which does nothing to float32 values from 2^24 on
      and puts the largest value into level binCount + 1; here it is in binCount.
    - Its levels are 0 outside the mask; here they are the levels of the values there.

    Args:
      image: integer or float[...], in its own unit (HU).
      mask: bool[...], same shape; the region. None is the whole image (`maskedKernel=False`).
      bin_width: width of a level in the image's unit.
      bin_count: number of levels; give this or `bin_width`.

    Returns:
      int32[...] levels, from 1 inside the mask. Outside it the level of the value: 0 below the
      first edge and for NaN, at most `bin_count` or `MOST_LEVELS`.

    Raises:
      ValueError: no setting or both, a width or count that is not positive, an empty mask, a mask
        of another shape or dtype, NaN or infinite values inside it, more than `MOST_LEVELS` levels
        inside it, a width too small to tell edges apart at the image's values.
    """
    image, mask = np.asarray(image), None if mask is None else np.asarray(mask)
    _check_settings(bin_width, bin_count)
    inside = _inside(image, mask)
    if bin_count is not None:
        levels = _levels_by_count(image, inside, int(bin_count))
    else:
        assert bin_width is not None  # _check_settings
        whole = jnp.issubdtype(image.dtype, jnp.integer) and bin_width % 1 == 0
        if whole and bin_width < 2**63:
            levels = _levels_by_whole_width(image, inside, int(bin_width))
        else:
            levels = _levels_by_width(image, inside, float(bin_width))
    return np.where(np.isnan(image), 0, levels).astype(np.int32)


def _check_settings(bin_width, bin_count) -> None:
    if (bin_width is None) == (bin_count is None):
        raise ValueError(
            f"bin_width is {bin_width} and bin_count is {bin_count}; give one of the two."
        )
    if bin_width is not None and not (0 < bin_width < np.inf):
        raise ValueError(f"bin_width is {bin_width}; it must be a positive number.")
    if bin_count is not None and not (1 <= bin_count <= MOST_LEVELS and bin_count % 1 == 0):
        raise ValueError(
            f"bin_count is {bin_count}; it must be a whole number from 1 to {MOST_LEVELS}."
        )


def _inside(image, mask) -> np.ndarray:
    """The values that the levels are made for, flat; checked."""
    real = jnp.issubdtype(image.dtype, jnp.integer) or jnp.issubdtype(image.dtype, jnp.floating)
    if not real:
        raise ValueError(f"the image is {image.dtype}; integers or floats are needed.")
    if mask is not None and (mask.shape != image.shape or mask.dtype != np.bool_):
        raise ValueError(
            f"mask is {mask.dtype}{mask.shape}; it must be bool{image.shape}, like the image."
        )
    inside = image.reshape(-1) if mask is None else image[mask]
    if inside.size == 0:
        raise ValueError("no voxel is inside the mask: grey levels need at least one.")
    broken = int(inside.size - np.isfinite(inside).sum())
    if broken:
        raise ValueError(
            f"{broken} of {inside.size} voxels inside the mask are NaN or infinite: repair them, "
            "or leave them out of the mask."
        )
    return inside


def _levels_by_whole_width(image, inside, width: int) -> np.ndarray:
    """Levels of an integer image, by integer division."""
    limits = np.iinfo(np.int64)
    if int(image.max()) > limits.max:
        raise ValueError(f"the image reaches {image.max()}, beyond int64: cast it to float64.")
    low, high = int(inside.min()), int(inside.max())
    first = low // width
    _check_number_of_levels(high // width - first + 1, low, high, width)
    # Values that are clipped here lie outside the mask, and below the first or in the last level.
    bottom, top = (first - 1) * width, (first + MOST_LEVELS - 1) * width
    values = np.clip(image.astype(np.int64), max(bottom, limits.min), min(top, limits.max))
    return np.maximum(values // width - first + 1, 0)


def _levels_by_width(image, inside, width: float) -> np.ndarray:
    """Levels between the edges that PyRadiomics makes, with its roundings."""
    if image.dtype != np.float32:
        image, inside = image.astype(np.float64), inside.astype(np.float64)
    low, high = inside.min(), inside.max()
    start = low - low % width
    step = float(start + width) - float(start)  # the step that np.arange takes
    if step <= 0:
        raise ValueError(
            f"edges {width} apart are not different {image.dtype} numbers at {start}: "
            "take a wider bin, or pass the image as float64."
        )
    _check_number_of_levels((float(high) - float(start)) / step + 2, low, high, width)
    outermost = np.max(image, where=np.isfinite(image), initial=high)
    number = min(np.ceil((float(outermost) - float(start)) / step) + 2, MOST_LEVELS)
    edges = np.arange(start, float(start) + (number - 0.5) * width, width)
    return np.digitize(image, edges)


def _check_number_of_levels(number, low, high, width) -> None:
    if not number <= MOST_LEVELS:
        raise ValueError(
            f"values from {low} to {high} make {number:.3g} levels of width {width}, the most is "
            f"{MOST_LEVELS}: take a wider bin."
        )


def _levels_by_count(image, inside, count: int) -> np.ndarray:
    edges = np.histogram_bin_edges(inside, count)
    edges[-1] += 1  # the largest value is in the last level, not on its open end
    return np.minimum(np.digitize(image, edges), count)


def levels_from_codes(codes: jax.Array | np.ndarray, codes_per_level: int) -> jax.Array:
    """uint8[...] image codes (`vertebrae.image_spec`) -> uint8[...] grey levels from 1."""
    return jnp.asarray(codes) // jnp.uint8(codes_per_level) + jnp.uint8(1)
