"""Computes texture maps during training: from stored images to members of the pool, on the device.

With `data.textures = "online"` the image of a vertebra is read once, and the members that a step
shows are computed inside the jitted step; a prepared folder then needs to store only the image
(`vertebrae.IMAGE_ONLY`). Maps are quantised with the `MapSpec`s of the manifest, so that the
network gets the codes that an offline folder stores; where float32 rounds a tie the other way, they
differ by one code.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from osteojax.data import vertebrae
from osteojax.data.codes import MapSpec
from osteojax.data.places import cut
from osteojax.data.vertebrae import HU_MAX, HU_MIN, IMAGE_STEP_HU, POOL
from osteojax.errors import UserError
from osteojax.ops.texture.chosen_maps import chosen_maps
from osteojax.ops.texture.grey_levels import levels_from_codes

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort

TEXTURES = ("offline", "online")
MAPS = POOL[1:]
_SETTINGS = ("bin_width", "kernel_radius", "domain", "engine")
"""Texture settings that a manifest may have; an unknown one could change the maps."""


@dataclasses.dataclass(frozen=True)
class OnlineTexture:
    """Computes codes of members of the pool from image codes; jittable, without parameters.

    Attributes:
      kernel_radius: voxels.
      codes_per_level: image codes per grey level.
      specs: how each of the four maps is stored, in `MAPS` order.
    """

    kernel_radius: int
    codes_per_level: int
    specs: tuple[MapSpec, ...]

    @property
    def num_levels(self) -> int:
        return math.ceil((HU_MAX - HU_MIN) / (self.codes_per_level * IMAGE_STEP_HU))

    def members(self, image_BDHW: jax.Array, map_ids_BV: jax.Array) -> jax.Array:
        """The chosen members of every vertebra's pool.

        Args:
          image_BDHW: uint8[B, D, H, W] image codes, 0..239.
          map_ids_BV: i32[B, V], positions in `POOL`.

        Returns:
          uint8[B, V, D, H, W] codes, as `PreparedCohort.members` reads them from a folder that
          stores the pool. A vertebra's codes do not depend on the rest of the batch.
        """
        views = map_ids_BV.shape[1]
        image = jnp.repeat(image_BDHW, views, axis=0)
        feature_ids = map_ids_BV.reshape(-1) - 1
        values = chosen_maps(
            levels_from_codes(image, self.codes_per_level),
            feature_ids,
            MAPS,
            kernel_radius=self.kernel_radius,
            num_levels=self.num_levels,
        )
        is_image = (feature_ids < 0)[:, None, None, None]
        members = jnp.where(is_image, image, self._encode(values, feature_ids))
        return members.reshape(-1, views, *image_BDHW.shape[1:])

    def crops(
        self, image_BDHW: jax.Array, map_ids_BV: jax.Array, corners_BV3: jax.Array, edge: int
    ) -> jax.Array:
        """Cubic crops of `members`, equal to them to the bit, without computing the rest of the
        box: a map's value depends on the voxels of its window alone.

        Args:
          image_BDHW, map_ids_BV: as of `members`.
          corners_BV3: i32[B, V, 3] first voxels of the crops in the box.
          edge: of the crops in voxels.

        Returns:
          uint8[B, V, edge, edge, edge].
        """
        views, shape = map_ids_BV.shape[1], image_BDHW.shape[1:]
        around = tuple(min(size, edge + 2 * self.kernel_radius) for size in shape)
        # At a border the region ends where the box does, which clips windows as in the whole box.
        last = jnp.array(shape, jnp.int32) - jnp.array(around, jnp.int32)
        corners_N3 = corners_BV3.reshape(-1, 3)
        starts_N3 = jnp.clip(corners_N3 - self.kernel_radius, 0, last)
        image = jnp.repeat(image_BDHW, views, axis=0)
        regions = jax.vmap(lambda volume, start: lax.dynamic_slice(volume, start, around))(
            image, starts_N3
        )
        members = self.members(regions, map_ids_BV.reshape(-1, 1))
        crops = cut(members, (corners_N3 - starts_N3)[:, None], edge)
        return crops.reshape(*map_ids_BV.shape, edge, edge, edge)

    def _encode(self, values_NDHW: jax.Array, feature_ids_N: jax.Array) -> jax.Array:
        """`MapSpec.encode` in float32, with each volume's own spec."""

        def of_each(numbers: list[float]) -> jax.Array:
            return jnp.array(numbers, jnp.float32)[feature_ids_N][:, None, None, None]

        logarithmic = of_each([spec.transform == "log1p" for spec in self.specs]) > 0
        t = jnp.where(logarithmic, jnp.log1p(values_NDHW), values_NDHW)
        steps = (t - of_each([s.offset for s in self.specs])) / of_each(
            [s.step for s in self.specs]
        )
        last = of_each([spec.codes - 1 for spec in self.specs])
        return jnp.clip(jnp.floor(steps + 0.5), 0, last).astype(jnp.uint8)


def online_texture(textures: str, cohort: PreparedCohort) -> OnlineTexture | None:
    """The online computation if `config.data.textures` asks for it; None for "offline".

    Raises:
      UserError: a value that is neither "offline" nor "online", or a folder that cannot serve it.
    """
    about, where = vertebrae.about(cohort.manifest), cohort.directory
    if textures not in TEXTURES:
        raise UserError(f"data.textures is {textures!r}; choose one of {', '.join(TEXTURES)}.")
    if textures == "offline":
        if about.stored != POOL:
            raise UserError(
                f"{where} stores {', '.join(about.stored)} and no texture map, and "
                "data.textures is offline. Train with --config.data.textures=online, or prepare "
                "the cohort again with --store pool."
            )
        return None
    settings = about.texture
    missing = [name for name in _SETTINGS if name not in settings]
    stride = settings.get("patch_stride")  # absent in older folders, whose maps are dense
    unknown = [name for name in settings if name not in (*_SETTINGS, "patch_stride")]
    if missing or unknown or settings["domain"] != "box" or stride is not None:
        found = f"domain {settings.get('domain')!r}, patch stride {stride or 'none'}"
        if missing or unknown:
            found = f"settings missing: {missing or 'none'}, not known: {unknown or 'none'}"
        raise UserError(
            f"{where}: data.textures=online makes dense maps of whole boxes (domain 'box'); its "
            f"manifest says otherwise ({found}). Use data.textures=offline and a folder with all "
            "maps."
        )
    codes_per_level = settings["bin_width"] / IMAGE_STEP_HU
    if codes_per_level < 1 or not np.isclose(codes_per_level, round(codes_per_level)):
        raise UserError(
            f"{where}: texture bin width {settings['bin_width']:g} HU is no multiple of the image "
            f"code's {IMAGE_STEP_HU:g} HU. The manifest is damaged: prepare the cohort again."
        )
    return OnlineTexture(int(settings["kernel_radius"]), round(codes_per_level), about.maps[1:])
