"""Headers of DICOM slices: whether slices belong together, and where they lie.

Every slice's own header counts. ITK takes type, orientation and size of a whole series from one
slice, and a slice that says otherwise would be read with another slice's meaning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from data_prep.volume_file import VolumeFile

TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "Modality", "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing", "Rows", "Columns", "RescaleSlope", "RescaleIntercept",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
NO_PIXELS = (
    "SR Storage", "SR", "Structure Set", "RT Plan", "RT Ion Plan", "Beams", "Presentation State",
    "Key Object", "Encapsulated", "Raw Data", "Registration", "Fiducials", "Waveform", "Structured",
    "Report",
)  # fmt: skip
"""Words in the names of storage classes without pixels."""
COPY_AGAIN = "Copy the series again."
OTHER_FOLDER = "Take them out of the folder, or export the series again."


@dataclasses.dataclass(frozen=True)
class Slice:
    """What one slice's header says; lengths in mm, axes LPS.

    Attributes:
      path, frame: the file, and the number in it.
      series: its SeriesInstanceUID, "" where there is none.
      syntax: UID of the transfer syntax.
      orientation: direction of a row, then of a column; () if absent.
      position_mm: of the first pixel; () if absent.
      spacing_mm: between rows, then between columns; () if absent.
      rescale: slope and intercept; () if either is absent.
      shape: rows and columns.
      pixel: bits allocated, bits stored, signed, samples, photometric interpretation.
    """

    path: Path
    frame: int
    series: str
    syntax: str
    modality: str
    orientation: tuple[float, ...]
    position_mm: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    rescale: tuple[float, ...]
    shape: tuple[int, int]
    pixel: tuple[Any, ...]

    @property
    def normal(self) -> np.ndarray:
        """f64[3], unit length."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)


@contextlib.contextmanager
def silent_dicom() -> Iterator[None]:
    """Suppresses messages of pydicom and highdicom, which may contain values of headers."""
    loggers = [logging.getLogger("pydicom"), logging.getLogger("highdicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def slices_of(path: Path) -> list[Slice] | None:
    """The slices of one file, [] for an object without pixels, None if it cannot be understood."""
    try:
        with silent_dicom(), path.open("rb") as stream:
            data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(TAGS))
            kind = data.file_meta.get("MediaStorageSOPClassUID") or data.get("SOPClassUID") or ""
            name = getattr(kind, "name", "")
            if "Rows" not in data and any(word in name for word in NO_PIXELS):
                return []
            frames = _frames(data)
            slices = [_slice(path, i, data, groups) for i, groups in enumerate(frames)]
            return slices if _has_all_pixels(stream, slices) else None
    except OSError:
        raise
    except Exception:  # pydicom raises many kinds on damaged bytes, and its words quote headers
        return None


def _frames(data: Dataset) -> list[list[Dataset]]:
    """For each frame the datasets to look into, the most special one first."""
    if "PerFrameFunctionalGroupsSequence" not in data:
        return [[data]] * int(data.get("NumberOfFrames") or 1)
    shared = list(data.get("SharedFunctionalGroupsSequence", []))
    frames = []
    for own in data.PerFrameFunctionalGroupsSequence:
        inner = [item[0] for group in (own, *shared) for item in _sequences(group)]
        frames.append([*inner, data])
    return frames


def _sequences(group: Dataset) -> list[Any]:
    return [element.value for element in group if element.VR == "SQ" and len(element.value) == 1]


def _slice(path: Path, frame: int, data: Dataset, places: Sequence[Dataset]) -> Slice:
    def numbers(count: int, *keywords: str) -> tuple[float, ...]:
        found: list[float] = []
        for keyword in keywords:
            values = [place.get(keyword) for place in places if place.get(keyword) is not None]
            if values:
                found += [float(x) for x in np.atleast_1d(np.array(values[0], dtype=float))]
        return tuple(found) if len(found) == count and np.isfinite(found).all() else ()

    return Slice(
        path,
        frame,
        str(data.get("SeriesInstanceUID") or ""),
        str(data.file_meta.get("TransferSyntaxUID") or ""),
        str(data.get("Modality") or ""),
        numbers(6, "ImageOrientationPatient"),
        numbers(3, "ImagePositionPatient"),
        numbers(2, "PixelSpacing"),
        numbers(2, "RescaleSlope", "RescaleIntercept"),
        (int(data.Rows), int(data.Columns)),
        (
            int(data.BitsAllocated),
            int(data.BitsStored),
            int(data.PixelRepresentation),
            int(data.SamplesPerPixel),
            str(data.get("PhotometricInterpretation") or ""),
        ),
    )


def _has_all_pixels(stream: Any, slices: Sequence[Slice]) -> bool:
    """Whether the file holds as many bytes of pixels as its header says. The stream stands at the
    element with the pixels. Of packed pixels there must be any; their decoder checks them."""
    syntax = UID(slices[0].syntax)
    if not syntax.is_transfer_syntax or syntax.is_deflated:
        return True  # unknown or not a stream of elements: pydicom's decoder checks or refuses it
    order = "<" if syntax.is_little_endian else ">"
    head = stream.read(12)
    if len(head) < 12 or struct.unpack(order + "HH", head[:4]) != (0x7FE0, 0x0010):
        return False
    if not syntax.is_implicit_VR and head[4:8] not in (b"OW\0\0", b"OB\0\0"):
        return False
    if syntax.is_encapsulated:
        return True
    at = 4 if syntax.is_implicit_VR else 8
    (length,) = struct.unpack(order + "I", head[at : at + 4])
    bits, *_ = slices[0].pixel
    rows, columns = slices[0].shape
    expected = len(slices) * rows * columns * slices[0].pixel[3] * (bits // 8)
    start = stream.tell() - len(head) + at + 4
    end = stream.seek(0, 2)
    return length in (expected, expected + expected % 2) and start + expected <= end


def check_slices(file: VolumeFile, slices: Sequence[Slice]) -> list[Slice]:
    """The slices in the order of their places, along their normal.

    Raises:
      CaseError: some disagree with the others, lie at one place, are missing, or are shifted.
    """
    _refuse_odd(file, slices, lambda s: s.shape, "another number of rows or columns")
    _refuse_odd(file, slices, lambda s: s.pixel, "another type of pixel")
    _refuse_odd(file, slices, lambda s: s.modality, "another modality")
    if slices[0].pixel[3] != 1:
        raise file.error(f"has {slices[0].pixel[3]} channels, not one")
    without = sum(1 for s in slices if () in (s.orientation, s.position_mm, s.spacing_mm))
    if without:
        raise file.error(
            f"has {_of(without, slices)} without a place (position, orientation or pixel spacing)",
            OTHER_FOLDER,
        )
    _refuse_odd(file, slices, lambda s: np.round(s.orientation, 3).tolist(), "another orientation")
    _refuse_odd(file, slices, lambda s: np.round(s.spacing_mm, 4).tolist(), "other pixel spacing")
    without = sum(1 for s in slices if s.rescale == ())
    if 0 < without < len(slices):
        raise file.error(
            f"has {_of(without, slices)} without rescale slope and intercept, which would be read "
            "in other units than the others",
            COPY_AGAIN,
        )
    _refuse_odd(file, slices, lambda s: s.rescale, "another rescale slope or intercept")
    return _check_places(file, slices)


def _of(count: int, slices: Sequence[Slice]) -> str:
    return f"{count} of {len(slices)} slices"


def _refuse_odd(
    file: VolumeFile, slices: Sequence[Slice], value: Callable[[Slice], Any], what: str
) -> None:
    """Raises CaseError if a slice has another value than most."""
    counts = Counter(repr(value(one)) for one in slices)
    odd = len(slices) - counts.most_common(1)[0][1]
    if odd:
        verb = "has" if odd == 1 else "have"
        raise file.error(f"is no single volume: {_of(odd, slices)} {verb} {what}", OTHER_FOLDER)


def _check_places(file: VolumeFile, slices: Sequence[Slice]) -> list[Slice]:
    normal = slices[0].normal
    order = np.argsort([np.dot(one.position_mm, normal) for one in slices], kind="stable")
    ordered = [slices[i] for i in order]
    places_mm = np.array([one.position_mm for one in ordered])
    steps_mm = np.diff(places_mm, axis=0)
    along_mm = steps_mm @ normal
    doubled = int(np.count_nonzero(np.abs(along_mm) < 1e-3))
    if doubled:
        raise file.error(
            f"has {_of(doubled, slices)} at the place of another one, so they are doubled",
            OTHER_FOLDER,
        )
    if len(slices) < 3:
        return ordered
    step_mm = float(np.median(along_mm))
    if along_mm.max() - along_mm.min() > 0.1 * step_mm + 1e-3:
        raise file.error(
            f"has slices that are {along_mm.min():.2f} to {along_mm.max():.2f} mm apart",
            f"A slice is missing or doubled: {COPY_AGAIN[0].lower()}{COPY_AGAIN[1:]}",
        )
    tilt_mm = np.linalg.norm(steps_mm - np.outer(along_mm, normal), axis=1)
    if tilt_mm.max() > 0.05 * step_mm + 1e-3:
        raise file.error(
            f"has slices that shift {tilt_mm.max():.2f} mm in their plane (tilted gantry)",
            "Resample the series to a rectangular grid and bring it as NIfTI.",
        )
    return ordered


def affine_of(ordered: Sequence[Slice]) -> np.ndarray:
    """f64[3, 4] from (column, row, slice) to LPS in mm."""
    first, last = ordered[0], ordered[-1]
    between_rows, between_columns = first.spacing_mm
    span_mm = np.dot(np.subtract(last.position_mm, first.position_mm), first.normal)
    return np.column_stack(
        [
            np.array(first.orientation[:3]) * between_columns,
            np.array(first.orientation[3:]) * between_rows,
            first.normal * span_mm / (len(ordered) - 1),
            first.position_mm,
        ]
    )
