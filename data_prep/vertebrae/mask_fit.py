"""Whether a mask lies on the bone of its CT: agreement of the mask's surface with the bone's edge.

For each vertebra, the mean HU just inside the mask's surface minus that just outside it is measured
where the mask lies and where it would lie if it were shifted by up to 16 mm in any direction. A
mask of its own CT has the largest difference unshifted. A shifted one has it at the same shift for
every vertebra, and a flipped one unshifted once it is turned back. One of another patient has it
nowhere, or elsewhere for each vertebra, because vertebrae of two people differ in size and
distance.

Vertebrae are so symmetric that a flip from left to right cannot be seen by itself, only by where it
moves the mask; and a flip of CT and mask together only where it is from front to back.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk
from scipy import fft, ndimage

from data_prep.vertebrae.roi import HEADER_POSTERIOR, Vertebra
from osteojax.errors import CaseError

GRID_MM = 2.0
REACH = 8
"""Shifts that are tried, in voxels of `GRID_MM` each way along the patient's axes."""
SHELL = 2
"""Thickness of the shell outside the surface, in voxels; the one inside has one voxel."""
CLIP_HU, SOFT_HU = (0.0, 600.0), 40.0
"""HU are clipped, so that edges of fat, air and metal do not decide; outside the CT, soft tissue is
assumed."""
LEAST_MM3, MOST_LEVELS = 4000.0, 8
"""Smallest label that is measured, and the number of levels, evenly spread, that are."""
SHIFT_MM = 3.0
"""Shift from which a mask is doubted. Nine masks of their own CT, five of them real, are off by at
most 0.8 mm."""
APART_MM = 1.5
"""Median distance of the vertebrae's own best shifts from the common one, from which a mask is
doubted. Masks of their own CT have at most 0.5 mm."""
LEAST_EDGE, FAT_HU = 0.1, -50.0
"""Smallest difference at the surface, relative to the mean HU inside above fat (`FAT_HU`), so that
thin bone is not suspect. Masks of their own CT have 0.38 (bodies) and 0.55 to 0.82 (vertebrae)."""
STRANGE_MM, LEAST_SHARED, LEAST_MOVED_EDGE = 3.0, 0.75, 0.3
"""A mask that does not lie on the bone is another patient's if its vertebrae fit further apart than
this and their common shift reaches less than this share of what each reaches by itself, or if its
best difference at the surface is smaller than this."""


@dataclasses.dataclass(frozen=True)
class MaskFit:
    """Agreement of a mask with its CT.

    Attributes:
      edge: difference across the surface in units of the mean HU inside above fat, where the mask
        lies.
      best_edge: the same at the best common shift.
      shift_mm: f64[3], that shift of the mask, LPS.
      apart_mm: median distance of the vertebrae's own best shifts from it.
      shared: difference at the common shift, as a share of the median of the vertebrae's own best.
      levels: number of vertebrae that were measured.
    """

    edge: float
    best_edge: float
    shift_mm: np.ndarray
    apart_mm: float
    shared: float
    levels: int

    @property
    def is_good(self) -> bool:
        """Whether the mask lies where the bone is."""
        anchored = self.distance_mm < SHIFT_MM and self.apart_mm < APART_MM
        return anchored and self.edge >= LEAST_EDGE

    @property
    def fits_somewhere(self) -> bool:
        """Whether the whole mask fits the bone at one shift within reach."""
        scattered = self.apart_mm > STRANGE_MM and self.shared < LEAST_SHARED
        within = bool(np.abs(self.shift_mm).max() < (REACH - 0.75) * GRID_MM)
        return not scattered and self.best_edge >= LEAST_MOVED_EDGE and within

    @property
    def distance_mm(self) -> float:
        return float(np.linalg.norm(self.shift_mm))


def check_fit(ct_image: sitk.Image, class_mask: sitk.Image, case: str) -> list[tuple[str, str]]:
    """Checks that a mask belongs to its CT.

    Args:
      ct_image, class_mask: as `verify.load_case` returns them.

    Returns:
      (reason, remedy) of each doubt: the mask seems shifted or flipped.

    Raises:
      CaseError: the mask fits nowhere, so it is another patient's.
    """
    fit = measure_fit(ct_image, class_mask)
    if fit is None or fit.is_good:
        return []
    remedy = "Look at mask and CT together, and at the orientation in both headers."
    for axis in range(3):
        flipped = sitk.Flip(class_mask, [axis == i for i in range(3)])
        flipped.CopyInformation(class_mask)
        turned = measure_fit(ct_image, flipped)
        if turned is not None and turned.is_good:
            return [(f"mask or CT is flipped {_direction(class_mask, axis)}", remedy)]
    if fit.fits_somewhere:
        return [(_shift(fit), remedy)]
    raise CaseError(
        case,
        f"the mask does not fit the CT: HU fall by {fit.edge:.0%} of the bone's at its surface, "
        f"by {fit.best_edge:.0%} where it fits best, {fit.distance_mm:.0f} mm away; single "
        f"vertebrae fit best {fit.apart_mm:.0f} mm from there.",
        "It may be of another patient or another scan: pair the mask with its own CT.",
    )


def _shift(fit: MaskFit) -> str:
    """What is wrong with a mask that fits elsewhere, as a sentence."""
    if fit.distance_mm < SHIFT_MM:
        return f"the mask's single vertebrae fit the bone best {fit.apart_mm:.1f} mm from it"
    x, y, z = fit.shift_mm
    sides = ("left" if x > 0 else "right", "back" if y > 0 else "front", "up" if z > 0 else "down")
    moves = [
        f"{abs(mm):.0f} mm {side}"
        for mm, side in zip((x, y, z), sides, strict=True)
        if abs(mm) > 0.5
    ]
    return (
        f"the mask is shifted: its surface lies on the bone's edge if it moves {', '.join(moves)}"
    )


def posterior_doubt(vertebrae: list[Vertebra]) -> list[tuple[str, str]]:
    """(reason, remedy) where most vertebrae have their posterior elements on the anterior side by
    the header, as with CT and mask that are both flipped from front to back."""
    towards = [v.axes[1] @ HEADER_POSTERIOR for v in vertebrae if v.posterior_rule == "elements"]
    if not towards or np.median(towards) >= 0:
        return []
    reason = "the vertebrae's posterior elements lie in front of their bodies by the header"
    return [(reason, "Correct the orientation in the headers: front and back are exchanged.")]


def measure_fit(ct_image: sitk.Image, class_mask: sitk.Image) -> MaskFit | None:
    """Measures the agreement; None if no label is large enough."""
    hu, classes = _common_grid(ct_image, class_mask)
    least = LEAST_MM3 / GRID_MM**3
    sizes = np.bincount(classes.ravel())
    labels = [n for n in range(1, len(sizes)) if sizes[n] >= least]
    if not labels:
        return None
    count = min(MOST_LEVELS, len(labels))
    chosen = [labels[round(i)] for i in np.linspace(0, len(labels) - 1, count)]
    boxes = ndimage.find_objects(classes)
    edges, means = zip(*(_edge(hu, classes, n, boxes[n - 1]) for n in chosen), strict=True)
    common, here = np.mean(edges, axis=0), (REACH, REACH, REACH)
    shift, best = _peak(common)
    own = [_peak(edge) for edge in edges]
    bone_hu = float(np.mean([mean[here] for mean in means])) - FAT_HU
    place = tuple(np.clip(np.rint(shift).astype(int) + REACH, 0, 2 * REACH))
    best_bone_hu = float(np.mean([mean[place] for mean in means])) - FAT_HU
    return MaskFit(
        edge=float(common[here]) / max(bone_hu, 1.0),
        best_edge=best / max(best_bone_hu, 1.0),
        shift_mm=shift[::-1] * GRID_MM,
        apart_mm=float(np.median([np.linalg.norm(at - shift) for at, _ in own])) * GRID_MM,
        shared=best / max(float(np.median([height for _, height in own])), 1.0),
        levels=count,
    )


def _common_grid(ct_image: sitk.Image, class_mask: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """f32[D, H, W] clipped HU and uint8[D, H, W] classes around the mask, on the patient's axes."""
    values = sitk.GetArrayViewFromImage(class_mask)
    stride = [max(1, int(GRID_MM / mm)) for mm in reversed(class_mask.GetSpacing())]
    coarse = values[tuple(slice(None, None, n) for n in stride)]
    found = ndimage.find_objects(coarse)
    boxes = np.array([[(s.start, s.stop - 1) for s in box] for box in found if box is not None])
    if not len(boxes):  # fragments between the samples
        return np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.uint8)
    ends = np.stack([boxes[:, :, 0].min(axis=0), boxes[:, :, 1].max(axis=0)]) * stride
    ends = ends[:, ::-1]  # x, y, z
    corners_mm = np.array(
        [
            class_mask.TransformIndexToPhysicalPoint(
                [int(ends[c, i]) for i, c in enumerate(corner)]
            )
            for corner in np.ndindex(2, 2, 2)
        ]
    )
    margin_mm = (REACH + SHELL + 1) * GRID_MM
    low, high = corners_mm.min(axis=0) - margin_mm, corners_mm.max(axis=0) + margin_mm
    size = [int(n) for n in np.ceil((high - low) / GRID_MM) + 1]
    upright = np.eye(3).ravel().tolist()

    def resampled(image: sitk.Image, method: int, outside: float, kind: int) -> np.ndarray:
        return sitk.GetArrayFromImage(
            sitk.Resample(
                image, size, sitk.Transform(), method, low.tolist(), [GRID_MM] * 3, upright,
                outside, kind,
            )
        )  # fmt: skip

    hu = resampled(ct_image, sitk.sitkLinear, SOFT_HU, sitk.sitkFloat32)
    classes = resampled(class_mask, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    return np.clip(hu, *CLIP_HU, out=hu), classes


def _edge(
    hu: np.ndarray, classes: np.ndarray, label: int, box: tuple[slice, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """f64[17, 17, 17] difference across the surface of one label, and its mean HU, at every shift
    (z, y, x); computed by Fourier transforms of the label's surroundings."""
    margin = REACH + SHELL
    around = tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)
    inside, others = classes[around] == label, classes[around] > 0
    cross = ndimage.generate_binary_structure(3, 1)
    core = ndimage.binary_erosion(inside, cross)
    outside = ndimage.binary_dilation(inside, cross, SHELL) & ~others
    inner = inside & ~core
    shape = [fft.next_fast_len(n + REACH, real=True) for n in inside.shape]
    spectrum = fft.rfftn(hu[around] - np.float32(SOFT_HU), shape)

    def at_shifts(weights: np.ndarray) -> np.ndarray:
        product = spectrum * np.conj(fft.rfftn(weights.astype(np.float32), shape))
        index = np.arange(-REACH, REACH + 1)
        return fft.irfftn(product, shape)[np.ix_(*(index % n for n in shape))]

    edge = at_shifts(inner / max(inner.sum(), 1) - outside / max(outside.sum(), 1))
    return edge, at_shifts(inside / inside.sum()) + SOFT_HU


def _peak(values: np.ndarray) -> tuple[np.ndarray, float]:
    """f64[3] place of the maximum from the middle (by a parabola along each axis), its height."""
    top = np.unravel_index(int(np.argmax(values)), values.shape)
    place = np.array(top, np.float64) - REACH
    for axis, at in enumerate(top):
        if 0 < at < 2 * REACH:
            line = np.moveaxis(values, axis, 0)[(slice(at - 1, at + 2), *np.delete(top, axis))]
            bend = line[0] - 2 * line[1] + line[2]
            place[axis] += 0.5 * (line[0] - line[2]) / bend if bend < 0 else 0.0
    return place, float(values[top])


def _direction(image: sitk.Image, axis: int) -> str:
    """Words for the file's axis."""
    across = np.abs(np.array(image.GetDirection()).reshape(3, 3)[:, axis])
    return ("left to right", "front to back", "upside down")[int(np.argmax(across))]
