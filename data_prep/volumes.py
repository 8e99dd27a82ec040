"""Reads CTs and masks: NIfTI-1, NRRD, MetaImage and DICOM series.

The format is known from the content, never from the spelling of the name, and what is in none of
these formats is refused: only they are checked. Only voxels and geometry are kept: all metadata of
the file (such as the patient's name) are dropped as soon as they are read.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_prep.dicom_series import (
    has_dicom_magic,
    is_dicom,
    is_list,
    read_frames,
    read_series,
    series_files,
)
from data_prep.metaimage import is_metaimage, read_metaimage
from data_prep.nifti import PAIR_ENDINGS, is_nifti, read_nifti
from data_prep.nrrd import is_nrrd, read_nrrd
from data_prep.volume_file import READ_REMEDY, VolumeFile, nan_error, open_bytes, read_exactly
from osteojax.errors import CaseError

__all__ = ["READ_REMEDY", "is_dicom", "itk_message", "nan_error", "read_volume", "series_files"]

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK prints warnings of its own to stderr

FORMATS = (
    "NIfTI-1 (.nii, .nii.gz, .hdr with .img), NRRD (.nrrd, .nhdr; raw or gzip), MetaImage (.mha, "
    ".mhd) and DICOM (a folder with one series, or a list of its files)"
)
SPACING_MM = (0.01, 100.0)
"""Smallest and largest accepted edge of a voxel."""
FARTHEST_MM = 1e5
"""Largest accepted distance of an image's origin from the scanner's."""


def read_volume(path: str | Path, case: str, what: str = "CT") -> sitk.Image:
    """Reads one three-dimensional scalar image, without its metadata.

    Args:
      path: a file in one of `FORMATS`, or a folder that holds one DICOM series.
      case: the scan's name in messages.
      what: "CT" or "mask", for messages.

    Returns:
      The voxels that are in the file, scaled as its header says, all of them finite.

    Raises:
      CaseError: the file is absent, unreadable, truncated, not three-dimensional and scalar, holds
        NaN, or does not say clearly where its voxels are.
    """
    file = VolumeFile(Path(path), case, what)
    if not file.path.exists():
        raise CaseError(
            case, f"{what} {file.path} does not exist.", "Correct the path in the cohort."
        )
    try:
        image = _read(file)
    except (RuntimeError, OSError, EOFError, MemoryError, zlib.error, struct.error) as error:
        raise file.unreadable(itk_message(error)) from error
    _check_geometry(file, image)
    check_finite(image, case, what)
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def _read(file: VolumeFile) -> sitk.Image:
    """By the format that the first bytes tell."""
    if file.path.is_dir() or is_list(file.path):
        return read_series(file)
    with file.path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        if is_nrrd(head):
            return read_nrrd(file)
        if has_dicom_magic(head):
            return read_frames(file)
        if is_metaimage(head):
            return read_metaimage(file)
        unpacked = read_exactly(open_bytes(stream), 4)
    if is_nifti(unpacked) or file.path.name.lower().endswith(PAIR_ENDINGS["voxels"]):
        return read_nifti(file)
    raise file.unreadable("a format that is not read", f"Bring it as {FORMATS}.")


def _check_geometry(file: VolumeFile, image: sitk.Image) -> None:
    """Raises CaseError for a geometry that no scanner has; ITK reads it without an error."""
    spacing_mm, origin_mm = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    axes = np.array(image.GetDirection()).reshape(3, 3)
    low, high = SPACING_MM
    sound = (
        np.isfinite(origin_mm).all()
        and np.abs(origin_mm).max() < FARTHEST_MM
        and (spacing_mm >= low).all()
        and (spacing_mm <= high).all()
        and np.allclose(axes @ axes.T, np.eye(3), atol=1e-3)
    )
    if not sound:
        spacing = "x".join(f"{s:g}" for s in spacing_mm)
        origin = ", ".join(f"{x:g}" for x in origin_mm)
        raise file.error(
            f"has voxels of {spacing} mm from ({origin}), or skewed axes",
            "Correct its header, or convert the CT again.",
        )


def check_finite(image: sitk.Image, case: str, what: str) -> None:
    """Raises CaseError for NaN or infinity; plane by plane, without a copy of the volume."""
    values = sitk.GetArrayViewFromImage(image)
    if np.issubdtype(values.dtype, np.floating):
        bad = values.size - sum(int(np.count_nonzero(np.isfinite(plane))) for plane in values)
        if bad:
            raise nan_error(case, what, bad)


def itk_message(error: Exception) -> str:
    """The end of ITK's error message, without memory addresses and without paths. Files of a DICOM
    series are often named by UIDs, which identify a patient's images."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not lines:
        return type(error).__name__
    words = re.sub(r"(sitk::ERROR|ITK ERROR|\w+\(0x[0-9a-f]+\)): ", "", lines[-1])
    return re.sub(r"\S*/\S+", "the file", words).rstrip(".")
