"""What each GLCM feature is, as sums over pairs of grey levels (i, j).

Every feature here is a function of window means over pairs, so no matrix is needed:

  PAIR_MEANS   the mean of one function of (i, j); linear in the pairs
  MOMENTS      central moments of i + j, |i - j|, i and j: differences of sums that nearly cancel
               on smooth images (plain float32 errs by 2% there), so they are made from exact
               integers and float64

Names and definitions are PyRadiomics' (van Griethuysen et al. 2017, radiomics/glcm.py 3.0.1) and
IBSI's (Zwanenburg et al. 2019, section 3.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp


class PairValue(NamedTuple):
    """A function of two grey levels.

    Attributes:
      of: (i, j, num_levels) -> value, for arrays of non-negative integers. If `integer`, exact and
        in their dtype; otherwise float32 or wider. num_levels may be an array.
      bound: num_levels -> its largest value; the smallest is 0 or more.
      integer: whether values are integers.
    """

    of: Callable[[Any, Any, Any], Any]
    bound: Callable[[int], int]
    integer: bool = True


def difference(i, j):
    """|i - j|, for unsigned integers too."""
    return jnp.maximum(i, j) - jnp.minimum(i, j)


def _real_difference(i, j):
    k = difference(i, j)
    return k.astype(jnp.float64 if k.dtype.itemsize == 8 else jnp.float32)


def _inverse_variance(i, j, _):
    k = _real_difference(i, j)
    # Without a select, which a CPU's vectors would wait for: 1 / k^2, and 0 / 1 where k is 0.
    return jnp.minimum(k, 1) / jnp.maximum(k, 1) ** 2


PAIR_VALUES = {
    "product": PairValue(lambda i, j, _: i * j, lambda n: n * n),
    "sum": PairValue(lambda i, j, _: i + j, lambda n: 2 * n),
    "first": PairValue(lambda i, j, _: i, lambda n: n),
    "difference": PairValue(lambda i, j, _: difference(i, j), lambda n: n - 1),
    "squared difference": PairValue(lambda i, j, _: difference(i, j) ** 2, lambda n: (n - 1) ** 2),
    "id": PairValue(lambda i, j, _: 1 / (1 + _real_difference(i, j)), lambda n: 1, False),
    "idm": PairValue(lambda i, j, _: 1 / (1 + _real_difference(i, j) ** 2), lambda n: 1, False),
    "idn": PairValue(lambda i, j, n: 1 / (1 + _real_difference(i, j) / n), lambda n: 1, False),
    "idmn": PairValue(
        lambda i, j, n: 1 / (1 + (_real_difference(i, j) / n) ** 2), lambda n: 1, False
    ),
    "inverse variance": PairValue(_inverse_variance, lambda n: 1, False),
}


class PairMean(NamedTuple):
    """A feature that is `scale` times the mean of a `PAIR_VALUES` entry."""

    value: str
    scale: float = 1.0


PAIR_MEANS = {
    "Autocorrelation": PairMean("product"),
    "JointAverage": PairMean("sum", 0.5),
    "Contrast": PairMean("squared difference"),
    "DifferenceAverage": PairMean("difference"),
    "SumAverage": PairMean("sum"),
    "Id": PairMean("id"),
    "Idm": PairMean("idm"),
    "Idn": PairMean("idn"),
    "Idmn": PairMean("idmn"),
    "InverseVariance": PairMean("inverse variance"),
}

MOMENTS = (
    "DifferenceVariance",
    "SumSquares",
    "ClusterTendency",
    "ClusterShade",
    "ClusterProminence",
    "Correlation",
)

FEATURES = ("Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")
"""The four of the paper's texture pool."""

ALL_FEATURES = (*PAIR_MEANS, *MOMENTS)

ABSENT_FEATURES = {
    "DifferenceEntropy": "the histogram of |i - j|",
    "SumEntropy": "the histogram of i + j",
    **dict.fromkeys(
        ("Imc1", "Imc2", "JointEnergy", "JointEntropy", "MCC", "MaximumProbability"),
        "the matrix itself",
    ),
}
"""PyRadiomics' features that cannot be computed from window means, and what they need instead."""


def pair_mean(name: str, symmetrical: bool) -> PairMean:
    """The feature's entry; JointAverage is the mean of i alone where matrices are not symmetric."""
    if name == "JointAverage" and not symmetrical:
        return PairMean("first")
    return PAIR_MEANS[name]


def check_features(features: tuple[str, ...]) -> None:
    """Raises ValueError for a name that is not in `ALL_FEATURES`."""
    for name in features:
        if name in ABSENT_FEATURES:
            raise ValueError(
                f"GLCM feature {name} needs {ABSENT_FEATURES[name]}, not window means of pairs: it "
                f"is not supported. Choose from {', '.join(ALL_FEATURES)}."
            )
        if name not in ALL_FEATURES:
            raise ValueError(f"no texture map named {name!r}; there are {', '.join(ALL_FEATURES)}.")
