"""Which members of the texture pool an example shows.

A view draws on the host, from Grain's generator for a position of the stream, what an example is:
a few numbers. Reading the volumes that a draw names is another step: from the shards, or from
device memory (`data/resident.py`), where drawing is all that the host does.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from osteojax.data.schema import POOL
from osteojax.errors import UserError

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort

Example = dict[str, Any]
"""Arrays and NumPy scalars of one vertebra; stacked into a batch."""


class View(Protocol):
    """What a view has; `view(cohort, row, rng)` draws and reads.

    A draw has index i32 (its row) and map_ids i32[V], and what else the host knows; where a view
    shows another vertebra than its own, rows i32[V] says which. Reading adds the volumes.

    Attributes:
      key: "codes", the members that map_ids name, or "image", from which the device makes them.
      members: every member of the pool that a draw can name; for "image" the image.
    """

    @property
    def key(self) -> str: ...

    @property
    def members(self) -> tuple[str, ...]: ...

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example: ...

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example: ...


def with_volumes(view: View, cohort: PreparedCohort, draw: Example) -> Example:
    """A draw with the volumes that it shows, read from the shards.

    Returns:
      the draw and "codes" uint8[V, D, H, W], or "image" uint8[D, H, W], by `view.key`.
    """
    if view.key == "image":
        return {**draw, "image": cohort.members(int(draw["index"]), ["image"])[0]}
    names = [POOL[i] for i in draw["map_ids"]]
    rows = draw.get("rows")
    if rows is None:
        return {**draw, "codes": cohort.members(int(draw["index"]), names)}
    codes = [cohort.members(int(row), [name])[0] for row, name in zip(rows, names, strict=True)]
    return {**draw, "codes": np.stack(codes)}


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
    key = "codes"

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(POOL[i] for i in np.unique(pair_choices(self.sampler)))

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return {"index": np.int32(row), "map_ids": _draw_pair(self.sampler, rng)}

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return with_volumes(self, cohort, self.draw(cohort, row, rng))


@dataclasses.dataclass(frozen=True)
class ImageForPair:
    """What `PoolPair` shows, as its image and which members to make of it (`data/online.py`)."""

    sampler: str = "uniform"
    key = "image"
    members = ("image",)

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return {"index": np.int32(row), "map_ids": _draw_pair(self.sampler, rng)}

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return with_volumes(self, cohort, self.draw(cohort, row, rng))


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The image member with every label the vertebra has."""

    key = "codes"
    members = ("image",)

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        labels = cohort.labels
        return {
            "index": np.int32(row),
            "map_ids": np.zeros(1, np.int32),
            "label": labels.osteoporosis[row],
            "bmd": labels.bmd_g_cm2[row],
            "level": labels.level[row],
            "device": labels.device[row],
        }

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return with_volumes(self, cohort, self.draw(cohort, row, rng))
