"""Signs in a vertebra's voxels that its answer may be wrong: metal, cement, fracture.

Thresholds are our own and deliberately wide: a flag asks a person to check and is no diagnosis.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from data_prep.vertebrae.roi import Roi
from launch.prediction.flags import MEANINGS, Flag

METAL_HU, METAL_SHARE = 1500.0, 0.005
"""HU of metal, and the share of the vertebra's voxels above it that gives a flag; dense cortex is
under 1500 HU at clinical resolution."""
BRIGHT_HU, BRIGHT_MM3 = 2500.0, 100.0
"""HU that no bone reaches, and the volume above it anywhere in the box that gives a flag: screws,
rods and their streaks."""
CORE_SHARE = 0.6
"""Radius of the trabecular core, in radii of the largest ball inside the body."""
CORE_RATIO, CORE_DIFFERENCE_HU = 0.4, 60.0
"""Difference of a core from its neighbours' median, relative and in HU, whichever is larger, that
age and level cannot explain: trabecular HU changes by about 2% per level (docs/method.md)."""
HEIGHT_LOSS = 0.25
"""Loss of height from which a fracture is called moderate (Genant et al. 1993)."""
NEIGHBOUR_LEVELS = 2


@dataclasses.dataclass(frozen=True)
class BodyShape:
    """Heights of the body in the vertebra's mid-sagittal plane, mm, and its trabecular core.

    Attributes:
      anterior_mm, middle_mm, posterior_mm: NaN where the mask is too thin to measure.
      core_hu: median HU of the trabecular core; NaN where it is outside the mask or the CT.
    """

    anterior_mm: float
    middle_mm: float
    posterior_mm: float
    core_hu: float


def suspicions(rois: list[Roi]) -> tuple[list[BodyShape], list[list[Flag]]]:
    """Shapes and flags of one patient's vertebrae, in their order.

    A vertebra is compared with those up to two levels away that the CT's border does not cut.
    """
    shapes = [body_shape(roi) for roi in rois]
    return shapes, [
        [*_metal(roi), *_shape_flags(shape, _neighbours(i, rois, shapes))]
        if not roi.vertebra.truncated
        else _metal(roi)
        for i, (roi, shape) in enumerate(zip(rois, shapes, strict=True))
    ]


def _neighbours(index: int, rois: list[Roi], shapes: list[BodyShape]) -> list[BodyShape]:
    own = rois[index].vertebra.level_class
    return [
        shape
        for roi, shape in zip(rois, shapes, strict=True)
        if 0 < abs(roi.vertebra.level_class - own) <= NEIGHBOUR_LEVELS
        and not roi.vertebra.truncated
    ]


def _metal(roi: Roi) -> list[Flag]:
    share = float((roi.hu[roi.mask] > METAL_HU).mean()) if roi.mask.any() else 0.0
    if share > METAL_SHARE:
        text = f"metal or cement suspected ({share:.1%} of it above {METAL_HU:.0f} HU)"
        return [Flag("metal", text)]
    if np.count_nonzero(roi.hu > BRIGHT_HU) * roi.spacing_mm**3 > BRIGHT_MM3:
        return [Flag("metal", f"metal suspected near it (above {BRIGHT_HU:.0f} HU)")]
    return []


def _shape_flags(shape: BodyShape, neighbours: list[BodyShape]) -> list[Flag]:
    flags = []
    heights = np.array([shape.anterior_mm, shape.middle_mm, shape.posterior_mm])
    lowest, highest = np.min(heights), np.max(heights)  # comparisons with NaN are false
    usual = _median([n.posterior_mm for n in neighbours])
    named = f"{heights[0]:.0f}, {heights[1]:.0f}, {heights[2]:.0f} mm high"
    if lowest < (1 - HEIGHT_LOSS) * highest:
        flags.append(Flag("fracture_shape", f"fracture-like shape (front, middle, back {named})"))
    elif highest < (1 - HEIGHT_LOSS) * usual:
        text = f"fracture-like shape ({named}, its neighbours {usual:.0f} mm)"
        flags.append(Flag("fracture_shape", text))
    if len(neighbours) >= 2:
        core = _median([n.core_hu for n in neighbours])
        off = shape.core_hu - core
        if abs(off) > max(CORE_DIFFERENCE_HU, CORE_RATIO * abs(core)):
            name = "fracture_density" if off > 0 else "low_density"
            found = f"(core {shape.core_hu:.0f} HU, its neighbours {core:.0f} HU)"
            flags.append(Flag(name, f"{MEANINGS[name].lower()} {found}"))
    return flags


def _median(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else float("nan")


def body_shape(roi: Roi) -> BodyShape:
    """Measures one vertebra in its own frame, on voxels of 3 mm or less."""
    middle = (np.array(roi.mask.shape) - 1) / 2
    half = max(1, round(4.0 / roi.spacing_mm))
    columns = slice(round(middle[2]) - half, round(middle[2]) + half + 1)
    slab = roi.mask[:, :, columns]
    connected, _ = ndimage.label(slab)
    at_centre = connected[round(middle[0]), round(middle[1]), slab.shape[2] // 2]
    heights = np.full(3, np.nan)
    if at_centre:
        run_mm = _runs(slab, round(middle[0])).mean(axis=1) * roi.spacing_mm
        walls = _run_around(run_mm > 0, round(middle[1]))
        depth = walls.stop - walls.start
        if depth * roi.spacing_mm >= 10.0:
            for i, share in enumerate((0.2, 0.5, 0.8)):
                place = walls.start + share * (depth - 1)
                window = slice(int(np.floor(place)), int(np.ceil(place)) + 1)
                heights[i] = run_mm[window].mean()
    offset_mm = (np.indices(roi.mask.shape) - middle[:, None, None, None]) * roi.spacing_mm
    ball = np.square(offset_mm).sum(axis=0) <= (CORE_SHARE * roi.vertebra.radius_mm) ** 2
    core = roi.hu[ball & roi.mask & roi.valid]
    anterior_mm, middle_mm, posterior_mm = heights.tolist()
    core_hu = float(np.median(core)) if core.size else float("nan")
    return BodyShape(anterior_mm, middle_mm, posterior_mm, core_hu)


def _runs(slab: np.ndarray, z: int) -> np.ndarray:
    """i64[H, W]: length of the unbroken run through height `z` of each column of bool[D, H, W]."""
    upwards = np.cumprod(slab[z:], axis=0).sum(axis=0)
    downwards = np.cumprod(slab[z::-1], axis=0).sum(axis=0)
    return np.where(slab[z], upwards + downwards - 1, 0)


def _run_around(flags: np.ndarray, index: int) -> slice:
    """The unbroken run of True around `index`, which is True."""
    start = index - int(np.cumprod(flags[index::-1]).sum()) + 1
    stop = index + int(np.cumprod(flags[index:]).sum())
    return slice(start, stop)
