"""One file with a volume: its errors, its bytes, and its place in space.

Voxels are taken from the file's bytes by NumPy, never by ITK: ITK reads the missing part of a file
as zeros and NaN as 0, without an error. ITK reads the header alone, and its answer must agree with
what the reader of the format found in the same header.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import SimpleITK as sitk

from osteojax.errors import CaseError

READ_REMEDY = "Replace the file, or take the row out of the cohort."
MOST_VOXELS = 1 << 32
BLOCK = 1 << 20
GEOMETRY_MM = 0.5
"""Largest distance of a corner voxel between two statements of the same geometry. nibabel wrote
one matrix into both forms of NIfTI, of a CT of 512 x 512 x 400 voxels of 0.8 x 0.8 x 1 mm: of 5000
random turns the forms were 0.0002 mm apart (mean) and at most 0.12 mm; for 5,000 turns 0.0001 to 10
degrees from an axial CT's, where the rounding of a quaternion costs most, at most 0.28 mm. The real
files with both forms (IBSI's phantom) agree exactly; the others have one."""


class ByteSource(Protocol):
    """What gives bytes in order: an open file, or `Unpacked`."""

    def read(self, size: int, /) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class VolumeFile:
    """A file or a folder that the user named.

    Attributes:
      path: as the user gave it.
      case: the scan's name in messages.
      what: "CT" or "mask", for messages.
    """

    path: Path
    case: str
    what: str

    @property
    def name(self) -> str:
        """For messages, without the UIDs after which DICOM files and their folders are called."""
        return re.sub(r"\d+(\.\d+){3,}", "(UID)", self.path.name)

    def error(self, found: str, remedy: str = READ_REMEDY) -> CaseError:
        """The error whose reason is the file's name and `found`."""
        return CaseError(self.case, f"{self.what} {self.name} {found}.", remedy)

    def unreadable(self, why: str, remedy: str = READ_REMEDY) -> CaseError:
        """The error for content that is not understood."""
        return self.error(f"cannot be read ({why})", remedy)

    def voxel_file(self, name: str, convert: str) -> Path:
        """The one file beside a header that holds its voxels.

        Args:
          name: as the header gives it.
          convert: remedy for voxels in several files.
        """
        if name.upper().startswith("LIST") or "%" in name:
            raise self.unreadable("voxels in several files", convert)
        path = self.path.parent / name
        if not path.is_file():
            raise self.error(
                "names a file with its voxels that is not there",
                "Bring header and voxels together.",
            )
        return path

    def check_shape(self, sizes: Sequence[int]) -> None:
        """Raises CaseError unless `sizes` are a volume's: three of at least 2, then ones only."""
        if len(sizes) < 3 or min(sizes[:3]) < 2 or max(sizes[3:], default=1) != 1:
            raise self.error(f"is {'x'.join(str(n) for n in sizes)}, not a volume")
        if int(np.prod(sizes, dtype=np.float64)) > MOST_VOXELS:
            raise self.unreadable(f"a header of {'x'.join(str(n) for n in sizes)} voxels")


def nan_error(case: str, what: str, count: int) -> CaseError:
    """The error for an image with NaN or infinity."""
    outside = "outside the vertebrae use 0" if what == "mask" else "outside the scan use -1000 HU"
    return CaseError(
        case,
        f"the {what} holds {count:,} NaN or infinite voxels.",
        f"Export it again; {outside}.",
    )


class Unpacked:
    """The content of a gzip or zlib stream. zlib verifies its checksum at the end.

    Attributes:
      whole: whether everything read so far ends with the end of a stream.
    """

    def __init__(self, stream: IO[bytes], parts: bool) -> None:
        """parts: whether several gzip streams may follow each other, as gzip allows."""
        self._stream, self._parts = stream, parts
        self._unpack, self._packed = zlib.decompressobj(47), b""

    @property
    def whole(self) -> bool:
        return self._unpack.eof

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, b"" at the end. Raises zlib.error for damaged content."""
        while True:
            self._packed = self._packed or self._stream.read(BLOCK)
            if self._unpack.eof:
                self._packed = self._packed.lstrip(b"\0")  # gzip allows zeros after its end
                if self._packed and not self._parts:
                    raise zlib.error("bytes after the end of the compressed data")
                if self._packed:
                    self._unpack = zlib.decompressobj(47)
                elif not (more := self._stream.read(BLOCK)):
                    return b""
                else:
                    self._packed = more
                continue
            if not self._packed:
                return b""
            block = self._unpack.decompress(self._packed, size)
            self._packed = self._unpack.unconsumed_tail or self._unpack.unused_data
            if block:
                return block


def open_bytes(stream: IO[bytes]) -> ByteSource:
    """The content of a file that may be gzipped, as its first bytes tell."""
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return Unpacked(stream, parts=True) if packed else stream


def read_exactly(source: ByteSource, size: int) -> bytes:
    """`size` bytes, or fewer where the file ends."""
    parts = []
    while size > 0 and (block := source.read(size)):
        parts.append(block)
        size -= len(block)
    return b"".join(parts)


def read_voxels(
    file: VolumeFile,
    source: ByteSource,
    sizes: Sequence[int],
    kind: np.dtype,
    before: int = 0,
    spare: bool = False,
) -> np.ndarray:
    """All voxels, the last axis of the file first, in this machine's byte order.

    Args:
      source: at the first voxel.
      sizes: voxels along the file's axes, the fastest first.
      kind: of a stored voxel, with its byte order.
      before: bytes that `source` gave before, for the message.
      spare: whether bytes may follow the last voxel.

    Raises:
      CaseError: the file ends before the last voxel, or goes on behind it.
    """
    count = int(np.prod(sizes, dtype=np.int64))
    values = np.empty(count, kind)
    raw, found = values.view(np.uint8), 0
    while found < raw.size and (block := source.read(min(BLOCK, raw.size - found))):
        raw[found : found + len(block)] = np.frombuffer(block, np.uint8)
        found += len(block)
    if found < raw.size:
        expected = before + raw.size
        raise file.error(f"is truncated: {before + found:,} of {expected:,} bytes")
    more = 0
    while block := source.read(BLOCK):  # to the end, where the checksum is
        more += len(block)
    if isinstance(source, Unpacked) and not source.whole:
        raise file.error("is truncated: the end of its compressed data is missing")
    if more and not spare:
        reason = f"has {before + raw.size + more:,} bytes, {more:,} more than its header says"
        raise file.error(reason)
    return values.reshape(tuple(sizes)[::-1]).astype(kind.newbyteorder("="), copy=False)


@dataclasses.dataclass(frozen=True)
class Place:
    """What ITK reads in a header.

    Attributes:
      pixel_id: SimpleITK's number of the voxel's type.
      spacing_mm, origin_mm, direction: as SimpleITK gives them, of the first three axes.
    """

    pixel_id: int
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def affine(self) -> np.ndarray:
        """f64[3, 4] from voxel index to LPS in mm."""
        turn = np.array(self.direction).reshape(3, 3) * np.array(self.spacing_mm)
        return np.column_stack([turn, self.origin_mm])


def itk_place(file: VolumeFile, header: bytes, suffix: str, sizes: Sequence[int]) -> Place:
    """Lets ITK read a header without voxels.

    Args:
      header: of a file whose voxels would follow.
      suffix: by which ITK knows the format.
      sizes: what the header says, for comparison.

    Raises:
      CaseError: ITK reads other sizes.
      RuntimeError: ITK refuses the header.
    """
    reader = sitk.ImageFileReader()
    with tempfile.TemporaryDirectory(prefix="osteojax-") as folder:
        path = Path(folder) / f"header{suffix}"
        path.write_bytes(header)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    rank = reader.GetDimension()
    if tuple(reader.GetSize()[:3]) != tuple(sizes[:3]) or reader.GetNumberOfComponents() != 1:
        raise file.unreadable("a header that two readers understand differently")
    turn = np.array(reader.GetDirection()).reshape(rank, rank)[:3, :3]
    return Place(
        reader.GetPixelIDValue(),
        tuple(reader.GetSpacing()[:3]),
        tuple(reader.GetOrigin()[:3]),
        tuple(turn.ravel()),
    )


def corner_distance_mm(one: np.ndarray, other: np.ndarray, sizes: Sequence[int]) -> float:
    """Largest distance between the places of a corner voxel by two f64[3, 4] matrices."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(sizes[:3]) - 1)
    moved = corners @ (one - other)[:, :3].T + (one - other)[:, 3]
    return float(np.linalg.norm(moved, axis=1).max())


def check_place(file: VolumeFile, place: Place, affine: np.ndarray, sizes: Sequence[int]) -> None:
    """Raises CaseError unless ITK places the voxels where `affine` (f64[3, 4], LPS) does."""
    distance_mm = corner_distance_mm(place.affine, affine, sizes)
    if not distance_mm <= GEOMETRY_MM:
        raise file.error(
            f"is placed differently by two readers of its header, by {distance_mm:.2f} mm",
            "Convert the CT and its mask again.",
        )


def placed_image(file: VolumeFile, values: np.ndarray, place: Place) -> sitk.Image:
    """The image of [D, H, W] voxels. Raises CaseError if ITK would read another type of voxel."""
    image = sitk.GetImageFromArray(values)
    if image.GetPixelIDValue() != place.pixel_id:
        raise file.unreadable("a type of voxel that two readers understand differently")
    image.SetSpacing(place.spacing_mm)
    image.SetOrigin(place.origin_mm)
    image.SetDirection(place.direction)
    return image
