"""Label schemes: which number in a mask is which vertebra.

A mask is read with a named scheme. Numbers of other known structures (organs, sacrum, cervical
vertebrae, T13) are ignored. A number that the scheme does not define is an error that lists it,
because the mask must have been written with another scheme; so are levels that lie where they
cannot be (`level_order`). Both messages name the scheme that fits, if one does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_prep.vertebrae.level_order import (
    Level,
    contradiction,
    is_plausible,
    measure_levels,
    unusual_step,
)
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
      neighbours: numbers of the cervical vertebrae and the sacrum -> rank (`level_order`).
    """

    class_of_id: dict[int, int]
    other_ids: frozenset[int]
    source: str
    neighbours: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def rank_of_id(self) -> dict[int, int]:
        """Number -> rank of every vertebra and of the sacrum."""
        return self.class_of_id | self.neighbours


MOST_NUMBER, FARTHEST_NUMBER = 65535, 2.0**30
ROUNDING = 0.01
"""Largest distance of a value from a label number. A program that stores numbers up to N as 16-bit
integers with a scale is off by N / 131070, less than 0.001 for 117 structures."""

SCHEMES = {
    # C1-C7 = 1-7, T1-T12 = 8-19, L1-L6 = 20-25, sacrum 26, coccyx 27, T13 = 28.
    "verse": LabelScheme(
        {number: number - 7 for number in range(8, 26)},
        frozenset([*range(1, 8), 26, 27, 28]),
        "Sekuboyina et al. 2021, VerSe",
        {**{number: number - 7 for number in range(1, 8)}, 26: 19, 27: 20},
    ),
    # L5-L1 = 18-22, T12-T1 = 23-34, C7-C1 = 35-41, sacrum 92; 104 structures.
    "totalsegmentator_v1": LabelScheme(
        {number: 35 - number for number in range(18, 35)},
        frozenset([*range(1, 18), *range(35, 105)]),
        "Wasserthal et al. 2023, TotalSegmentator v1",
        {**{number: 35 - number for number in range(35, 42)}, 92: 19},
    ),
    # Sacrum 25, S1 = 26, L5-L1 = 27-31, T12-T1 = 32-43, C7-C1 = 44-50; 117 structures.
    "totalsegmentator_v2": LabelScheme(
        {number: 44 - number for number in range(27, 44)},
        frozenset([*range(1, 27), *range(44, 118)]),
        "TotalSegmentator v2, task total",
        {**{number: 44 - number for number in range(44, 51)}, 26: 19, 25: 20},
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


def read_class_mask(
    path: str | Path, scheme_name: str, case: str, ignored: Sequence[int] = ()
) -> sitk.Image:
    """Reads a mask as classes: uint8 image, 0 background, 1-18 for T1-T12, L1-L6.

    Args:
      path: a multilabel file, or a folder of one-vertebra masks (`vertebrae_L1.nii.gz`, ...) as
        TotalSegmentator writes; in a folder, levels come from file names instead of the scheme.
      ignored: numbers of a multilabel file that are read as background.

    Raises:
      CaseError: the mask cannot be read, has numbers unknown to the scheme, has no vertebra, or
        its labels cannot be the levels that they are read as.
    """
    path = Path(path)
    if path.is_dir():
        classes = _read_mask_folder(path, case)
        values = sitk.GetArrayViewFromImage(classes)
        _refuse_empty(bool(values.any()), path, case, "Segment the vertebrae.")
        ranks = {label: label for label in range(1, len(LEVELS) + 1)}
        if wrong := contradiction(measure_levels(values, classes, ranks)):
            reason = f"mask folder {path.name}: {wrong}."
            raise CaseError(case, reason, "Correct the masks, or the orientation in their headers.")
        return classes
    image = read_volume(path, case, "mask")
    numbers = _without(_integers(image, case), ignored)
    scheme = find_scheme(scheme_name, case)
    present = _present(numbers, case)
    table = np.zeros(max(present, default=0) + 1, np.uint8)
    for number in present:
        table[number] = scheme.class_of_id.get(number, 0)
    _check_scheme(_Numbers(image, numbers, present), scheme_name, path, case)
    values = np.zeros(numbers.shape, np.uint8)
    for own, plane in zip(values, numbers, strict=True):  # most of a mask is background
        places = np.flatnonzero(plane)
        own.ravel()[places] = table[plane.ravel()[places]]
    classes = sitk.GetImageFromArray(values)
    classes.CopyInformation(image)
    return classes


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """A mask as label numbers: its header, int[D, H, W], and which numbers it has beside 0."""

    image: sitk.Image
    values: np.ndarray
    present: list[int]

    def levels(self, scheme_name: str) -> list[Level]:
        """The labels as levels of a scheme."""
        return measure_levels(self.values, self.image, SCHEMES[scheme_name].rank_of_id)

    def unknown_to(self, scheme_name: str) -> list[int]:
        scheme = SCHEMES[scheme_name]
        return [
            n for n in self.present if n not in scheme.class_of_id and n not in scheme.other_ids
        ]


def _check_scheme(mask: _Numbers, scheme_name: str, path: Path, case: str) -> None:
    """Raises CaseError where the numbers cannot be those of the scheme."""
    if unknown := mask.unknown_to(scheme_name):
        listed = ", ".join(str(n) for n in unknown[:12]) + (", ..." if len(unknown) > 12 else "")
        raise CaseError(
            case,
            f"mask numbers {listed} are unknown to label scheme {scheme_name!r}.",
            _other_scheme(mask, scheme_name)
            or f"Name the scheme the mask was written with ({', '.join(SCHEMES)}), or leave out "
            "what is no vertebra with --ignore-labels NUMBER,....",
        )
    known = SCHEMES[scheme_name].class_of_id
    remedy = "Segment the vertebrae, or name the right label scheme."
    if not known.keys() & set(mask.present):
        remedy = _other_scheme(mask, scheme_name) or remedy
    _refuse_empty(bool(known.keys() & set(mask.present)), path, case, remedy)
    levels = mask.levels(scheme_name)
    wrong = contradiction(levels)
    doubtful = wrong or unusual_step(levels)
    other = _other_scheme(mask, scheme_name, evident=not wrong) if doubtful else ""
    if wrong or other:
        raise CaseError(
            case,
            f"mask read with label scheme {scheme_name!r}: {doubtful}.",
            other or "Check the label scheme of the mask and the orientation in the file's header.",
        )


def _refuse_empty(has_vertebra: bool, path: Path, case: str, remedy: str) -> None:
    if not has_vertebra:
        raise CaseError(case, f"mask {path.name} holds no vertebra T1-L6.", remedy)


def _other_scheme(mask: _Numbers, scheme_name: str, evident: bool = False) -> str:
    """What the mask is instead, as a remedy; empty if that is not known.

    Args:
      evident: whether only a scheme counts for which levels, order and distances speak.
    """
    if set(mask.present) <= {1, 2} and contradiction(mask.levels("vertebral_bodies_ct")):
        return (
            "It looks like TotalSegmentator's task vertebrae_body (1 = all bodies, 2 = disks), "
            "which does not number levels: bring a mask that does, as its task total writes."
        )
    possible = {
        name: mask.levels(name)
        for name, scheme in SCHEMES.items()
        if name != scheme_name
        and not mask.unknown_to(name)
        and scheme.class_of_id.keys() & set(mask.present)
    }
    fitting = [name for name, levels in possible.items() if is_plausible(levels)]
    if fitting:
        return f"Name the label scheme {_either(fitting)}: levels, order and distances fit it."
    fitting = [name for name, levels in possible.items() if not contradiction(levels)]
    if fitting and not evident:
        return f"Name the label scheme, if it is {_either(fitting)}, which has these numbers."
    return ""


def _either(names: list[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _integers(image: sitk.Image, case: str) -> np.ndarray:
    """int[D, H, W] label numbers, which the header's scale may have moved by `ROUNDING`."""
    values = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.floating):
        return values
    numbers = np.empty(values.shape, np.int32)
    for own, plane in zip(numbers, values, strict=True):  # no copy of the volume as floats
        rounded = np.clip(np.rint(plane), -FARTHEST_NUMBER, FARTHEST_NUMBER)
        off = np.abs(plane - rounded)
        if not off.max() <= ROUNDING:  # NaN included
            found = float(plane.flat[int(np.argmax(off))])
            raise CaseError(
                case,
                f"the mask holds fractions, not label numbers (such as {found:.6g}).",
                "Bring the label map, not probabilities or an interpolated mask.",
            )
        own[...] = rounded
    return numbers


def _without(numbers: np.ndarray, ignored: Sequence[int]) -> np.ndarray:
    """int[D, H, W] with 0 for the ignored numbers; the array itself where nothing is ignored."""
    if not ignored:
        return numbers
    kept = numbers.copy()
    for plane in kept:
        plane[np.isin(plane, ignored)] = 0
    return kept


def _present(numbers: np.ndarray, case: str) -> list[int]:
    """The numbers of int[D, H, W] that are not 0. Raises CaseError for those that no scheme has."""
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high > MOST_NUMBER:
        raise CaseError(
            case, f"mask numbers run from {low} to {high}.", "Bring a label map of vertebrae."
        )
    counts = np.zeros(high + 1, np.int64)
    for plane in numbers:  # bincount makes 8 bytes of each value
        counts += np.bincount(plane[plane != 0], minlength=high + 1)
    return [int(n) for n in np.flatnonzero(counts)]


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
