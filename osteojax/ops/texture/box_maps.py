"""Maps of a whole box that are window means over pairs: each by itself, or from shared sums.

On a CPU every map is a program of its own (`glcm` says why). On an NVIDIA GPU one program makes all
of them, and those whose sums fit 32 bits share them (`shared_sums`): the paper's four at radius 3
move 84 bytes a voxel instead of 233, by the compiler's program, with a quarter of the instructions.
"""

from __future__ import annotations

from functools import partial

import jax
from jax import lax

from osteojax.ops.texture.masked_windows import round_up
from osteojax.ops.texture.pair_features import PAIR_VALUES, pair_mean
from osteojax.ops.texture.shared_sums import SUMS, fit, shared_means
from osteojax.ops.texture.whole_box import whole_box_mean, widest_bound

Maps = dict[str, jax.Array]


def separate_maps(levels, features: tuple[str, ...], num_levels: int, radius: int) -> Maps:
    """A map of every feature, each as a program of its own.

    Args:
      levels: integer[..., D, H, W], at most `num_levels`.
      features: names of `pair_features.PAIR_MEANS`.
      num_levels: Ng of Idn and Idmn, too.
      radius: of the window, from 1 to the longest edge.

    Returns:
      f32[..., D, H, W] per feature; NaN where there is no angle.
    """
    return _separate(levels, num_levels, _bounds(features, num_levels, radius), radius)


def box_maps(levels, features: tuple[str, ...], num_levels: int, radius: int) -> Maps:
    """As `separate_maps`, in one program, in the form that suits the platform."""
    bounds = _bounds(features, num_levels, radius)
    return _box_maps(levels, num_levels, bounds=bounds, radius=radius, limit=round_up(num_levels))


def _bounds(features, num_levels: int, radius: int) -> tuple[tuple[str, float], ...]:
    """(feature, the widest bound with the same accumulator): numbers of levels share programs."""
    values = {name: PAIR_VALUES[pair_mean(name, symmetrical=True).value] for name in features}
    return tuple(
        # Real values are at most 1; their integer operands go up to num_levels.
        (name, widest_bound(value.bound(num_levels) if value.integer else num_levels, radius))
        for name, value in values.items()
    )


def _separate(levels, num_levels, bounds, radius: int) -> Maps:
    return {
        name: _box_map(levels, num_levels, name=name, radius=radius, bound=bound)
        for name, bound in bounds
    }


@partial(jax.jit, static_argnames=("bounds", "radius", "limit"))
def _box_maps(levels, num_levels, *, bounds, radius: int, limit: int) -> Maps:
    return lax.platform_dependent(
        levels,
        num_levels,
        cuda=partial(_with_shared_sums, bounds=bounds, radius=radius, limit=limit),
        default=partial(_separate, bounds=bounds, radius=radius),
    )


def _with_shared_sums(levels, num_levels, *, bounds, radius: int, limit: int) -> Maps:
    means = {name: pair_mean(name, symmetrical=True) for name, _ in bounds}
    shared = {
        name: mean
        for name, mean in means.items()
        if mean.value in SUMS and fit(PAIR_VALUES[mean.value].bound(limit), levels.shape, radius)
    }
    values = tuple(dict.fromkeys(mean.value for mean in shared.values()))
    found = shared_means(levels, values, limit, radius)
    maps = {name: mean.scale * found[mean.value] for name, mean in shared.items()}
    others = tuple((name, bound) for name, bound in bounds if name not in shared)
    return maps | _separate(levels, num_levels, others, radius)


@partial(jax.jit, static_argnames=("name", "radius", "bound"))
def _box_map(levels, num_levels, *, name, radius, bound) -> jax.Array:
    """One map of the whole box, f32[..., D, H, W], as one program."""
    mean = pair_mean(name, symmetrical=True)
    value = PAIR_VALUES[mean.value]
    return mean.scale * whole_box_mean(
        levels, lambda i, j: value.of(i, j, num_levels), bound, radius
    )
