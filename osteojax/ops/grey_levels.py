"""Grey levels of an image: the discretisation that texture features are defined on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


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


def levels_from_codes(codes: jax.Array | np.ndarray, codes_per_level: int) -> jax.Array:
    """uint8[...] image codes (`schema.image_spec`) -> uint8[...] grey levels from 1."""
    return jnp.asarray(codes) // jnp.uint8(codes_per_level) + jnp.uint8(1)
