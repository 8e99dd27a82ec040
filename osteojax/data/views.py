"""Which members of the texture pool an example shows.

A view first draws what an example shows, a few numbers, on the host with Grain's generator for the
position of the stream. The volumes that the draw names are then read from the shards, or taken from
device memory inside the step (`data/resident.py`).
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
"""Arrays and NumPy scalars of one example, which are stacked into a batch."""


class View(Protocol):
    """Interface of a view; `view(cohort, row, rng)` draws and reads.

    A draw has index i32 (its row), map_ids i32[V] and labels. If a view shows items of other rows,
    the draw also has rows i32[V]. Reading adds the volumes.

    Attributes:
      key: "codes" if the members that map_ids name are read; "image" if only the image is read and
        the device computes them.
      pool: names that map_ids index: of fields, or of members that the device computes.
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
    """Adds to a draw the volumes that it shows, read from the shards.

    Returns:
      the draw with "codes" [V, *shape of the field] or with "image", as `view.key` says.
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
"""Members that are smooth functions of the local mean; a pair of two of them is almost trivial
(docs/method.md)."""


def _all_pairs() -> list[tuple[int, int]]:
    count = len(POOL)
    return [(s, t) for s in range(count) for t in range(s + 1, count)]


@functools.cache
def pair_choices(sampler: str) -> np.ndarray:
    """i32[P, 2] the pairs of map ids from which a sampler draws uniformly.

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
    """Two distinct members of a vertebra's pool in random order: views s and t of eq. 1."""

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
    """Two members of the pool from vertebrae of two patients at one level. The views share no bone,
    so pre-training on them should not help (a control).

    The second vertebra is from the same split, and labelled if and only if the first one is, so
    that rows that training leaves out are never shown.
    """

    sampler: str = "other_patient"

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        group_N, patient_N, rows_of = _comparable(cohort)
        alike = rows_of[group_N[row]]
        candidates = alike[patient_N[alike] != patient_N[row]]
        if len(candidates) == 0:
            own = cohort.table.iloc[row]
            raise UserError(
                f"{cohort.directory}: data.pairs=other_patient: for row {row} no other patient has "
                f"{own['level']} in split {own['split']} (with or without a label, as that row). "
                "Choose other pairs, or a larger cohort."
            )
        rows = np.array([row, rng.choice(candidates)], np.int32)
        return {**super().draw(cohort, row, rng), "rows": rows}


def pair_view(sampler: str, online: bool) -> View:
    """The view for `data.pairs`. online: whether the device computes the maps. Raises UserError
    for an unknown name, and for "other_patient" online."""
    pair_choices(sampler)
    if sampler == "other_patient":
        if online:
            raise UserError(
                "data.pairs=other_patient needs two stored pools: use data.textures=offline."
            )
        return OtherPatientPair()
    if sampler == "image_image":  # needs no map, so stored images suffice in either mode
        return PoolPair(sampler)
    return (ImageForPair if online else PoolPair)(sampler)


@dataclasses.dataclass(frozen=True)
class ImageForPair:
    """The draws of `PoolPair` with the image, from which the device computes the members
    (`data/online.py`)."""

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
    """The image of the vertebra with all its labels."""

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
class GivenDevice(Supervised):
    """`Supervised` with a given DXA scanner for each row instead of the true one, to ask what the
    model would predict for it.

    Attributes:
      device: i32[N], an index into the manifest's devices for every row of the cohort.
    """

    device: np.ndarray

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return {**super().draw(cohort, row, rng), "device": np.int32(self.device[row])}
