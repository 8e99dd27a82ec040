"""Reads the headers of every file below a folder, without pixels, and groups them into series."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from data_prep.dicom_slices import silent_dicom

KEYWORDS = (
    "AccessionNumber", "ConvolutionKernel", "ImageOrientationPatient", "ImagePositionPatient",
    "ImageType", "Modality", "NumberOfFrames", "PatientAge", "PatientBirthDate", "PatientID",
    "IssuerOfPatientID", "PatientName", "PatientSex", "Rows", "SeriesInstanceUID",
    "SliceThickness", "StudyDate", "StudyInstanceUID",
)  # fmt: skip
"""All that is read of a header."""


@dataclasses.dataclass
class Series:
    """One series of a study.

    Attributes:
      uid, study_uid: identify the patient's images; they are written to no table. Where the headers
        have none, the folder's name stands for them.
      header: the first file's values of `KEYWORDS`, as pydicom gives them; absent ones are missing.
      files: path of each file with the position of its slice in mm (None where it has none).
      frames: number of images, more than files in multi-frame files.
    """

    uid: str
    study_uid: str
    header: dict[str, Any]
    files: list[tuple[Path, tuple[float, float, float] | None]]
    frames: int = 0

    @property
    def step_mm(self) -> float | None:
        """Median distance of neighbouring slices along their normal; None for fewer than 2."""
        places = np.array([place for _, place in self.files if place is not None])
        normal = self.normal
        if normal is None or len(places) < 2:
            return None
        steps = np.diff(np.unique(np.round(places @ normal, 3)))
        return float(np.median(steps)) if len(steps) else None

    @property
    def normal(self) -> np.ndarray | None:
        """f64[3] across the first file's slice, or None where its header has no orientation."""
        axes = self.header.get("ImageOrientationPatient")
        if axes is None or len(axes) != 6:
            return None
        normal = np.cross(np.array(axes[:3], float), np.array(axes[3:], float))
        length = np.linalg.norm(normal)
        return normal / length if length > 0 else None


@dataclasses.dataclass
class Found:
    """What a folder holds. other_files: without DICOM's magic bytes, or DICOMDIR. unreadable: DICOM
    files whose header cannot be read."""

    series: list[Series]
    other_files: int = 0
    unreadable: int = 0


def find_series(folder: Path, watch: Callable[[list[Path]], Any] = iter) -> Found:
    """All series below `folder`, in the order of their first files' paths.

    Args:
      watch: gets the list of files and returns an iterator over it, for a progress bar.
    """
    by_uid: dict[str, Series] = {}
    found = Found([])
    for path in watch(sorted(_files(folder))):
        if path.name.upper() == "DICOMDIR":  # names all files again
            found.other_files += 1
            continue
        try:
            with silent_dicom():
                data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(KEYWORDS))
                header = {key: data[key].value for key in KEYWORDS if key in data}
        except InvalidDicomError:
            found.other_files += 1
            continue
        except Exception:  # a damaged header can make the reader raise anything
            found.unreadable += 1
            continue
        if "Modality" not in header and "Rows" not in header:  # pydicom reads what is left of it
            found.unreadable += 1
            continue
        # Where anonymisation took the UIDs away, the files of a folder are one series.
        absent = f"no UID, in {path.parent.relative_to(folder)}"
        uid = str(header.get("SeriesInstanceUID") or absent)
        study = str(header.get("StudyInstanceUID") or absent)
        series = by_uid.setdefault(uid, Series(uid, study, header, []))
        series.files.append((path, _place(header)))
        series.frames += _frames(header)
    found.series = list(by_uid.values())
    return found


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            if not name.startswith("."):  # macOS writes ._IM1 beside IM1
                yield Path(root) / name


def _place(header: dict[str, Any]) -> tuple[float, float, float] | None:
    place = header.get("ImagePositionPatient")
    if place is None or len(place) != 3:
        return None
    return (float(place[0]), float(place[1]), float(place[2]))


def _frames(header: dict[str, Any]) -> int:
    try:
        return max(1, int(header.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1
