"""One texture map per volume of a batch; which map is data, and only that map is computed.

Maps that are means over pairs (`pair_features.PAIR_MEANS`) of whole boxes share their windows and
weights and differ only in the function of the two grey levels. So a batch whose volumes ask for
different maps needs one run of the box filters, not one per map:

  GPU, TPU  the whole batch at once; the pair function selects by each volume's id, which costs
            a few operations beside the passes that follow.
  CPU       one volume after the other, branching to the program of its map: 4 times as fast as
            the select, which keeps these loops from vectorising, and buffers stay in the caches.
            It makes a volume's map independent of the rest of the batch, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from osteojax.ops.texture.pair_features import PAIR_MEANS, PAIR_VALUES
from osteojax.ops.texture.whole_box import whole_box_mean

CHOICES = tuple(name for name, mean in PAIR_MEANS.items() if PAIR_VALUES[mean.value].integer)
"""Features that can be chosen: those whose sums all fit one integer accumulator."""
LOWERINGS = ("auto", "batched", "one_by_one")


def chosen_maps(
    levels: jax.Array,
    feature_ids: jax.Array,
    features: tuple[str, ...],
    *,
    kernel_radius: int,
    num_levels: int,
    lowering: str = "auto",
) -> jax.Array:
    """The chosen map of every volume, over the window of every voxel of the whole box.

    Args:
      levels: integer[B, D, H, W], grey levels 1..num_levels.
      feature_ids: i32[B], positions in `features`; -1 stands for no map and returns the levels (on
        a CPU at no cost).
      features: names out of `pair_features.PAIR_MEANS` whose values are integers.
      kernel_radius: r in voxels, at least 1; the window is (2r + 1)^3, clipped at the border.
      num_levels: largest grey level; larger ones in `levels` give wrong maps.
      lowering: "auto" takes what suits the platform; "batched" or "one_by_one" force one (tests,
        benchmarks).

    Returns:
      f32[B, D, H, W] in the unit of each volume's map (grey levels, or squared grey levels); equal
      to `glcm.texture_maps` without a mask to rounding (2e-6 relative).

    Raises:
      ValueError: a shape, dtype, radius or name that is not supported.
    """
    if levels.ndim != 4 or not jnp.issubdtype(levels.dtype, jnp.integer):
        raise ValueError(f"levels are {levels.dtype}{levels.shape}; integer[B, D, H, W] is needed")
    if feature_ids.shape != levels.shape[:1]:
        raise ValueError(f"feature_ids {feature_ids.shape} do not fit levels {levels.shape}")
    if kernel_radius < 1:
        raise ValueError(f"kernel_radius is {kernel_radius}; it must be at least 1")
    if unknown := [name for name in features if name not in CHOICES]:
        raise ValueError(f"{unknown} cannot be chosen by the data; choose of {', '.join(CHOICES)}")
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering is {lowering!r}; choose one of {', '.join(LOWERINGS)}")
    # A radius beyond the box sees the whole box: the same maps with fewer additions.
    radius = min(kernel_radius, max(levels.shape[1:]))
    batched = partial(_batched, features=features, radius=radius, num_levels=num_levels)
    one_by_one = partial(_one_by_one, features=features, radius=radius, num_levels=num_levels)
    if lowering == "auto":
        return lax.platform_dependent(levels, feature_ids, cpu=one_by_one, default=batched)
    return (batched if lowering == "batched" else one_by_one)(levels, feature_ids)


def _batched(levels_BDHW, ids_B, *, features, radius: int, num_levels: int) -> jax.Array:
    ids = ids_B[:, None, None, None]
    means = [PAIR_MEANS[name] for name in features]
    values = [PAIR_VALUES[mean.value] for mean in means]

    def value(first, second):
        result = values[0].of(first, second, num_levels)
        for index, other in enumerate(values[1:], start=1):
            result = jnp.where(ids == index, other.of(first, second, num_levels), result)
        return result

    bound = max(each.bound(num_levels) for each in values)
    maps = whole_box_mean(levels_BDHW, value, bound, radius)
    scales = jnp.array([mean.scale for mean in means], jnp.float32)
    return jnp.where(ids < 0, levels_BDHW.astype(jnp.float32), scales[ids] * maps)


def _one_by_one(levels_BDHW, ids_B, *, features, radius: int, num_levels: int) -> jax.Array:
    def one_map(name: str, levels_DHW) -> jax.Array:
        mean = PAIR_MEANS[name]
        value = PAIR_VALUES[mean.value]

        def of(first, second):
            return value.of(first, second, num_levels)

        return mean.scale * whole_box_mean(levels_DHW, of, value.bound(num_levels), radius)

    def itself(levels_DHW) -> jax.Array:
        return levels_DHW.astype(jnp.float32)

    branches: list[Callable[..., jax.Array]] = [
        itself,
        *(partial(one_map, name) for name in features),
    ]

    def one(volume: tuple[jax.Array, jax.Array]) -> jax.Array:
        levels_DHW, index = volume
        return lax.switch(index + 1, branches, levels_DHW)

    return lax.map(one, (levels_BDHW, ids_B))
