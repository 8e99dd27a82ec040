"""What an example shows of a vertebra.

A view first draws what an example shows, a few numbers, on the host with Grain's generator for the
position of the stream. The volumes that the draw names are then read from the shards, or taken from
device memory inside the step (`data/resident.py`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from osteojax.data.places import Places
from osteojax.data.vertebrae import POOL

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort

Example = dict[str, Any]
"""Arrays and NumPy scalars of one example, which are stacked into a batch."""


class View(Protocol):
    """Interface of a view; `view(cohort, row, rng)` draws and reads.

    A draw has index i32 (its row), map_ids i32[V] and labels. If a view shows items of other rows,
    the draw also has rows i32[V]; if it shows body crops, corners i32[N, 3], their first voxels in
    coordinates of the shown window. Reading adds the volumes, whole: the device cuts the crops.

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


@dataclasses.dataclass(frozen=True)
class Supervised:
    """The image of the vertebra with all its labels.

    Attributes:
      places: of body crops; None shows the whole box alone. A draw then has corners i32[crops, 3],
        the fixed places of the vertebra (`places.fixed_ranks`).
      crops: how many of them.
      numbers: f32[N, ...] of every row of the cohort, of which a draw has its row's; or None.
    """

    places: Places | None = dataclasses.field(default=None, kw_only=True)
    crops: int = dataclasses.field(default=1, kw_only=True)
    numbers: np.ndarray | None = dataclasses.field(default=None, kw_only=True)
    key = "codes"
    pool = POOL
    members = ("image",)

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        labels = cohort.labels
        fixed = {} if self.places is None else {"corners": self.places.fixed(row, self.crops)}
        numbers = {} if self.numbers is None else {"numbers": self.numbers[row]}
        return {
            **fixed,
            **numbers,
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
