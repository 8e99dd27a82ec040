"""Turns stored codes into network input, on the device, inside the jitted step.

By default augmentation preserves texture: integer shifts and a left-right flip move voxels without
changing their values (docs/method.md). The affine option and the crop interpolate between voxels,
and are off by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

if TYPE_CHECKING:
    from ml_collections import ConfigDict

AFFINE_DEGREES = 10.0
AFFINE_SCALE = 0.05


def augment(codes_BVDHW: Array, index_B: Array, key: Array, config: ConfigDict) -> Array:
    """Shifts and flips every view of every example independently.

    Args:
      codes_BVDHW: uint8[B, V, D, H, W].
      index_B: i32[B] record index. Together with the step's key it determines an example's
        geometry, which thus does not depend on the number of devices or the order in a batch.
      key: the step's key.
      config: `max_shift_voxels` (per axis; vacated voxels repeat the border), `flip_probability`
        (left-right, the last axis), `affine` (+-10 degrees about each axis and +-5% scale,
        trilinear in code space), `crop_min_volume` (1: no crop; else a cube of this share of the
        volume or more, anywhere, brought back to full size: the random crops of SwAV, Caron et al.
        2020, which have 0.14), `own_crop_key` (whether a crop has random numbers of its own;
        without the field it has those of the shift, as in osteojax 0.1, so that the two are not
        independent).

    Returns:
      uint8 (float32 with `affine` or a crop) [B, V, D, H, W].
    """

    def one_view(codes: Array, index: Array, view: Array) -> Array:
        view_key = jax.random.fold_in(jax.random.fold_in(key, index), view)
        shift_key, flip_key, affine_key = jax.random.split(view_key, 3)
        limit = config.max_shift_voxels
        shifts = jax.random.randint(shift_key, (3,), -limit, limit + 1)
        flip = jax.random.bernoulli(flip_key, config.flip_probability)
        for axis, size in enumerate(codes.shape):
            source = jnp.clip(jnp.arange(size) + shifts[axis], 0, size - 1)
            if axis == 2:
                source = jnp.where(flip, source[::-1], source)
            codes = jnp.take(codes, source, axis=axis)
        if config.affine:
            codes = _affine(codes, affine_key)
        if config.crop_min_volume < 1.0:
            # fold_in(key, i) is split(key, n)[i], so 0 is the shift's key and 3 the next free one.
            # Either way, the draws above are the same with and without a crop.
            number = 3 if config.get("own_crop_key", False) else 0
            codes = _crop(codes, jax.random.fold_in(view_key, number), config.crop_min_volume)
        return codes

    views = jnp.arange(codes_BVDHW.shape[1])
    over_views = jax.vmap(one_view, in_axes=(0, None, 0))
    return jax.vmap(over_views, in_axes=(0, 0, None))(codes_BVDHW, index_B, views)


def flips_alone(config: ConfigDict) -> ConfigDict:
    """The settings for crops whose places are drawn already: only the flips of `config`."""
    flips = config.copy_and_resolve_references().unlock()
    flips.update({"max_shift_voxels": 0, "affine": False, "crop_min_volume": 1.0})
    return flips.lock()


def _affine(codes_DHW: Array, key: Array) -> Array:
    """Rotation about the centre by up to 10 degrees an axis, scale within 5%; f32[D, H, W]."""
    angle_key, scale_key = jax.random.split(key)
    limit = jnp.deg2rad(AFFINE_DEGREES)
    angles = jax.random.uniform(angle_key, (3,), minval=-limit, maxval=limit)
    scale = 1.0 + jax.random.uniform(scale_key, (), minval=-AFFINE_SCALE, maxval=AFFINE_SCALE)
    rotation = jnp.eye(3)
    for axis in range(3):
        i, j = [a for a in range(3) if a != axis]
        c, s = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        turn = jnp.eye(3).at[i, i].set(c).at[j, j].set(c).at[i, j].set(-s).at[j, i].set(s)
        rotation = rotation @ turn
    centre = (jnp.array(codes_DHW.shape, jnp.float32) - 1) / 2
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(n) for n in codes_DHW.shape], indexing="ij"))
    source = jnp.tensordot(rotation * scale, grid - centre[:, None, None, None], axes=1)
    source = source + centre[:, None, None, None]
    return map_coordinates(codes_DHW.astype(jnp.float32), list(source), order=1, mode="nearest")


def _crop(codes_DHW: Array, key: Array, min_volume: float) -> Array:
    """A random cube, its volume uniform in [min_volume, 1], resized trilinearly; f32[D, H, W]."""
    volume_key, corner_key = jax.random.split(key)
    share = jax.random.uniform(volume_key, (), minval=min_volume, maxval=1.0)
    edge = share ** (1.0 / codes_DHW.ndim)
    size = jnp.array(codes_DHW.shape, jnp.float32)
    corner = jax.random.uniform(corner_key, (codes_DHW.ndim,)) * (1.0 - edge) * size
    return jax.image.scale_and_translate(
        codes_DHW.astype(jnp.float32),
        codes_DHW.shape,
        range(codes_DHW.ndim),
        jnp.full(codes_DHW.ndim, 1.0 / edge),
        -corner / edge,
        method="linear",
        antialias=False,
    )


def network_input(codes_BDHW: Array, map_ids_B: Array, map_affine: Array, rank: int) -> Array:
    """Codes -> z-scored network input.

    Args:
      codes_BDHW: uint8 or float32 [B, D, H, W].
      map_ids_B: i32[B].
      map_affine: f32[len(POOL), 2] from `Manifest.map_affine`.
      rank: 3 gives volumes; 2 gives the mid-sagittal slice (for 2D backbones).

    Returns:
      f32[B, D, H, W, 1], or f32[B, D, H, 1] for rank 2.
    """
    if rank == 2:
        codes_BDHW = codes_BDHW[..., codes_BDHW.shape[-1] // 2]
    expand = (slice(None),) + (None,) * (codes_BDHW.ndim - 1)
    scale, shift = map_affine[map_ids_B, 0][expand], map_affine[map_ids_B, 1][expand]
    return (codes_BDHW.astype(jnp.float32) * scale + shift)[..., None]
