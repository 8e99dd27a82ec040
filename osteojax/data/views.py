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

from osteojax.data.schema import SPLITS
from osteojax.data.vertebrae import POOL
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
      pool: what map_ids count: names of fields, or of what the device makes.
      members: every field that a draw can name; for "image" the image.
    """

    @property
    def key(self) -> str: ...

    @property
    def pool(self) -> tuple[str, ...]: ...

    @property
    def members(self) -> tuple[str, ...]: ...

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example: ...

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example: ...


def with_volumes(view: View, cohort: PreparedCohort, draw: Example) -> Example:
    """A draw with the volumes that it shows, read from the shards.

    Returns:
      the draw and "codes" [V, *shape of the field], or "image", the one field, by `view.key`.
    """
    if view.key == "image":
        return {**draw, "image": cohort.members(int(draw["index"]), ["image"])[0]}
    names = [view.pool[i] for i in draw["map_ids"]]
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
        image, Autocorrelation, JointAverage with one of Contrast, DifferenceAverage),
        "image_plus_one" (the image with any map); or a control: "image_image" (the image twice: no
        texture), "other_patient" (as uniform; the second member is another patient's).
    """
    pairs = _all_pairs()
    if sampler == "cross_group":
        smooth = {POOL.index(name) for name in INTENSITY_MAPS}
        pairs = [pair for pair in pairs if (pair[0] in smooth) != (pair[1] in smooth)]
    elif sampler == "image_plus_one":
        pairs = [pair for pair in pairs if pair[0] == 0]
    elif sampler == "image_image":
        pairs = [(0, 0)]
    elif sampler not in ("uniform", "other_patient"):
        raise UserError(
            f"data.pairs is {sampler!r}; choose uniform, cross_group, image_plus_one, or a "
            "control: image_image, other_patient."
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
    pool = POOL

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(POOL[i] for i in np.unique(pair_choices(self.sampler)))

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return {"index": np.int32(row), "map_ids": _draw_pair(self.sampler, rng)}

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return with_volumes(self, cohort, self.draw(cohort, row, rng))


@functools.lru_cache(maxsize=2)
def _comparable(cohort: PreparedCohort) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Group and patient of every row, i64[N] each, and the rows of each group: vertebrae of one
    split and level, all with or all without a label."""
    table = cohort.table
    labelled = np.isin(np.arange(len(table)), cohort.rows(*SPLITS, labelled=True))
    keys = [table["split"], table["level"], labelled]
    group_N = table.groupby(keys, sort=False).ngroup().to_numpy()
    patient_N = table.groupby("patient_id", sort=False).ngroup().to_numpy()
    return group_N, patient_N, [np.flatnonzero(group_N == g) for g in range(group_N.max() + 1)]


@dataclasses.dataclass(frozen=True)
class OtherPatientPair(PoolPair):
    """Two members of the pool from two patients' vertebrae of one level: what is left to learn of
    one bone is gone, so that pre-training must not help (a control).

    The second vertebra is of the same split and, like the first, with or without a label: rows that
    training leaves out are never shown.
    """

    sampler: str = "other_patient"

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        group_N, patient_N, rows_of = _comparable(cohort)
        alike = rows_of[group_N[row]]
        candidates = alike[patient_N[alike] != patient_N[row]]
        if len(candidates) == 0:
            own = cohort.table.iloc[row]
            raise UserError(
                f"{cohort.directory}: data.pairs=other_patient: row {row} is the only patient's "
                f"{own['level']} of split {own['split']}, with a label or without as it is. Choose "
                "other pairs, or a larger cohort."
            )
        rows = np.array([row, rng.choice(candidates)], np.int32)
        return {**super().draw(cohort, row, rng), "rows": rows}


def pair_view(sampler: str, online: bool) -> View:
    """The view of `data.pairs`; `online`: the device makes the maps. Raises UserError."""
    pair_choices(sampler)
    if sampler == "other_patient":
        if online:
            raise UserError(
                "data.pairs=other_patient needs two stored pools: use data.textures=offline."
            )
        return OtherPatientPair()
    if sampler == "image_image":  # needs no map: stored images do in either mode
        return PoolPair(sampler)
    return (ImageForPair if online else PoolPair)(sampler)


@dataclasses.dataclass(frozen=True)
class ImageForPair:
    """What `PoolPair` shows, as its image and which members to make of it (`data/online.py`)."""

    sampler: str = "uniform"
    key = "image"
    pool = POOL
    members = ("image",)

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return {"index": np.int32(row), "map_ids": _draw_pair(self.sampler, rng)}

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return with_volumes(self, cohort, self.draw(cohort, row, rng))


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The image member with every label the vertebra has."""

    key = "codes"
    pool = POOL
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


@dataclasses.dataclass(frozen=True)
class ToldDevice(Supervised):
    """`Supervised` with other DXA devices than the true ones: what would the answer have been?

    Attributes:
      device: i32[N], an index into the manifest's devices for every row of the cohort.
    """

    device: np.ndarray

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return {**super().draw(cohort, row, rng), "device": np.int32(self.device[row])}
