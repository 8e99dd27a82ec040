"""Views of self-supervised methods: pairs of members of a vertebra's texture pool."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from osteojax.data.places import Places
from osteojax.data.schema import SPLITS
from osteojax.data.vertebrae import POOL
from osteojax.data.view_settings import WHOLE_BOXES, ViewSettings
from osteojax.data.views import Example, with_volumes
from osteojax.errors import UserError

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort

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
        texture), "other_patient" (as uniform; the other members are other patients').
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
    """Two distinct members of a vertebra's pool in random order: views s and t of eq. 1.

    Attributes:
      sampler: of the pairs (`pair_choices`).
      count: V; an example has V / 2 pairs, drawn one after the other.
      places: of body crops; None shows whole boxes. A draw then has corners i32[V, 3], the crops'
        first voxels in coordinates of the shown window.
      same_place: whether all crops of an example are cut at one place.
    """

    sampler: str = "uniform"
    count: int = 2
    places: Places | None = None
    same_place: bool = False
    key = "codes"
    pool = POOL

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(POOL[i] for i in np.unique(pair_choices(self.sampler)))

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return self._draw(row, np.full(self.count, row), rng)

    def _draw(self, row: int, rows_V: np.ndarray, rng: np.random.Generator) -> Example:
        """rows_V: whose member each view shows. Members are drawn before places, so that they are
        the same with and without crops."""
        pairs = [_draw_pair(self.sampler, rng) for _ in range(self.count // 2)]
        draw = {"index": np.int32(row), "map_ids": np.concatenate(pairs)}
        if self.places is None:
            return draw
        if self.same_place:
            corners = np.tile(self.places.random(row, rng), (self.count, 1))
        else:
            corners = np.stack([self.places.random(int(own), rng) for own in rows_V])
        return {**draw, "corners": corners}

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return with_volumes(self, cohort, self.draw(cohort, row, rng))


@dataclasses.dataclass(frozen=True)
class ImageForPair(PoolPair):
    """The draws of `PoolPair` with the image, from which the device computes the members
    (`data/online.py`)."""

    key = "image"

    @property
    def members(self) -> tuple[str, ...]:
        return ("image",)


@functools.lru_cache(maxsize=2)
def _comparable(
    cohort: PreparedCohort, places: Places | None
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Group and patient of every row, i64[N] each, and the rows of each group: vertebrae of one
    split and level, all with or all without a label. For body crops, training vertebrae without a
    place are groups of their own: they are not shown."""
    table = cohort.table
    labelled = np.isin(np.arange(len(table)), cohort.rows(*SPLITS, labelled=True))
    shown = np.ones(len(table), bool)
    if places is not None:
        training = cohort.rows("train")
        shown[training] = places.having(training)
    keys = [table["split"], table["level"], labelled, shown]
    group_N = table.groupby(keys, sort=False).ngroup().to_numpy()
    patient_N = table.groupby("patient_id", sort=False).ngroup().to_numpy()
    return group_N, patient_N, [np.flatnonzero(group_N == g) for g in range(group_N.max() + 1)]


@dataclasses.dataclass(frozen=True)
class OtherPatientPair(PoolPair):
    """Members of the pool from vertebrae of as many patients as there are views, at one level. The
    views share no bone, so pre-training on them should not help (a control).

    The other vertebrae are from the same split, and labelled if and only if the first one is, so
    that rows that training leaves out are never shown. A body crop is cut at a place of its own
    vertebra's body.
    """

    sampler: str = "other_patient"

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        group_N, patient_N, rows_of = _comparable(cohort, self.places)
        alike, rows = rows_of[group_N[row]], [row]
        while len(rows) < self.count:
            alike = alike[patient_N[alike] != patient_N[rows[-1]]]
            if len(alike) == 0:
                own = cohort.table.iloc[row]
                no_other = "no other" if len(rows) == 1 else "no further"
                raise UserError(
                    f"{cohort.directory}: data.pairs=other_patient: for row {row} "
                    f"{no_other} patient has {own['level']} in split {own['split']} (with or "
                    "without a label, as that row). Choose other pairs, or a larger cohort."
                )
            rows.append(int(rng.choice(alike)))
        rows_V = np.array(rows, np.int32)
        return {**self._draw(row, rows_V, rng), "rows": rows_V}


def pair_view(
    sampler: str,
    online: bool,
    settings: ViewSettings = WHOLE_BOXES,
    places: Places | None = None,
) -> PoolPair:
    """The view for `data.pairs`.

    Args:
      sampler: see `pair_choices`.
      online: whether the device computes the maps.
      settings: `data.views`.
      places: of body crops; None for whole boxes.

    Raises:
      UserError: an unknown name, or "other_patient" online or with crops at one place.
    """
    pair_choices(sampler)
    fields = settings.count, places, settings.same_place and places is not None
    if sampler == "other_patient":
        if online:
            raise UserError(
                "data.pairs=other_patient needs two stored pools: use data.textures=offline."
            )
        if fields[-1]:
            raise UserError(
                "data.pairs=other_patient shows several bodies, which have no place in common: "
                "use data.views.same_place=false."
            )
        return OtherPatientPair("other_patient", *fields)
    if sampler == "image_image":  # needs no map, so stored images suffice in either mode
        return PoolPair(sampler, *fields)
    return (ImageForPair if online else PoolPair)(sampler, *fields)
