"""GLCM features from exact 64-bit window sums: central moments, other angles, float64 maps.

Computing a central moment from raw moments loses its digits to cancellation: on smooth bone E[s^4]
is 10^8 times the fourth central moment. Here sums of powers are exact 64-bit integers, and are
re-centred in integers at an integer next to the window's own mean (modulo 2^64: intermediate terms
may wrap, the result fits); float64 only shifts the centre by less than one level. Where angles are
pooled by weights, all angles of a window share one centre.

One program serves all angles: it scans over them, with the angle as data, so that windows of any
distance compile in the same few seconds (62 angles unrolled took minutes).

The same code serves dense maps (box sums) and whole patches (plain sums): `reduce` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from osteojax.ops.texture.pair_features import MOMENTS, PAIR_VALUES, difference, pair_mean
from osteojax.ops.texture.windows import Angle, Window, pairs_in_window

Sums = dict[str, Any]
Reduce = Callable[[Any, Any], Any]
"""(values at the first end of every pair along an angle, the angle) -> sums over windows."""

EPSILON = 2.0**-52
"""What PyRadiomics adds to the denominator of Correlation (numpy.spacing(1))."""


def exact_maps(
    levels: jax.Array,
    mask: jax.Array | None,
    window: Window,
    features: tuple[str, ...],
    num_levels: int,
) -> dict[str, jax.Array]:
    """f64[..., D, H, W] of any feature of `ALL_FEATURES`; NaN where a window has no pair.

    Call inside `jax.enable_x64(True)`.

    Raises:
      ValueError: sums of this many levels do not fit 64 bits.
    """
    radii, angles = window.radii(levels.shape), window.angles(levels.shape)
    check_range(features, max((pairs_in_window(radii, a) for a in angles), default=0), num_levels)
    if not angles:
        return {name: jnp.full(levels.shape, jnp.nan) for name in features}
    inside = jnp.ones(levels.shape, jnp.bool_) if mask is None else mask
    return _dense(
        levels,
        inside,
        *angles_and_weights(window, angles),
        num_levels,
        radii=radii,
        reach=max(window.distances),
        symmetrical=window.symmetrical,
        features=features,
    )


def angles_and_weights(window: Window, angles: tuple[Angle, ...]) -> tuple[Any, Any]:
    """Angles i64[A, 3] and, where angles are pooled, weights f64[A]. They are inputs of the
    programs, which are thus compiled once for all spacings and norms."""
    weights = None if window.weighting_norm is None else jnp.array(window.weights(angles))
    return jnp.array(angles), weights


def check_range(features: tuple[str, ...], most_pairs: int, num_levels: int) -> None:
    """Raises ValueError where a re-centred sum of `most_pairs` pairs could pass 2^63."""
    power = {"ClusterShade": 3, "ClusterProminence": 4}
    for name in features:
        if most_pairs * (2 * num_levels) ** power.get(name, 2) >= 2**63:
            raise ValueError(
                f"{name} of {num_levels} grey levels does not fit 64-bit sums over {most_pairs} "
                "pairs: discretise with a wider bin, or take a smaller kernel."
            )


@partial(jax.jit, static_argnames=("radii", "reach", "symmetrical", "features"))
def _dense(levels, mask, angles, weights, num_levels, *, radii, reach, symmetrical, features):
    pairs = Pairs(levels, mask, num_levels, reach, symmetrical, partial(_box_sums, radii=radii))
    return features_of_windows(pairs, angles, weights, features)


def _box_sums(image, angle, *, radii) -> jax.Array:
    """Sums over the pairs whose ends both lie within `radii` of each voxel.

    A pair is stored at its first end x; its second end is x + angle. Along each axis the sum takes
    the offsets of x in -radius..radius for which offset + step is in that range too.
    """
    for axis, radius in zip((-3, -2, -1), radii, strict=True):
        step = angle[axis]
        padding = [(0, 0)] * image.ndim
        padding[axis] = (radius, radius)
        padded = jnp.pad(image, padding)
        size = image.shape[axis]
        image = jnp.zeros_like(image)
        for offset in range(-radius, radius + 1):
            holds = (offset + step >= -radius) & (offset + step <= radius)
            taken = lax.slice_in_dim(
                padded, offset + radius, offset + radius + size, axis=padded.ndim + axis
            )
            image = image + jnp.where(holds, taken, 0)
    return image


class Pairs(NamedTuple):
    """The pairs of an image, and how they are summed over windows.

    Attributes:
      levels, mask: integer and bool[..., D, H, W].
      num_levels: Ng in Idn and Idmn; a number or an array that broadcasts against `levels`.
      reach: largest step of an angle.
      symmetrical: whether each pair counts as (i, j) and as (j, i).
      reduce: sums over windows.
    """

    levels: Any
    mask: Any
    num_levels: Any
    reach: int
    symmetrical: bool
    reduce: Reduce

    def sums(self, features, angle) -> Sums:
        """Raw sums over the pairs of one angle: exact int64, float64 for real values as Id's."""
        i = self.levels.astype(jnp.int64)
        j = _shifted(i, angle, self.reach)
        images = {"n": jnp.ones_like(i), "s1": i + j}
        needed = set(features)
        for name in sorted(needed - set(MOMENTS)):
            key = pair_mean(name, self.symmetrical).value
            images[key] = PAIR_VALUES[key].of(i, j, self.num_levels)
        if needed & {"DifferenceVariance"}:
            images["d1"] = difference(i, j)
        if needed & {"DifferenceVariance", "SumSquares", "Correlation"}:
            images["d2"] = difference(i, j) ** 2
        for power in range(2, 1 + max(map(_highest_power, features))):
            images[f"s{power}"] = (i + j) ** power
        if not self.symmetrical and needed & {"SumSquares", "Correlation"}:
            images |= {"i1": i, "j1": j, "i2": i * i, "j2": j * j}
        valid = self.mask & _shifted(self.mask, angle, self.reach)
        return self._reduced(images, valid, angle)

    def _reduced(self, images: Sums, valid, angle) -> Sums:
        """Sums over windows: one pass for all integers and one for all reals."""
        sums: Sums = {}
        for kind in (jnp.integer, jnp.floating):
            names = [name for name, image in images.items() if jnp.issubdtype(image.dtype, kind)]
            if names:
                stacked = jnp.stack([jnp.where(valid, images[name], 0) for name in names])
                sums |= dict(zip(names, self.reduce(stacked, angle), strict=True))
        return sums


def _highest_power(name: str) -> int:
    """The highest power of i + j in a feature's sums."""
    return {"ClusterProminence": 4, "ClusterShade": 3}.get(name, 2 if name in MOMENTS else 1)


def _shifted(image, angle, reach: int) -> jax.Array:
    """image[x + angle] at x, 0 beyond the border; steps are at most `reach`."""
    around = [(0, 0)] * (image.ndim - 3) + [(reach, reach)] * 3
    start = [jnp.int64(0)] * (image.ndim - 3) + [reach + angle[axis] for axis in range(3)]
    return lax.dynamic_slice(jnp.pad(image, around), start, image.shape)


def features_of_windows(pairs: Pairs, angles, weights, features) -> dict[str, jax.Array]:
    """f64 features of the windows that `pairs.reduce` sums over, NaN where one has no pair.

    angles: i64[A, 3], A at least 1. weights: f64[A] where their matrices are added; None where
    features are averaged over the angles that have a pair.
    """
    if weights is not None:
        return _pooled(pairs, angles, weights, features)
    symmetrical = pairs.symmetrical

    def add_angle(totals, angle):
        raw = pairs.sums(features, angle)
        some = raw["n"] > 0
        centred = _centred(raw, *_centres(raw), symmetrical)
        added = {
            name: totals[name] + jnp.where(some, _feature(name, centred, symmetrical), 0)
            for name in features
        }
        return {**added, "angles": totals["angles"] + some}, None

    shape = jax.eval_shape(pairs.reduce, pairs.levels, angles[0]).shape
    start = {name: jnp.zeros(shape) for name in features} | {"angles": jnp.zeros(shape, jnp.int64)}
    totals, _ = lax.scan(add_angle, start, angles)
    counted = totals.pop("angles")
    share = jnp.where(counted > 0, 1 / jnp.maximum(counted, 1), jnp.nan)
    return {name: total * share for name, total in totals.items()}


def _pooled(pairs: Pairs, angles, weights, features) -> dict[str, jax.Array]:
    """Features of the weighted sum of the angles' matrices."""

    def sum_up(of):
        def add(totals, entry):
            angle, weight = entry
            sums = of(pairs.sums(features, angle))
            return {key: totals[key] + weight * sums[key] for key in totals}, None

        found = jax.eval_shape(lambda: of(pairs.sums(features, angles[0])))
        start = {key: jnp.zeros(image.shape) for key, image in found.items()}
        return lax.scan(add, start, (angles, weights))[0]

    rough = sum_up(lambda raw: {key: raw[key] for key in ("n", "s1", "d1") if key in raw})
    centres = _centres(rough)
    pooled = sum_up(lambda raw: _centred(raw, *centres, pairs.symmetrical))
    empty = pooled["n"] == 0
    return {
        name: jnp.where(empty, jnp.nan, _feature(name, pooled, pairs.symmetrical))
        for name in features
    }


def _centres(sums: Sums) -> tuple[Any, Any]:
    """int64 levels beside the means of i + j and of |i - j|."""
    pairs = (
        jnp.maximum(sums["n"], 1)
        if jnp.issubdtype(sums["n"].dtype, jnp.integer)
        else (jnp.where(sums["n"] > 0, sums["n"], 1))
    )
    return tuple(
        jnp.rint(sums[key] / pairs).astype(jnp.int64) if key in sums else jnp.int64(0)
        for key in ("s1", "d1")
    )  # type: ignore[return-value]


def _centred(raw: Sums, sum_centre, difference_centre, symmetrical: bool) -> Sums:
    """f64 sums of powers of (i + j - centre), (|i - j| - centre), (i - c), (j - c), from integers;
    the other sums are unchanged."""
    c, n = sum_centre, raw["n"]
    sums = {key: value for key, value in raw.items() if key in PAIR_VALUES or key == "n"}
    s1, s2, s3, s4 = (raw.get(f"s{power}", jnp.int64(0)) for power in (1, 2, 3, 4))
    sums["s1"] = s1 - n * c
    sums["s2"] = s2 - 2 * c * s1 + n * c * c
    sums["s3"] = s3 - 3 * c * s2 + 3 * c * c * s1 - n * c**3
    sums["s4"] = s4 - 4 * c * s3 + 6 * c * c * s2 - 4 * c**3 * s1 + n * c**4
    if "d2" in raw:
        sums["raw d2"] = raw["d2"]
    if "d1" in raw:
        e = difference_centre
        sums["d1"] = raw["d1"] - n * e
        sums["d2"] = raw["d2"] - 2 * e * raw["d1"] + n * e * e
    if not symmetrical and "i1" in raw:
        h = c // 2
        product = (raw["s2"] - raw["i2"] - raw["j2"]) // 2
        sums["i1"], sums["j1"] = raw["i1"] - n * h, raw["j1"] - n * h
        sums["i2"] = raw["i2"] - 2 * h * raw["i1"] + n * h * h
        sums["j2"] = raw["j2"] - 2 * h * raw["j1"] + n * h * h
        sums["ij"] = product - h * raw["s1"] + n * h * h
    return {key: value.astype(jnp.float64) for key, value in sums.items()}


def _feature(name: str, sums: Sums, symmetrical: bool) -> jax.Array:
    """One feature from centred sums; any finite number where there is no pair."""
    n = jnp.where(sums["n"] > 0, sums["n"], 1)
    if name not in MOMENTS:
        mean = pair_mean(name, symmetrical)
        return mean.scale * sums[mean.value] / n
    if name == "DifferenceVariance":
        return sums["d2"] / n - (sums["d1"] / n) ** 2
    m1, m2, m3, m4 = (sums[f"s{power}"] / n for power in (1, 2, 3, 4))
    if name == "ClusterTendency":
        return m2 - m1**2
    if name == "ClusterShade":
        return m3 - 3 * m1 * m2 + 2 * m1**3
    if name == "ClusterProminence":
        return m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    variance_i, variance_j, covariance = _covariances(sums, n, symmetrical)
    if name == "SumSquares":
        return variance_i
    scale = jnp.sqrt(variance_i) * jnp.sqrt(variance_j)
    return jnp.where(scale == 0, 1.0, covariance / (scale + EPSILON))


def _covariances(sums: Sums, n, symmetrical: bool) -> tuple[Any, Any, Any]:
    """Variances of i and of j, and their covariance.

    Where every pair counts both ways, i and j share one distribution and
    var(i + j) = 2 var(i) + 2 cov, E[(i - j)^2] = 2 var(i) - 2 cov.
    """
    if symmetrical:
        of_sum = sums["s2"] / n - (sums["s1"] / n) ** 2
        of_difference = sums["raw d2"] / n
        variance = (of_sum + of_difference) / 4
        return variance, variance, (of_sum - of_difference) / 4
    mean_i, mean_j = sums["i1"] / n, sums["j1"] / n
    return (
        jnp.maximum(sums["i2"] / n - mean_i**2, 0),
        jnp.maximum(sums["j2"] / n - mean_j**2, 0),
        sums["ij"] / n - mean_i * mean_j,
    )
