"""Which members of the texture pool an example shows.

A view is a callable `(cohort, row, rng) -> example`; it runs on the host, in Grain's threads, and
reads only the records it shows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from osteojax.data.cohort import PreparedCohort
from osteojax.data.schema import POOL
from osteojax.errors import UserError

Example = dict[str, Any]
"""Arrays and NumPy scalars of one vertebra; stacked into a batch."""

INTENSITY_MAPS = ("image", "Autocorrelation", "JointAverage")
"""Smooth functions of the local mean: pairs among them are near-trivial (docs/method.md)."""


def _all_pairs() -> list[tuple[int, int]]:
    count = len(POOL)
    return [(s, t) for s in range(count) for t in range(s + 1, count)]


@functools.cache
def pair_choices(sampler: str) -> np.ndarray:
    """i32[P, 2] the pairs a sampler draws from, uniformly.

    Args:
      sampler: "uniform" (any two distinct members; the paper does not say), "cross_group" (one of
        image, Autocorrelation, JointAverage with one of Contrast, DifferenceAverage), or
        "image_plus_one" (the image with any map).
    """
    pairs = _all_pairs()
    if sampler == "cross_group":
        smooth = {POOL.index(name) for name in INTENSITY_MAPS}
        pairs = [pair for pair in pairs if (pair[0] in smooth) != (pair[1] in smooth)]
    elif sampler == "image_plus_one":
        pairs = [pair for pair in pairs if pair[0] == 0]
    elif sampler != "uniform":
        raise UserError(
            f"data.pairs is {sampler!r}; choose uniform, cross_group or image_plus_one."
        )
    return np.array(pairs, np.int32)


def _draw_pair(sampler: str, rng: np.random.Generator) -> np.ndarray:
    """i32[2] map ids in random order."""
    choices = pair_choices(sampler)
    return rng.permutation(choices[rng.integers(len(choices))]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class PoolPair:
    """Two distinct members of a vertebra's pool, in random order: the views s and t of eq. 1."""

    sampler: str = "uniform"

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        pair = _draw_pair(self.sampler, rng)
        return {
            "index": np.int32(row),
            "codes": cohort.members(row, [POOL[i] for i in pair]),
            "map_ids": pair,
        }


@dataclasses.dataclass(frozen=True)
class ImageForPair:
    """What `PoolPair` shows, as its image and which members to make of it (`data/online.py`)."""

    sampler: str = "uniform"

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        pair = _draw_pair(self.sampler, rng)
        return {
            "index": np.int32(row),
            "image": cohort.members(row, ["image"])[0],
            "map_ids": pair,
        }


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The image member with every label the vertebra has."""

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        labels = cohort.labels
        return {
            "index": np.int32(row),
            "codes": cohort.members(row, ["image"]),
            "map_ids": np.zeros(1, np.int32),
            "label": labels.osteoporosis[row],
            "bmd": labels.bmd_g_cm2[row],
            "level": labels.level[row],
            "device": labels.device[row],
        }
