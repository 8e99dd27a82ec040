"""Reads a DICOM series, and says which files belong to it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_prep.volume_file import VolumeFile
from osteojax.errors import CaseError


def has_dicom_magic(head: bytes) -> bool:
    """Whether the first bytes are those of a DICOM file."""
    return head[128:132] == b"DICM"


def is_dicom(path: Path) -> bool:
    """Whether a file, or any file of a folder, has DICOM's magic bytes. Reads 132 bytes of each."""
    if path.is_dir():
        return any(entry.is_file() and _claims_to_be_a_slice(entry) for entry in path.iterdir())
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def series_files(path: Path) -> list[Path]:
    """The DICOM files of a CT, in the order of the slices of `read_volume`."""
    if not path.is_dir():
        return [path]
    (series,) = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    return [Path(name) for name in _file_names(path, series)]


def _file_names(folder: Path, series: str) -> tuple[str, ...]:
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)


def read_frames(file: VolumeFile) -> sitk.Image:
    """Reads one DICOM file of several frames.

    Raises:
      CaseError: it is a single slice, or a picture.
    """
    image = sitk.ReadImage(str(file.path))
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise file.error(f"has {image.GetNumberOfComponentsPerPixel()} channels, not one")
    file.check_shape(image.GetSize())
    return image


def read_series(file: VolumeFile) -> sitk.Image:
    """Reads one DICOM series. Raises CaseError unless every slice is there, slices are evenly
    spaced and the gantry is not tilted."""
    folder, case, what = file.path, file.case, file.what
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise CaseError(
            case, f"{what} folder {folder.name} holds no DICOM series.", "Correct the path."
        )
    names = [_file_names(folder, uid) for uid in series]
    if len(series) > 1:
        slices = ", ".join(str(len(files)) for files in names)
        reason = f"{what} folder {folder.name} holds {len(series)} series (of {slices} slices)."
        raise CaseError(case, reason, "Give each series its own folder.")
    files = names[0]
    in_series = {os.path.basename(name) for name in files}
    broken = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_file() and entry.name not in in_series and _claims_to_be_a_slice(entry)
    )
    if broken:
        # File names of exported series are often UIDs, which identify images: report the count.
        reason = f"{what} folder {folder.name}: {len(broken)} of {len(broken) + len(files)} slices"
        raise CaseError(case, f"{reason} cannot be read.", "Copy the series again.")
    _check_slices(files, case, what)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    return reader.Execute()


def _claims_to_be_a_slice(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as stream:
        return path.suffix.lower() == ".dcm" or stream.read(132)[128:] == b"DICM"


def _check_slices(files: tuple[str, ...], case: str, what: str) -> None:
    """Raises CaseError unless slices are a constant step apart, along their normal."""
    reader = sitk.ImageFileReader()
    origins, normals = [], []
    for name in files:
        reader.SetFileName(name)
        reader.ReadImageInformation()
        origins.append(reader.GetOrigin())
        normals.append(np.array(reader.GetDirection()).reshape(3, 3)[:, 2])
    if len(files) < 3:
        return
    steps_mm = np.diff(np.array(origins), axis=0)
    along_mm = np.abs(steps_mm @ normals[0])
    step_mm = float(np.median(along_mm))
    if along_mm.max() - along_mm.min() > 0.1 * step_mm + 1e-3:
        raise CaseError(
            case,
            f"{what}: DICOM slices are {along_mm.min():.2f} to {along_mm.max():.2f} mm apart.",
            "A slice is missing or doubled: copy the series again.",
        )
    tilt_mm = np.linalg.norm(steps_mm - np.outer(steps_mm @ normals[0], normals[0]), axis=1)
    if tilt_mm.max() > 0.05 * step_mm + 1e-3:
        raise CaseError(
            case,
            f"{what}: slices shift {tilt_mm.max():.2f} mm in their plane (tilted gantry).",
            "Resample the series to a rectangular grid and bring it as NIfTI.",
        )
