"""Places in a vertebral body: where cubic crops may be cut that show the body and nothing else.

A place is the first voxel (z, y, x) of a crop of `edge` voxels a side, in coordinates of the shown
window of a vertebra's box. Places are numbered in C order, so from the lower end of the body to the
upper one. Everything here is integer arithmetic: the host and the device agree to the bit.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from osteojax.data import vertebrae
from osteojax.data.vertebra_columns import CROP_MM
from osteojax.data.view_settings import ViewSettings
from osteojax.errors import UserError

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort

BODY_PLANE = vertebrae.PLANES.index("body")
TABLE_COLUMN = "body_places"
"""The column that counts the places of crops of `CROP_MM` that lie wholly in the body."""
READ_THREADS = 8


def edge_voxels(edge_mm: float, spacing_mm: float) -> int:
    """Edge of a crop in whole voxels, at least one."""
    return max(1, round(edge_mm / spacing_mm))


def needed_voxels(edge: int, body_share: float) -> int:
    """Body voxels that a crop of `edge` voxels needs for a share of `body_share`, rounded up."""
    return math.ceil(body_share * edge**3 - 1e-6)


def crop_shares(body_DHW: np.ndarray, edge: int) -> np.ndarray:
    """Body voxels in every crop, by the crop's first voxel.

    Args:
      body_DHW: bool[D, H, W].
      edge: of the crops in voxels, at most the smallest of D, H and W.

    Returns:
      i32[D - edge + 1, H - edge + 1, W - edge + 1]; empty along an axis that is too short.
    """
    sums = body_DHW.astype(np.int32)
    for axis, size in enumerate(body_DHW.shape):
        upto = np.zeros([n + (a == axis) for a, n in enumerate(sums.shape)], np.int32)
        np.cumsum(sums, axis=axis, out=upto[(slice(None),) * axis + (slice(1, None),)])
        count = max(size - edge + 1, 0)
        low, high = np.arange(count), np.arange(count) + edge
        sums = np.take(upto, high, axis=axis) - np.take(upto, low, axis=axis)
    return sums


def find_places(body_DHW: np.ndarray, edge: int, body_share: float) -> tuple[np.ndarray, float]:
    """Places of all crops that lie inside the body by at least a share of their voxels.

    Args:
      body_DHW: bool[D, H, W].
      edge: of the crops in voxels, at most the smallest of D, H and W.
      body_share: 1: every voxel of the crop is body.

    Returns:
      (i32[P, 3] first voxels in C order, largest share of body voxels of any crop). Where no crop
      has the share, the one place of largest share, the first of several in C order.
    """
    shape = body_DHW.shape
    inside = [np.flatnonzero(body_DHW.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if len(inside[0]) == 0:
        return np.zeros((1, 3), np.int32), 0.0
    # Only crops that meet the body count, so sums are taken around it alone.
    low = np.array([max(found[0] - edge + 1, 0) for found in inside])
    high = [min(found[-1] + edge, size) for found, size in zip(inside, shape, strict=True)]
    around = body_DHW[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    shares = crop_shares(around, edge)
    largest = int(shares.max())
    corners = np.argwhere(shares >= max(needed_voxels(edge, body_share), 1))
    if len(corners) == 0:
        corners = np.argwhere(shares == largest)[:1]
    return (corners + low).astype(np.int32), largest / edge**3


def fixed_ranks(num_places: int | Array, count: int) -> np.ndarray | Array:
    """i32[count]: which of a body's places are its fixed ones, floor((i + 0.5) P / count): evenly
    spaced in C order, repeated where there are fewer places than that."""
    xp = jnp if isinstance(num_places, jax.Array) else np
    return ((2 * xp.arange(count, dtype=xp.int32) + 1) * num_places // (2 * count)).astype(xp.int32)


def fixed_corners(body_BDHW: Array, edge: int, body_share: float, count: int) -> Array:
    """The fixed places of every body, computed on the device; jittable.

    Args:
      body_BDHW: bool[B, D, H, W].
      edge: of the crops in voxels, at most the smallest of D, H and W.
      body_share: as of `find_places`.
      count: places of each body.

    Returns:
      i32[B, count, 3], equal to `fixed_ranks` of `find_places` to the bit.
    """
    sums = body_BDHW.astype(jnp.int32)
    for axis in (1, 2, 3):
        window = [edge if a == axis else 1 for a in range(4)]
        sums = lax.reduce_window(sums, np.int32(0), lax.add, window, (1, 1, 1, 1), "VALID")
    shape = sums.shape[1:]
    needed = max(needed_voxels(edge, body_share), 1)

    def of_one(shares_N: Array) -> Array:
        enough_N = shares_N >= needed
        # Without such a place the first one of largest share; (0, 0, 0) where there is no body.
        best_N = jnp.arange(len(shares_N)) == jnp.argmax(shares_N)
        ok_N = jnp.where(jnp.any(enough_N), enough_N, best_N)
        upto_N = jnp.cumsum(ok_N.astype(jnp.int32))
        ranks = fixed_ranks(upto_N[-1], count)
        # The place of rank k comes after all positions up to which at most k places were seen.
        flat = jnp.sum(upto_N <= ranks[:, None], axis=1, dtype=jnp.int32)
        return jnp.stack(jnp.unravel_index(flat, shape), axis=-1).astype(jnp.int32)

    # An exported program's number of bodies is a symbol, so it is not computed from -1.
    return jax.vmap(of_one)(sums.reshape(sums.shape[0], math.prod(shape)))


def cut(volumes_BVDHW: Array, corners_BN3: Array, edge: int) -> Array:
    """Cuts crops on the device.

    Args:
      volumes_BVDHW: [B, V, D, H, W] with V = N, one volume for each crop, or V = 1 for all.
      corners_BN3: i32[B, N, 3] first voxels, in coordinates of these volumes.
      edge: of the crops in voxels.

    Returns:
      [B, N, edge, edge, edge] in the volumes' dtype.
    """
    count = corners_BN3.shape[1]
    if volumes_BVDHW.shape[1] not in (1, count):
        raise ValueError(f"{volumes_BVDHW.shape[1]} volumes for {count} crops")

    def one(volume_DHW: Array, corner: Array) -> Array:
        return lax.dynamic_slice(volume_DHW, corner, (edge, edge, edge))

    if volumes_BVDHW.shape[1] == 1:
        over_crops = jax.vmap(one, in_axes=(None, 0))
        return jax.vmap(over_crops)(volumes_BVDHW[:, 0], corners_BN3)
    return jax.vmap(jax.vmap(one))(volumes_BVDHW, corners_BN3)


def share_text(share: float) -> str:
    """Share of a crop that does not lie in a body, as "67%"; at most "99%", also where the crop
    lacks a single voxel."""
    return f"{min(share, 0.99):.0%}"


class Places:
    """Places in the bodies of a cohort, found when a row is first asked for and then kept.

    Attributes:
      edge: of the crops in voxels.
      body_share: that a crop needs.
      margin: voxels of the stored box around the shown window.
    """

    def __init__(self, cohort: PreparedCohort, edge: int, body_share: float) -> None:
        """Raises UserError if the folder holds no body masks or a crop is larger than its box."""
        self._cohort, self.edge, self.body_share = cohort, edge, body_share
        about = vertebrae.about(cohort.manifest)
        self.margin = about.margin
        if not about.has_body:
            raise UserError(
                f"{cohort.directory} has no masks of vertebral bodies. Prepare the cohort again "
                "with this version, or see whole boxes: the variant paper of a shipped config "
                "(FILE.py:paper)."
            )
        self._table_edge = edge_voxels(CROP_MM, about.spacing_mm)
        self._window = about.window
        if edge > min(about.shown):
            raise UserError(
                f"{cohort.directory}: crops of {edge} voxels do not fit into its boxes of "
                f"{about.shown} voxels. Choose a smaller data.views.edge_mm."
            )
        self._found: dict[int, tuple[np.ndarray, float]] = {}

    @classmethod
    def for_views(cls, cohort: PreparedCohort, settings: ViewSettings) -> Places | None:
        """The places that `data.views` asks for; None where views are whole boxes."""
        if not settings.of_body:
            return None
        spacing_mm = vertebrae.about(cohort.manifest).spacing_mm
        return cls(cohort, edge_voxels(settings.edge_mm, spacing_mm), settings.body_share)

    def cut(self, volumes_BVDHW: Array, corners_BN3: Array) -> Array:
        """`cut` from stored boxes, at corners in coordinates of the shown window: on the device."""
        return cut(volumes_BVDHW, corners_BN3 + self.margin, self.edge)

    def _of(self, row: int) -> tuple[np.ndarray, float]:
        if row not in self._found:
            body = self._cohort.array(row, "mask")[BODY_PLANE][self._window]
            corners, share = find_places(body, self.edge, self.body_share)
            self._found[row] = corners.astype(np.int16), share  # 30,000 bodies have many places
        return self._found[row]

    def of(self, row: int) -> np.ndarray:
        """i32[P, 3]: the places of a row's body in C order (`find_places`)."""
        return self._of(row)[0].astype(np.int32)

    def share(self, row: int) -> float:
        """Largest share of body voxels of any crop of a row, 0 to 1."""
        return self._of(row)[1]

    def has_place(self, row: int) -> bool:
        """Whether some crop of a row's body has the share that is needed."""
        return round(self.share(row) * self.edge**3) >= needed_voxels(self.edge, self.body_share)

    def fixed(self, row: int, count: int) -> np.ndarray:
        """i32[count, 3]: the fixed places of a row's body (`fixed_ranks`)."""
        corners = self.of(row)
        return corners[fixed_ranks(len(corners), count)]

    def random(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """i32[3]: one place of a row's body, drawn uniformly."""
        corners, _ = self._of(row)
        return corners[rng.integers(len(corners))].astype(np.int32)

    def having(self, rows: np.ndarray) -> np.ndarray:
        """bool[len(rows)]: `has_place` of some rows, from the table where it says so; the masks of
        the others are read."""
        from tqdm import tqdm

        table = self._cohort.table
        counts = table[TABLE_COLUMN].to_numpy(np.float64)[rows]
        if self.body_share != 1.0 or self.edge != self._table_edge:
            counts[:] = np.nan  # the table counts other crops
        having, unknown = counts > 0, np.isnan(counts)
        bar = partial(tqdm, desc="places in bodies", leave=False, delay=2)
        with ThreadPoolExecutor(READ_THREADS) as threads:
            read = threads.map(self.has_place, rows[unknown].tolist())
            quiet = jax.process_index() != 0
            having[unknown] = list(bar(read, total=int(unknown.sum()), disable=quiet))
        return having
