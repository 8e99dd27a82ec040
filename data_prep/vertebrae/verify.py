"""Checks a CT and its mask: geometry, constant images, plausible HU, slice against slice.

Every check runs before any work is spent on a case and reports a fault in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_prep.vertebrae.label_schemes import read_class_mask
from data_prep.volumes import read_volume
from osteojax.errors import CaseError

MAX_CORNER_ERROR = 0.2
"""Largest distance of corresponding corners of CT and mask, in edges of the smallest voxel."""
NO_AIR_HU = -20.0
"""A CT whose minimum is above this has neither air nor fat, so it is not in HU."""
BONE_MEAN_HU = (-50.0, 800.0)
"""Accepted mean HU of whole vertebrae; published means are 50 (very old) to 400 (young)."""
SLICE_JUMP_HU = 250.0
"""Median difference of two neighbouring slices, pixel by pixel, from which they are not in the same
unit. Four real CTs and four simulated ones have at most 17 HU; a missing rescale makes 1024."""
SLICE_PIXELS = 64
"""About so many rows and columns of each slice are compared."""


def load_case(
    ct_path: str | Path,
    mask_path: str | Path,
    scheme: str,
    case: str,
    ignored: Sequence[int] = (),
) -> tuple[sitk.Image, sitk.Image]:
    """Reads and checks one CT with its mask.

    Args:
      ignored: numbers of the mask that are read as background.

    Returns:
      (CT in HU, mask of classes 0-18 on the CT's own grid).

    Raises:
      CaseError: the first fault found, with values and remedy.
    """
    ct_image = read_volume(ct_path, case, "CT")
    check_varies(ct_image, case)
    check_slices(ct_image, case)
    class_mask = align_mask(ct_image, read_class_mask(mask_path, scheme, case, ignored), case)
    check_hu(ct_image, class_mask, case)
    return ct_image, class_mask


def check_varies(ct_image: sitk.Image, case: str) -> None:
    """Raises CaseError for a constant image."""
    values = sitk.GetArrayViewFromImage(ct_image)
    if values.min() == values.max():
        raise CaseError(
            case, f"the CT is constant ({values.flat[0]:g}).", "Export the image again."
        )


def check_slices(ct_image: sitk.Image, case: str) -> None:
    """Raises CaseError for slices that lie higher or lower than the others as a whole, as they do
    where single files of a DICOM series have no rescale tags."""
    values = sitk.GetArrayViewFromImage(ct_image)
    values = np.moveaxis(values, 2 - slice_axis(ct_image), 0)
    stride = max(1, min(values.shape[1:]) // SLICE_PIXELS)
    slices = values[:, ::stride, ::stride].astype(np.float32).reshape(len(values), -1)
    jumps_hu = np.median(np.diff(slices, axis=0), axis=1)
    padding = slices.min(axis=1) == slices.max(axis=1)  # of a volume that was turned or extended
    jumps_hu[(np.abs(jumps_hu) < SLICE_JUMP_HU) | padding[1:] | padding[:-1]] = 0.0
    height_hu = np.concatenate([[0.0], np.cumsum(jumps_hu)])
    height_hu -= np.sort(height_hu)[(len(height_hu) - 1) // 2]
    off = np.flatnonzero(np.abs(height_hu) > SLICE_JUMP_HU / 2)
    if off.size:
        most_hu = float(height_hu[off][np.argmax(np.abs(height_hu[off]))])
        place = "higher" if most_hu > 0 else "lower"
        raise CaseError(
            case,
            f"{off.size} of the CT's {len(slices)} slices ({_ranges(off + 1)}, counted from 1) are "
            f"about {abs(round(most_hu, -1)):.0f} HU {place} than the others: not one unit.",
            "Their rescale tags are missing or wrong: export the series again.",
        )


def slice_axis(ct_image: sitk.Image) -> int:
    """The CT's axis (x, y, z of the file) that is nearest to the patient's axis."""
    superior_of_axes = np.abs(_axes(ct_image)[2])
    return int(np.argmax(superior_of_axes))


def _ranges(numbers: np.ndarray) -> str:
    """Rising numbers as text: 3, 5 to 8."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    shown = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:6]]
    return ", ".join(shown) + (", ..." if len(runs) > 6 else "")


def align_mask(ct_image: sitk.Image, class_mask: sitk.Image, case: str) -> sitk.Image:
    """The mask on the CT's grid, if its grid is the same up to the order and direction of the axes.

    Flipped and permuted masks (e.g. LAS with a CT in LPS) are reordered; any other difference is
    refused, because resampling a mask is the user's decision.
    """
    ct_axes, mask_axes = _axes(ct_image), _axes(class_mask)
    turn = np.rint(ct_axes.T @ mask_axes)  # CT axis i is mask axis j, or its reverse
    is_permutation = np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3)) and np.array_equal(
        np.abs(turn).T @ np.ones(3), np.ones(3)
    )
    if is_permutation:
        order = [int(np.argmax(np.abs(row))) for row in turn]  # mask axis of each CT axis
        reverse = [turn[i, axis] < 0 for i, axis in enumerate(order)]
        size = tuple(class_mask.GetSize()[axis] for axis in order)
        if size == ct_image.GetSize():
            error_mm = _corner_error_mm(ct_image, class_mask, order, reverse)
            if error_mm <= MAX_CORNER_ERROR * min(ct_image.GetSpacing()):
                values = sitk.GetArrayViewFromImage(class_mask).transpose(2, 1, 0)
                values = values.transpose(order)
                values = np.flip(values, tuple(i for i in range(3) if reverse[i]))
                turned = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
                turned.CopyInformation(ct_image)
                return turned
    raise CaseError(
        case,
        f"CT and mask differ in geometry: CT {_geometry(ct_image)}; mask {_geometry(class_mask)}.",
        "Resample the mask to the CT's grid, or pair it with its own CT.",
    )


def _axes(image: sitk.Image) -> np.ndarray:
    return np.array(image.GetDirection()).reshape(3, 3)


def _corner_error_mm(
    ct_image: sitk.Image, mask: sitk.Image, order: list[int], reverse: list[bool]
) -> float:
    """Largest distance between corresponding corner voxels' centres of CT and reordered mask."""
    size, worst = ct_image.GetSize(), 0.0
    for corner in np.ndindex(2, 2, 2):
        ct_index = [int(c) * (n - 1) for c, n in zip(corner, size, strict=True)]
        mask_index = [0, 0, 0]
        for i, axis in enumerate(order):
            mask_index[axis] = size[i] - 1 - ct_index[i] if reverse[i] else ct_index[i]
        ct_mm = np.array(ct_image.TransformIndexToPhysicalPoint(ct_index))
        mask_mm = np.array(mask.TransformIndexToPhysicalPoint(mask_index))
        worst = max(worst, float(np.linalg.norm(ct_mm - mask_mm)))
    return worst


def _geometry(image: sitk.Image) -> str:
    size = "x".join(str(n) for n in image.GetSize())
    spacing = "x".join(f"{s:.3g}" for s in image.GetSpacing())
    origin = ", ".join(f"{x:.1f}" for x in image.GetOrigin())
    return f"{size} voxels of {spacing} mm from ({origin})"


def check_hu(ct_image: sitk.Image, class_mask: sitk.Image, case: str) -> None:
    """Raises CaseError if values are not Hounsfield units, as in pictures, images with an unsigned
    offset and rescaled images."""
    values = sitk.GetArrayViewFromImage(ct_image)
    bone = values[sitk.GetArrayViewFromImage(class_mask) > 0]
    low, high, bone_mean = float(values.min()), float(values.max()), float(bone.mean())
    found = f"the CT's values run from {low:g} to {high:g}, mean of the vertebrae {bone_mean:.0f}"
    if low >= 0 and high <= 255:
        raise CaseError(case, f"{found}: an 8-bit picture, not HU.", "Bring the CT itself.")
    if low > NO_AIR_HU and bone_mean > BONE_MEAN_HU[1]:
        raise CaseError(
            case, f"{found}: HU with an offset of about +1024.", "Subtract it (RescaleIntercept)."
        )
    if low > NO_AIR_HU:
        raise CaseError(
            case, f"{found}: no air and no fat, so not HU.", "Bring the CT before normalisation."
        )
    if not BONE_MEAN_HU[0] <= bone_mean <= BONE_MEAN_HU[1]:
        raise CaseError(
            case,
            f"{found}: not bone in HU (expected {BONE_MEAN_HU[0]:g} to {BONE_MEAN_HU[1]:g}).",
            "Check that the mask belongs to this CT, and the CT's rescale intercept.",
        )


def vertebra_hu_fault(mean_hu: float) -> str:
    """What is wrong with the mean HU of one vertebra; empty if nothing is."""
    if BONE_MEAN_HU[0] <= mean_hu <= BONE_MEAN_HU[1]:
        return ""
    expected = f"expected {BONE_MEAN_HU[0]:g} to {BONE_MEAN_HU[1]:g}"
    return f"its mean is {mean_hu:.0f} HU, not bone ({expected})"
