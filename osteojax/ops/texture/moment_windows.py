"""Central moments over windows: narrow exact sums of centred levels, float64 only at the end.

With s = i + j - (L + 1) and d = |i - j| of grey levels up to L, every moment feature is a function
of the sums over a window of s, s^2, s^3, s^4, d and d^2. All are integers, and |s| and d are at
most L, so that for 48 levels and radius 3 the sums of s and d fit 16 bits and all others 32: two to
four times as many per vector as the 64-bit sums of `exact_windows`. Each sum has the narrowest type
that holds it after each axis; sums beyond 32 bits are float64, which adds integers exactly.

Nothing is re-centred at the window's mean. Instead the numerators of central moments over n pairs,

  V = n S2 - S1^2      n^2 times the variance of s
  B = n S3 - S1 S2     n^2 times the covariance of s and s^2
  A = n S4 - S1 S3     n^2 times the covariance of s and s^3

are differences of integers that are held exactly, in 32 bits or in float64 (`fits`). They vanish on
flat windows and are small on smooth ones, and the features follow from them:

  ClusterShade       (n B - 2 S1 V) / n^3
  ClusterProminence  (n (n A - 3 S1 B) + 3 S1^2 V) / n^4

What rounds after that errs by some L^2 float64 roundings of the ClusterProminence itself.

Each class of angles (steps along the same axes) is one compiled program, 7 in all. The images of s
and d are cut out by a program before them, because a slice whose start is data is not read in
vectors on a CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from osteojax.ops.texture.masked_windows import round_up
from osteojax.ops.texture.windows import Angle, Window, box_sum, pair_ends, pairs_in_window

_POWERS = {"ClusterShade": 3, "ClusterProminence": 4}
"""The highest power of s in a feature's sums, where it is not 2."""


def fits(name: str, window: Window, shape: tuple[int, ...], num_levels: int) -> bool:
    """Whether the numerators of a feature of `MOMENTS` are exact."""
    largest = round_up(num_levels) + 1
    pairs = _most_pairs(window, shape)
    return window.plain and 2 * pairs**2 * largest ** _POWERS.get(name, 2) < 2**53


def moment_maps(
    levels: jax.Array,
    mask: jax.Array | None,
    window: Window,
    features: tuple[str, ...],
    num_levels: int,
) -> dict[str, jax.Array]:
    """f32[..., D, H, W] per feature; NaN where a window has no pair.

    Call inside `jax.enable_x64(True)`.

    Args:
      levels: integer[..., D, H, W], 0..num_levels.
      mask: bool[..., D, H, W]; None counts every voxel.
      window: a plain one.
      features: names out of `MOMENTS` that fit.
      num_levels: largest grey level.
    """
    angles, radii = window.angles(levels.shape), window.radii(levels.shape)
    if not angles:
        return {name: jnp.full(levels.shape, jnp.nan, jnp.float32) for name in features}
    top = round_up(num_levels)
    # A type for V and n D2, at most (n L)^2.
    fits_int32 = (_most_pairs(window, levels.shape) * (top + 1)) ** 2 < 2**31
    exact = "int32" if fits_int32 else "float64"
    totals = _no_totals(levels.shape, mask is not None, features)
    images = _pair_images(levels, mask, angles=angles, top=top)
    for angle, image in zip(angles, images, strict=True):
        step = tuple(map(abs, angle))
        totals = _add_angle(
            totals, image, step=step, radii=radii, top=top, exact=exact, features=features
        )
    return dict(zip(features, _means(*totals, angles=len(angles)), strict=True))


def _most_pairs(window: Window, shape: tuple[int, ...]) -> int:
    radii = window.radii(shape)
    return max((pairs_in_window(radii, angle) for angle in window.angles(shape)), default=0)


def _narrowest(bound: int) -> Any:
    """The narrowest signed type that holds integers up to `bound` exactly."""
    if bound < 2**15:
        return jnp.int16
    return jnp.int32 if bound < 2**31 else jnp.float64


def _no_totals(shape, masked: bool, features) -> tuple[Any, tuple[jax.Array, ...]]:
    """The totals before the first angle: (uint8 number of angles with a pair, None without a mask;
    sums over angles of each feature)."""
    # ClusterShade's terms have both signs and can cancel.
    types = (jnp.float64 if name == "ClusterShade" else jnp.float32 for name in features)
    counted = jnp.zeros(shape, jnp.uint8) if masked else None
    return counted, tuple(jnp.zeros(shape, dtype) for dtype in types)


@partial(jax.jit, static_argnames=("angles", "top"))
def _pair_images(levels, mask, *, angles: tuple[Angle, ...], top: int) -> list[tuple]:
    """(s, d, 1) of every pair along each angle, 0 where an end is outside the mask; None instead of
    the 1 without a mask."""
    levels = levels.astype(_narrowest(2 * top + 1))
    images = []
    for angle in angles:
        i, j = pair_ends(levels, angle)
        total, difference, one = i + j - (top + 1), jnp.abs(i - j), None
        if mask is not None:
            one = jnp.logical_and(*pair_ends(mask, angle)).astype(levels.dtype)
            total, difference = total * one, difference * one
        images.append((total, difference, one))
    return images


@partial(
    jax.jit,
    static_argnames=("step", "radii", "top", "exact", "features"),
    donate_argnames="totals",
)
def _add_angle(totals, image, *, step, radii, top: int, exact: str, features):
    """Adds the features of one angle, whose steps have the lengths `step`, to `totals`."""
    total, difference, one = image
    counted, means = totals
    add = partial(_window_sums, step=step, radii=radii, top=top)
    sums = {f"s{power}": add(total, power) for power in (1, 2, 3, 4)}
    sums |= {f"d{power}": add(difference, power) for power in (1, 2)}
    if one is None:
        sums["n"], share = _pairs_of_box(means[0].shape, step, radii)
    else:
        sums["n"] = add(one, 1)
        share = 1 / jnp.maximum(sums["n"], 1).astype(jnp.float64)
        counted = counted + (sums["n"] > 0)
    added = (_feature(name, sums, share, exact) for name in features)
    return counted, tuple(
        mean + new.astype(mean.dtype) for mean, new in zip(means, added, strict=True)
    )


def _window_sums(image, power: int, *, step, radii, top: int) -> jax.Array:
    """Exact sums of image^power over each voxel's window, in the narrowest type."""
    bound = (top + 1) ** power
    for axis in (-1, -2, -3):
        taps = 2 * radii[axis] + 1 - step[axis]
        bound *= taps
        image = image.astype(_narrowest(bound))
        if axis == -1:
            image = image**power
        image = box_sum(image, axis, radii[axis], taps)
    return image


def _pairs_of_box(shape, step, radii) -> tuple[Any, Any]:
    """int32 number of pairs in each window of a whole box, and its inverse in float64."""
    number: Any = np.int32(1)
    share: Any = np.float64(1)
    for axis in (-1, -2, -3):
        size, radius = shape[axis], radii[axis]
        center = np.arange(size)
        length = np.minimum(center + radius, size - 1) - np.maximum(center - radius, 0) + 1
        along = (length - step[axis]).reshape(-1, *[1] * (-1 - axis))
        number = number * jnp.asarray(along.astype(np.int32))
        share = share * jnp.asarray(1 / along)
    return number, share


def _feature(name: str, sums: dict[str, Any], share, exact: str) -> jax.Array:
    """One angle's feature of every window from its sums; 0 where there is no pair.

    share: f64, 1 / n, anything where n is 0.
    """
    n, s1, s2, d1, d2 = (sums[key].astype(exact) for key in ("n", "s1", "s2", "d1", "d2"))
    variance, contrast = n * s2 - s1 * s1, n * d2
    square = _real(share) ** 2
    if name == "DifferenceVariance":
        return _real(contrast - d1 * d1) * square
    if name == "ClusterTendency":
        return _real(variance) * square
    # i and j are alike: 4 var(i) = var(i + j) + E[(i - j)^2], 4 cov(i, j) = their difference.
    if name == "SumSquares":
        return _real(variance + contrast) * (0.25 * square)
    if name == "Correlation":
        # PyRadiomics adds 2^-52 to a denominator that is 0 or at least 1 / n^2.
        ratio = _real(variance - contrast) / _real(jnp.maximum(variance + contrast, 1))
        return jnp.where(n > 0, jnp.where(variance + contrast == 0, 1, ratio), 0)
    n, s1, s2, s3, s4, v = (
        value.astype(jnp.float64) for value in (n, s1, s2, sums["s3"], sums["s4"], variance)
    )
    b = n * s3 - s1 * s2
    if name == "ClusterShade":
        return (n * b - 2 * s1 * v) * share**3
    a = n * s4 - s1 * s3
    return (n * (n * a - 3 * s1 * b) + 3 * s1 * s1 * v) * (share**2) ** 2


def _real(value) -> jax.Array:
    return value.astype(jnp.float32)


@partial(jax.jit, static_argnames="angles")
def _means(counted, totals, *, angles: int) -> tuple[jax.Array, ...]:
    """f32 means over the angles that have a pair."""
    share: Any = np.float32(1 / angles)
    if counted is not None:
        share = jnp.where(counted > 0, 1 / jnp.maximum(counted, 1).astype(jnp.float32), jnp.nan)
    return tuple(_real(total * share) for total in totals)
