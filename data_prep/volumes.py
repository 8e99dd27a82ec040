"""Reads CTs and masks: NIfTI, NRRD, MHA and DICOM series, through SimpleITK.

SimpleITK reads the missing part of a truncated NIfTI file as zeros, and NaN as zero, and leaves out
a damaged DICOM slice, all without an error; so these are checked here first. Only voxels and
geometry are kept: all metadata of the file (such as the patient's name) are dropped as soon as they
are read.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import SimpleITK as sitk

from data_prep.metaimage import check_metaimage
from osteojax.errors import CaseError

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK prints warnings of its own to stderr

MOST_HEADER_BYTES = 1 << 26
"""Largest header of a NIfTI file, extensions included."""
READ_REMEDY = "Replace the file, or take the row out of the cohort."


SPACING_MM = (0.01, 100.0)
"""Smallest and largest accepted edge of a voxel."""
FARTHEST_MM = 1e5
"""Largest accepted distance of an image's origin from the scanner's."""


def read_volume(path: str | Path, case: str, what: str = "CT") -> sitk.Image:
    """Reads one three-dimensional scalar image, without its metadata.

    Args:
      path: a NIfTI, NRRD, MHA or DICOM file, or a folder that holds one DICOM series.
      case: the scan's name in messages.
      what: "CT" or "mask", for messages.

    Raises:
      CaseError: the file is absent, unreadable, truncated, or not three-dimensional and scalar.
    """
    path = Path(path)
    if not path.exists():
        raise CaseError(case, f"{what} {path} does not exist.", "Correct the path in the cohort.")
    try:
        image = _read_series(path, case, what) if path.is_dir() else _read_file(path, case, what)
    except (RuntimeError, OSError, EOFError, MemoryError, zlib.error, struct.error) as error:
        reason = f"{what} {path.name} cannot be read ({itk_message(error)})."
        raise CaseError(case, reason, READ_REMEDY) from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or min(image.GetSize()) < 2:
        size = "x".join(str(n) for n in image.GetSize())
        raise CaseError(case, f"{what} {path.name} is {size}, not a volume.", READ_REMEDY)
    if image.GetNumberOfComponentsPerPixel() != 1:
        channels = image.GetNumberOfComponentsPerPixel()
        raise CaseError(case, f"{what} {path.name} has {channels} channels, not one.", READ_REMEDY)
    _check_geometry(image, path, case, what)
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def _check_geometry(image: sitk.Image, path: Path, case: str, what: str) -> None:
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
        reason = f"{what} {path.name} has voxels of {spacing} mm from ({origin}), or skewed axes."
        raise CaseError(case, reason, "Correct its header, or convert the CT again.")


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


def _read_file(path: Path, case: str, what: str) -> sitk.Image:
    if path.name.endswith((".nii", ".nii.gz")):
        _check_nifti(path, case, what)
    if path.suffix.lower() in (".mha", ".mhd"):
        check_metaimage(path)
    return sitk.ReadImage(str(path))


def _check_nifti(path: Path, case: str, what: str) -> None:
    """Reads the stream to its end: gzip verifies its checksum, the length must be that of the
    header, and floats must be finite (ITK's NIfTI library would turn NaN into 0)."""
    opener = gzip.open if path.suffix == ".gz" else open
    with cast(IO[bytes], opener(path, "rb")) as stream:
        header = stream.read(348)
        if len(header) < 348:
            raise EOFError(f"{len(header)} bytes, less than a NIfTI header")
        order = "<" if struct.unpack("<i", header[:4])[0] == 348 else ">"
        if struct.unpack(order + "i", header[:4])[0] != 348:
            return  # NIfTI-2 or Analyze: left to SimpleITK
        rank, *shape = struct.unpack(order + "8h", header[40:56])
        kind, bits = struct.unpack(order + "2h", header[70:74])
        (start,) = struct.unpack(order + "f", header[108:112])
        if not (1 <= rank <= 7 and 348 <= start < MOST_HEADER_BYTES):
            raise EOFError(f"a header of {rank} dimensions and an offset of {start:g}")
        places = (
            np.frombuffer(header, order + "f4", 8, 76),
            np.frombuffer(header, order + "f4", 18, 256),
        )
        if not np.isfinite(np.concatenate(places)).all():
            raise EOFError("a header with NaN or infinity in its geometry")
        offset = int(start)
        found = len(header) + len(stream.read(offset - len(header)))
        number = {16: order + "f4", 64: order + "f8"}.get(kind)
        bad = 0
        while block := stream.read(1 << 22):
            found += len(block)
            if number is not None:
                values = np.frombuffer(block[: len(block) // 8 * 8], number)
                bad += values.size - int(np.count_nonzero(np.isfinite(values)))
    voxels = int(np.prod([max(n, 1) for n in shape[:rank]], dtype=np.int64))
    expected = offset + voxels * (bits // 8)
    if found < expected:
        reason = f"{what} {path.name} is truncated: {found:,} of {expected:,} bytes."
        raise CaseError(case, reason, READ_REMEDY)
    if bad:
        raise nan_error(case, what, bad)


def nan_error(case: str, what: str, count: int) -> CaseError:
    """The error for an image with NaN or infinity."""
    return CaseError(
        case,
        f"the {what} holds {count:,} NaN or infinite voxels.",
        "Export it again; outside the scan use -1000 HU.",
    )


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


def _read_series(folder: Path, case: str, what: str) -> sitk.Image:
    """Reads one DICOM series. Raises CaseError unless every slice is there, slices are evenly
    spaced and the gantry is not tilted."""
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
