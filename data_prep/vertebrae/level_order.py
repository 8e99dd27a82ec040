"""Whether the labels of a mask can be the levels that they are read as.

A mask that is read with another program's numbers has levels in the wrong order, levels that are
organs or several vertebrae, or lumbar vertebrae under thoracic names. All of it shows in the mask
alone: where the labels lie, how large they are and how far apart.

Ranks count levels from above: C7 is 0 and C1 -6, T1-T12 and L1-L6 are the classes 1-18, the sacrum
is 19 and what follows it 20.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from osteojax.data.vertebrae import LEVELS

COARSE_MM = 2.5
"""Labels are measured on every n-th voxel, at most this far apart (or the voxels' own distance)."""
LEAST_MM3 = 1000.0
"""Smaller labels and pieces are fragments, of which nothing is concluded."""
LEAST_PIECE = 0.1
"""Smallest share of the largest piece's volume that another piece must have to count."""
FAR_MM = 45.0
"""Height that separates two pieces of one vertebra at most; the centroids of a body and of the
spinous process that a border cuts off lie up to 30 mm apart in height."""
STACKED_MM, BESIDE_MM, EQUAL_PIECE = 15.0, 20.0, 0.3
"""Two pieces one above the other: at least this far apart in height, at most this far across, and
at least this share of each other's volume. Neighbouring bodies are so."""
LARGEST_MM3 = 200e3
"""No vertebra is larger: the largest of a real torso here has 66,000 mm^3 with all processes."""
WRONG_ORDER_MM = 10.0
"""Height by which a level must lie above the one over it to be out of order."""
LEAST_UPRIGHT = 0.5
"""Smallest cosine of the angle between the row of levels and the patient's axis."""
STEP_MM = (20.8, 21.3, 21.8, 22.3, 23.0, 24.3, 25.3, 26.5, 27.5, 29.0, 30.8, 33.0, 35.3, 37.3, 38.5,
           39.0, 37.5)  # fmt: skip
"""Usual distance of the centres of neighbouring levels, T1-T2 to L5-L6: heights of bodies and disks
of Panjabi et al. 1991 and 1992, raised by 15% as CT of living people shows."""
STEP_RATIO = (0.75, 1.2)
"""Ratio to `STEP_MM`, median over a mask, beyond which another scheme is looked for. It is 0.94 and
0.99 by two masks of a real torso and 0.91 to 0.99 of four simulated patients (T1-L5). The
numbers of two programs differ by seven or nine levels: then these have 1.21 to 1.58, or 0.62 to
0.72."""
FITTING_RATIO = (0.8, 1.2)
"""Ratio that a scheme must have to be named as the one that fits."""


@dataclasses.dataclass(frozen=True)
class Level:
    """One label of a mask, measured on coarse voxels.

    Attributes:
      rank: of the level that it is read as.
      centre_mm: f64[3], centroid, LPS.
      volume_mm3: of all of it.
      cut: whether it touches the border of the volume.
      pieces: (volume in mm^3, f64[3] centroid) of each connected piece of some size, largest first.
    """

    rank: int
    centre_mm: np.ndarray
    volume_mm3: float
    cut: bool
    pieces: tuple[tuple[float, np.ndarray], ...]

    @property
    def name(self) -> str:
        if self.rank <= 0:
            return f"C{7 + self.rank}"
        return LEVELS[self.rank - 1] if self.rank <= len(LEVELS) else "the sacrum"


def measure_levels(
    numbers: np.ndarray, geometry: sitk.Image, rank_of_id: dict[int, int]
) -> list[Level]:
    """Measures the labels of a mask that are not mere fragments, from above downwards by rank.

    Args:
      numbers: int[D, H, W], label numbers; not negative.
      geometry: an image whose header is the mask's.
      rank_of_id: the numbers to measure, with their ranks.
    """
    spacing_mm = np.array(geometry.GetSpacing())[::-1]
    stride = np.maximum(1, np.floor(COARSE_MM / spacing_mm + 1e-6)).astype(int)
    coarse = numbers[tuple(slice(None, None, s) for s in stride)]
    matrix = np.array(geometry.GetDirection()).reshape(3, 3) * geometry.GetSpacing()
    origin_mm = np.array(geometry.GetOrigin())
    voxel_mm3 = float(np.prod(spacing_mm * stride))

    def place_mm(index: np.ndarray) -> np.ndarray:
        return matrix @ (index * stride)[::-1] + origin_mm

    levels = []
    for number, box in enumerate(ndimage.find_objects(coarse), start=1):
        if box is None or number not in rank_of_id:
            continue
        inside = coarse[box] == number
        volume_mm3 = float(np.count_nonzero(inside)) * voxel_mm3
        if volume_mm3 < LEAST_MM3:
            continue
        first = np.array([s.start for s in box])
        pieces = [
            (size * voxel_mm3, place_mm(centre + first))
            for size, centre in _pieces(inside, voxel_mm3)
        ]
        centre_mm = place_mm(np.argwhere(inside).mean(axis=0) + first)
        cut = any(s.start == 0 or s.stop == n for s, n in zip(box, coarse.shape, strict=True))
        levels.append(Level(rank_of_id[number], centre_mm, volume_mm3, cut, tuple(pieces)))
    return sorted(levels, key=lambda level: level.rank)


def _pieces(inside: np.ndarray, voxel_mm3: float) -> list[tuple[int, np.ndarray]]:
    """(voxels, centroid) of the connected pieces of bool[D, H, W] that count, largest first."""
    connected, count = ndimage.label(inside, np.ones((3, 3, 3)))
    sizes = np.bincount(connected.ravel(), minlength=count + 1)[1:]
    least = max(LEAST_MM3 / voxel_mm3, LEAST_PIECE * sizes.max())
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i] >= least]
    return [(int(sizes[i]), np.argwhere(connected == i + 1).mean(axis=0)) for i in order]


def contradiction(levels: list[Level]) -> str:
    """What shows that labels are not the levels that they are read as; empty if nothing does."""
    return (
        _far_pieces(levels)
        or next((_too_large(level) for level in levels if level.volume_mm3 > LARGEST_MM3), "")
        or _across(levels)
        or _wrong_order(levels)
    )


def _far_pieces(levels: list[Level]) -> str:
    for level in levels:
        if 1 <= level.rank <= len(LEVELS) and _are_apart(level.pieces):
            heights = [centre[2] for _, centre in level.pieces]
            found = f"{len(level.pieces)} pieces up to {max(heights) - min(heights):.0f} mm apart"
            return f"{level.name} is {found} in height"
    return ""


def _are_apart(pieces: tuple[tuple[float, np.ndarray], ...]) -> bool:
    """Whether two of the pieces cannot belong to one vertebra."""
    for i, (one_mm3, one) in enumerate(pieces):
        for other_mm3, other in pieces[i + 1 :]:
            height_mm = abs(one[2] - other[2])
            stacked = height_mm > STACKED_MM and np.hypot(*(one - other)[:2]) < BESIDE_MM
            if height_mm > FAR_MM or (stacked and other_mm3 > EQUAL_PIECE * one_mm3):
                return True
    return False


def _too_large(level: Level) -> str:
    return f"{level.name} has {level.volume_mm3 / 1000:.0f} cm^3, more than any vertebra"


def _across(levels: list[Level]) -> str:
    """The row of levels must run along the patient's axis by the header."""
    own = [level for level in levels if 1 <= level.rank <= len(LEVELS)]
    if len(own) < 3:
        return ""
    row_mm = own[-1].centre_mm - own[0].centre_mm
    if abs(row_mm[2]) >= LEAST_UPRIGHT * np.linalg.norm(row_mm):
        return ""
    axis = ("from side to side", "from front to back")[int(np.argmax(np.abs(row_mm[:2])))]
    return f"{own[0].name} to {own[-1].name} lie in a row {axis} by the file's header"


def _wrong_order(levels: list[Level]) -> str:
    rises_mm = [
        float(lower.centre_mm[2] - upper.centre_mm[2])
        for upper, lower in itertools.pairwise(levels)
    ]
    if not rises_mm or max(rises_mm) <= WRONG_ORDER_MM:
        return ""
    worst = int(np.argmax(rises_mm))
    found = f"{levels[worst + 1].name} lies {rises_mm[worst]:.0f} mm above {levels[worst].name}"
    if sum(rise > 0 for rise in rises_mm) > len(rises_mm) / 2:
        return f"the levels are numbered from below upwards ({found})"
    return f"the levels are out of order ({found})"


def step_ratio(levels: list[Level]) -> float:
    """Median distance of neighbouring levels' centres in units of `STEP_MM`; NaN if there are none
    that the border does not cut."""
    ratios = [
        float(np.linalg.norm(lower.centre_mm - upper.centre_mm)) / STEP_MM[upper.rank - 1]
        for upper, lower in itertools.pairwise(levels)
        if upper.rank >= 1 and lower.rank == upper.rank + 1 <= len(LEVELS)
        and not (upper.cut or lower.cut)
    ]  # fmt: skip
    return float(np.median(ratios)) if ratios else float("nan")


def unusual_step(levels: list[Level]) -> str:
    """How the distance of the levels differs from what is usual for them; empty if it does not.

    It is no contradiction alone: a small child's vertebrae are as close together as an adult's
    thoracic ones.
    """
    ratio = step_ratio(levels)
    if not np.isfinite(ratio) or STEP_RATIO[0] <= ratio <= STEP_RATIO[1]:
        return ""
    own = [level.name for level in levels if 1 <= level.rank <= len(LEVELS)]
    return (
        f"the centres of {own[0]} to {own[-1]} are {ratio:.2f} times as far apart as is usual "
        "for these levels"
    )


def is_plausible(levels: list[Level]) -> bool:
    """Whether positive evidence says that labels are these levels: two or more of them, in order,
    of usual sizes and distances."""
    low, high = FITTING_RATIO
    return not contradiction(levels) and low <= step_ratio(levels) <= high
