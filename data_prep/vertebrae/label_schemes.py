"""Label schemes: which number in a mask is which vertebra.

A mask is read with a named scheme. Numbers of other known structures (organs, sacrum, cervical
vertebrae, T13) are ignored. A number that the scheme does not define is an error that lists it,
because the mask must have been written with another scheme.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_prep.volumes import READ_REMEDY, read_volume
from osteojax.data.vertebrae import LEVELS, level_class
from osteojax.errors import CaseError


@dataclasses.dataclass(frozen=True)
class LabelScheme:
    """Numbers of one labelling program.

    Attributes:
      class_of_id: number in the mask -> class 1-18 (T1-T12, L1-L6).
      other_ids: numbers of other structures that the scheme defines.
      source: where the numbers are published.
    """

    class_of_id: dict[int, int]
    other_ids: frozenset[int]
    source: str


SCHEMES = {
    # C1-C7 = 1-7, T1-T12 = 8-19, L1-L6 = 20-25, sacrum 26, coccyx 27, T13 = 28.
    "verse": LabelScheme(
        {number: number - 7 for number in range(8, 26)},
        frozenset([*range(1, 8), 26, 27, 28]),
        "Sekuboyina et al. 2021, VerSe",
    ),
    # L5-L1 = 18-22, T12-T1 = 23-34, C7-C1 = 35-41; 104 structures.
    "totalsegmentator_v1": LabelScheme(
        {number: 35 - number for number in range(18, 35)},
        frozenset([*range(1, 18), *range(35, 105)]),
        "Wasserthal et al. 2023, TotalSegmentator v1",
    ),
    # S1 = 26, L5-L1 = 27-31, T12-T1 = 32-43, C7-C1 = 44-50; 117 structures, task `total`.
    "totalsegmentator_v2": LabelScheme(
        {number: 44 - number for number in range(27, 44)},
        frozenset([*range(1, 27), *range(44, 118)]),
        "TotalSegmentator v2, task total",
    ),
    "vertebral_bodies_ct": LabelScheme(
        {number: number for number in range(1, 19)}, frozenset(), "VertebralBodiesCT"
    ),
}


def find_scheme(name: str, case: str) -> LabelScheme:
    """The scheme of that name. Raises CaseError that lists the choices."""
    if name not in SCHEMES:
        raise CaseError(
            case, f"label scheme {name!r} is not known.", f"Choose from {', '.join(SCHEMES)}."
        )
    return SCHEMES[name]


def read_class_mask(path: str | Path, scheme_name: str, case: str) -> sitk.Image:
    """Reads a mask as classes: uint8 image, 0 background, 1-18 for T1-T12, L1-L6.

    Args:
      path: a multilabel file, or a folder of one-vertebra masks (`vertebrae_L1.nii.gz`, ...) as
        TotalSegmentator writes; in a folder, levels come from file names instead of the scheme.

    Raises:
      CaseError: the mask cannot be read, has numbers unknown to the scheme, or has no vertebra.
    """
    path = Path(path)
    if path.is_dir():
        classes = _read_mask_folder(path, case)
    else:
        image = read_volume(path, case, "mask")
        numbers = _integers(image, case)
        classes = sitk.GetImageFromArray(_classes(numbers, scheme_name, case))
        classes.CopyInformation(image)
    if not sitk.GetArrayViewFromImage(classes).any():
        raise CaseError(
            case,
            f"mask {path.name} holds no vertebra T1-L6.",
            "Segment the vertebrae, or name the right label scheme.",
        )
    return classes


def _integers(image: sitk.Image, case: str) -> np.ndarray:
    values = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.floating):
        return values
    rounded = np.rint(values)
    if not np.array_equal(rounded, values):
        raise CaseError(
            case,
            "the mask holds fractions, not label numbers.",
            "Bring the label map, not probabilities or an interpolated mask.",
        )
    return rounded.astype(np.int64)


def _classes(numbers: np.ndarray, scheme_name: str, case: str) -> np.ndarray:
    """uint8[D, H, W] classes of int[D, H, W] label numbers."""
    scheme = find_scheme(scheme_name, case)
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high > 65535:
        raise CaseError(
            case, f"mask numbers run from {low} to {high}.", "Bring a label map of vertebrae."
        )
    present = np.flatnonzero(np.bincount(numbers.reshape(-1), minlength=1))
    unknown = [
        n for n in present if n and n not in scheme.class_of_id and n not in scheme.other_ids
    ]
    if unknown:
        listed = ", ".join(str(n) for n in unknown[:12]) + (", ..." if len(unknown) > 12 else "")
        raise CaseError(
            case,
            f"mask numbers {listed} are unknown to label scheme {scheme_name!r}.",
            f"Name the scheme the mask was written with ({', '.join(SCHEMES)}).",
        )
    table = np.zeros(high + 1, np.uint8)
    for number, label in scheme.class_of_id.items():
        if number <= high:
            table[number] = label
    return table[numbers]


def _read_mask_folder(folder: Path, case: str) -> sitk.Image:
    """Joins one-vertebra masks; where two overlap, the voxel goes to the upper vertebra."""
    files = {
        level: path
        for level in LEVELS
        for path in sorted(folder.glob(f"vertebrae_{level}.*"))
        if path.is_file()
    }
    if not files:
        raise CaseError(
            case,
            f"mask folder {folder.name} holds no vertebrae_T1 ... vertebrae_L6 files.",
            "Bring TotalSegmentator's output folder, or one multilabel file.",
        )
    classes, first = np.zeros(0, np.uint8), None
    for level, path in files.items():
        image = read_volume(path, case, "mask")
        inside = _integers(image, case) != 0
        if first is None:
            first, classes = image, np.zeros(inside.shape, np.uint8)
        elif not _same_grid(image, first):
            reason = f"mask {path.name} has another grid than the folder's first file."
            raise CaseError(case, reason, READ_REMEDY)
        classes[inside & (classes == 0)] = level_class(level)
    joined = sitk.GetImageFromArray(classes)
    joined.CopyInformation(first)
    return joined


def _same_grid(one: sitk.Image, other: sitk.Image) -> bool:
    return (
        one.GetSize() == other.GetSize()
        and np.allclose(one.GetSpacing(), other.GetSpacing(), rtol=1e-4)
        and np.allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-2)
        and np.allclose(one.GetDirection(), other.GetDirection(), atol=1e-4)
    )
