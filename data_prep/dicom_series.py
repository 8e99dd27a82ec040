"""Reads a DICOM series or a multi-frame file, and says which files belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, UID_dictionary

from data_prep.dicom_slices import (
    COPY_AGAIN,
    Slice,
    affine_of,
    check_slices,
    silent_dicom,
    slices_of,
)
from data_prep.volume_file import GEOMETRY_MM, VolumeFile, corner_distance_mm

READ_BY_ITK = frozenset(
    [
        "1.2.840.10008.1.2",  # implicit, little endian
        "1.2.840.10008.1.2.1",  # explicit, little endian
        "1.2.840.10008.1.2.2",  # explicit, big endian
        "1.2.840.10008.1.2.4.50",  # JPEG baseline
        "1.2.840.10008.1.2.4.51",  # JPEG extended
        "1.2.840.10008.1.2.4.57",  # JPEG lossless
        "1.2.840.10008.1.2.4.70",  # JPEG lossless, first order
        "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
        "1.2.840.10008.1.2.4.81",  # JPEG-LS
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
        "1.2.840.10008.1.2.5",  # RLE
    ]
)
"""Transfer syntaxes that ITK's GDCM decodes. It refuses a frame that is cut in JPEG-LS and
JPEG 2000; the other packed ones are checked here."""
RLE = "1.2.840.10008.1.2.5"
END_OF_JPEG = b"\xff\xd9"
DECODERS = "pylibjpeg pylibjpeg-openjpeg"


def has_dicom_magic(head: bytes) -> bool:
    """Whether the first bytes are those of a DICOM file."""
    return head[128:132] == b"DICM"


def is_list(path: Path) -> bool:
    """Whether a path is a list of a series' files: text, one path a line (`osteojax cohort`)."""
    return path.suffix.lower() == ".txt" and path.is_file()


def listed_files(path: Path) -> list[Path]:
    """The files that a list names; relative ones are relative to the list's folder."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [path.parent / line for line in lines if line.strip()]


def is_dicom(path: Path) -> bool:
    """Whether a file, or any file of a folder or list, has DICOM's magic bytes. Reads 132 bytes of
    each."""
    if is_list(path):
        return any(entry.is_file() and _claims_to_be_a_slice(entry) for entry in listed_files(path))
    if path.is_dir():
        return any(entry.is_file() and _claims_to_be_a_slice(entry) for entry in path.iterdir())
    with path.open("rb") as stream:
        return has_dicom_magic(stream.read(132))


def series_files(path: Path) -> list[Path]:
    """The DICOM files of a CT that `read_volume` reads, in the order of its slices."""
    if not path.is_dir() and not is_list(path):
        return [path]
    return [one.path for one in _ordered(VolumeFile(path, path.name, "CT"))]


def read_series(file: VolumeFile) -> sitk.Image:
    """Reads the one DICOM series of a folder, or the one whose files a list names.

    Objects without pixels (structure sets, reports) and hidden files are left aside.

    Raises:
      CaseError: no series, several, slices that cannot be read or that disagree.
    """
    ordered = _ordered(file)
    if any(one.frame or one.syntax not in READ_BY_ITK for one in ordered):
        return _decode(file, ordered)
    for one in ordered:
        if UID(one.syntax).is_encapsulated and UID(one.syntax).name[:4] == "JPEG":
            _check_end_of_jpeg(file, one.path)
        if one.syntax == RLE:
            _check_rle(file, one.path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(one.path) for one in ordered])
    image = reader.Execute()
    sizes = (ordered[0].shape[1], ordered[0].shape[0], len(ordered))
    turn = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    place = np.column_stack([turn, image.GetOrigin()])
    if image.GetSize() != sizes:
        raise file.unreadable("two readers find different sizes of its slices")
    distance_mm = corner_distance_mm(place, affine_of(ordered), sizes)
    if distance_mm > GEOMETRY_MM:
        raise file.unreadable(f"two readers of its headers place it {distance_mm:.2f} mm apart")
    return image


def read_frames(file: VolumeFile) -> sitk.Image:
    """Reads one DICOM file of several frames, each with a place of its own (enhanced CT).

    Raises:
      CaseError: it is a single slice, a picture or no CT, or frames disagree.
    """
    slices = slices_of(file.path)
    if slices is None:
        raise file.unreadable("a damaged or truncated DICOM file")
    if len(slices) < 2:
        raise file.error("is one DICOM file, not a volume", "Name the folder of its series.")
    return _decode(file, check_slices(file, slices))


def _ordered(file: VolumeFile) -> list[Slice]:
    """The slices of the series, from the first place to the last."""
    slices, broken = [], 0
    for entry in _entries(file):
        found = slices_of(entry)
        if found is None:
            broken += 1
        else:
            slices += found
    if broken:
        # File names of exported series are often UIDs, which identify images: report the count.
        count = f"{broken} of {broken + len(slices)}"
        raise file.error(f"holds DICOM files of which {count} slices cannot be read", COPY_AGAIN)
    if not slices:
        raise file.error("holds no DICOM series", "Correct the path.")
    series = sorted({one.series for one in slices})
    if len(series) > 1:
        counts = [sum(1 for one in slices if one.series == uid) for uid in series]
        reason = f"holds {len(series)} series (of {', '.join(map(str, counts))} slices)"
        raise file.error(reason, "Give each series its own folder.")
    if len(slices) < 2:
        raise file.error("holds one slice, not a volume")
    return check_slices(file, slices)


def _entries(file: VolumeFile) -> list[Path]:
    """The files of a folder that seem to be slices, or those of a list, whatever they are."""
    if not is_list(file.path):
        entries = sorted(file.path.iterdir())
        return [entry for entry in entries if entry.is_file() and _claims_to_be_a_slice(entry)]
    named = listed_files(file.path)
    if absent := sum(not entry.is_file() for entry in named):
        remedy = "Bring them back, or make the table of the cohort again."
        raise file.error(f"names {len(named)} files, of which {absent} do not exist", remedy)
    return named


def _claims_to_be_a_slice(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR" or path.name.startswith("."):
        return False  # ._NAME is what macOS keeps beside NAME
    with path.open("rb") as stream:
        return path.suffix.lower() == ".dcm" or has_dicom_magic(stream.read(132))


def _check_end_of_jpeg(file: VolumeFile, path: Path) -> None:
    """Raises CaseError for a frame that is cut: libjpeg fills it up with a warning alone."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - (1 << 12)))
        if END_OF_JPEG in stream.read():
            return
    try:  # other elements may follow the frame
        with silent_dicom():
            frames = list(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
        whole = END_OF_JPEG in frames[0][-(1 << 8) :]
    except Exception:  # pydicom raises many kinds on damaged bytes
        whole = False
    if not whole:
        raise file.unreadable("a slice is truncated", COPY_AGAIN)


def _check_rle(file: VolumeFile, path: Path) -> None:
    """Raises CaseError for a frame that is cut: GDCM makes up the rest without an error."""
    try:
        with silent_dicom():
            pixel_array(path)
    except Exception as error:  # pydicom raises many kinds on damaged bytes
        raise file.unreadable("a slice is truncated or damaged", COPY_AGAIN) from error


def _decode(file: VolumeFile, ordered: Sequence[Slice]) -> sitk.Image:
    """Reads slices, or frames of one file, through pydicom and its decoders.

    Raises:
      CaseError: no decoder is installed for the transfer syntax, or a frame is damaged.
    """
    _need_decoder(file, ordered)
    planes: dict[tuple[Path, int], np.ndarray] = {}
    try:
        with silent_dicom():
            for path in dict.fromkeys(one.path for one in ordered):
                frames = pydicom.dcmread(path).pixel_array
                for i, plane in enumerate(frames.reshape(-1, *ordered[0].shape)):
                    planes[path, i] = plane
    except Exception as error:  # decoders raise many kinds on damaged bytes
        raise file.unreadable("a slice cannot be decoded", COPY_AGAIN) from error
    values = np.stack([planes[one.path, one.frame] for one in ordered])
    slope, intercept = ordered[0].rescale or (1.0, 0.0)
    scaled = values * np.float64(slope) + intercept
    whole = np.array_equal([slope, intercept], np.rint([slope, intercept])) and (
        np.abs(scaled).max() < 2**31
    )
    image = sitk.GetImageFromArray(scaled.astype(np.int32 if whole else np.float64))
    affine = affine_of(ordered)
    spacing_mm = np.linalg.norm(affine[:, :3], axis=0)
    image.SetSpacing(spacing_mm.tolist())
    image.SetOrigin(affine[:, 3].tolist())
    image.SetDirection((affine[:, :3] / spacing_mm).ravel().tolist())
    return image


def _need_decoder(file: VolumeFile, slices: Sequence[Slice]) -> None:
    for syntax in sorted({UID(one.syntax) for one in slices}):
        if syntax.is_transfer_syntax and not syntax.is_encapsulated:
            continue
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            name = syntax.name if syntax in UID_dictionary else "an unknown syntax"
            raise file.error(
                f"has slices packed as {name}, for which no decoder is installed",
                f"Try `pip install {DECODERS}`, or export the series uncompressed.",
            )
