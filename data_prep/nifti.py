"""Reads NIfTI-1 volumes: one file, or a header (.hdr) with its voxels (.img), gzipped or not.

Source of the layout: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h. NIfTI-2 and
Analyze 7.5 have headers of the same look and are refused.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_prep.volume_file import (
    GEOMETRY_MM,
    ByteSource,
    VolumeFile,
    check_place,
    corner_distance_mm,
    itk_place,
    open_bytes,
    placed_image,
    read_exactly,
    read_voxels,
)

HEADER_BYTES = 348
FIRST_VOXEL = 352
"""Least offset of the voxels in a single file."""
MOST_HEADER_BYTES = 1 << 26
"""Largest header, extensions included."""
KINDS = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
CHANNELS = {32: 2, 1792: 2, 128: 3, 2304: 4}
"""Complex numbers and colours."""
LEAST_SLOPE = 1e-12
LAST_CODE = 5
"""Largest code of qform and sform that the format knows. Others mean nothing to nibabel."""
CONVERT = "Convert it to NIfTI-1 (.nii.gz), for example with nibabel or SimpleITK."
PAIR_ENDINGS = {"header": (".hdr", ".hdr.gz"), "voxels": (".img", ".img.gz")}
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes are those of a header of NIfTI-1, NIfTI-2 or Analyze."""
    return head[:4] in {struct.pack(order + "i", n) for order in "<>" for n in (348, 540)}


def has_single_magic(head: bytes) -> bool:
    """Whether header and voxels are in one file."""
    return is_nifti(head) and head[344:348] == b"n+1\0"


def read_nifti(file: VolumeFile) -> sitk.Image:
    """Reads it with all checks.

    Raises:
      CaseError: truncated, no volume, NIfTI-2 or Analyze, forms that disagree or are absent.
      EOFError: says what is wrong with the header.
    """
    header_path, voxel_path = _paths(file)
    with header_path.open("rb") as stream:
        source = open_bytes(stream)
        header = _Header(file, read_exactly(source, HEADER_BYTES), voxel_path is None)
        affines = header.affines()
        place = itk_place(file, header.alone(), ".nii", header.sizes)
        for affine in affines:
            check_place(file, place, affine, header.sizes)
        if voxel_path is None:
            return placed_image(file, header.voxels(source, HEADER_BYTES), place)
    with voxel_path.open("rb") as stream:
        return placed_image(file, header.voxels(open_bytes(stream), 0), place)


def _paths(file: VolumeFile) -> tuple[Path, Path | None]:
    """The header's file, and the voxels' where that is another one."""
    name = file.path.name.lower()
    with file.path.open("rb") as stream:
        if has_single_magic(read_exactly(open_bytes(stream), HEADER_BYTES)):
            return file.path, None
    if name.endswith(PAIR_ENDINGS["voxels"]):
        return _other_half(file, "voxels", "header"), file.path
    if name.endswith(PAIR_ENDINGS["header"]):
        return file.path, _other_half(file, "header", "voxels")
    return file.path, None


def _other_half(file: VolumeFile, have: str, want: str) -> Path:
    """The other file of a pair: the same name with the other ending, in any spelling."""
    ending = next(e for e in PAIR_ENDINGS[have][::-1] if file.path.name.lower().endswith(e))
    stem = file.path.name[: -len(ending)]
    found = [
        entry
        for entry in file.path.parent.iterdir()
        if entry.name.startswith(stem) and entry.name[len(stem) :].lower() in PAIR_ENDINGS[want]
    ]
    if len(found) != 1:
        ends = PAIR_ENDINGS[want][0]
        raise file.error(
            f"is one half of a pair, and {len(found)} files {stem}{ends} are beside it",
            "Bring .hdr and .img together, one of each, or one .nii.gz.",
        )
    return found[0]


class _Header:
    """A checked header.

    Attributes:
      sizes: voxels along the file's axes.
      kind: of a stored voxel.
    """

    def __init__(self, file: VolumeFile, head: bytes, single: bool) -> None:
        self._file, self._head = file, head
        if len(head) < HEADER_BYTES:
            raise EOFError(f"{len(head)} bytes, less than a NIfTI header")
        if not is_nifti(head):
            raise EOFError("it does not begin as a NIfTI header")
        self._order = "<" if head[:4] in (struct.pack("<i", 348), struct.pack("<i", 540)) else ">"
        if self._numbers("i", 1, 0)[0] == 540:
            raise file.error("is NIfTI-2, which is not read", CONVERT)
        if head[344:348] not in (b"n+1\0", b"ni1\0"):
            raise file.error("is Analyze 7.5, which says nothing of left and right", CONVERT)
        if (head[344:348] == b"n+1\0") != single:
            raise EOFError("its header belongs to a pair of .hdr and .img" if single else "no pair")
        self._check_type()
        self._check_numbers(single)

    def _numbers(self, code: str, count: int, at: int) -> tuple:
        return struct.unpack_from(f"{self._order}{count}{code}", self._head, at)

    def _check_type(self) -> None:
        code, bits = self._numbers("h", 2, 70)
        if code in CHANNELS:
            raise self._file.error(f"has {CHANNELS[code]} channels, not one")
        if code not in KINDS:
            raise EOFError(f"a header of data type {code}")
        self.kind = np.dtype(self._order + KINDS[code])
        if bits != 8 * self.kind.itemsize:
            raise EOFError(f"a header of data type {code} with {bits} bits")

    def _check_numbers(self, single: bool) -> None:
        rank, *sizes = self._numbers("h", 8, 40)
        (start,) = self._numbers("f", 1, 108)
        least = FIRST_VOXEL if single else 0
        if not (1 <= rank <= 7 and least <= start < MOST_HEADER_BYTES and start == int(start)):
            raise EOFError(f"a header of {rank} dimensions and an offset of {start:g}")
        if min(sizes[:rank]) < 1:
            raise EOFError(f"a header of {'x'.join(map(str, sizes[:rank]))} voxels")
        self.sizes, self._offset = sizes[:rank], int(start)
        self._file.check_shape(self.sizes)
        self._pixdim = self._numbers("f", 8, 76)
        if not np.isfinite([*self._pixdim, *self._numbers("f", 18, 256)]).all():
            raise EOFError("a header with NaN or infinity in its geometry")
        if min(self._pixdim[1:4]) <= 0:
            edges = "x".join(f"{edge:g}" for edge in self._pixdim[1:4])
            raise EOFError(f"a header with voxels of {edges} mm")
        if self._head[123] & 7 not in (0, 2):
            raise EOFError("a header in metres or micrometres, not millimetres")
        self._scaling = self._checked_scaling()

    def _checked_scaling(self) -> tuple[float, float] | None:
        """Slope and shift of the voxels, None where the header has none: a slope of 0 or NaN."""
        slope, shift = self._numbers("f", 2, 112)
        plain = not np.isfinite(slope) or slope == 0
        if (plain and (shift == 0 or np.isnan(shift))) or (slope, shift) == (1, 0):
            return None
        # ITK adds the shift where the slope is 0 or tiny; by the format there is no scaling then.
        if plain or abs(slope) < LEAST_SLOPE or not np.isfinite(shift):
            raise EOFError(f"a header with scl_slope {slope:g} and scl_inter {shift:g}")
        return slope, shift

    def alone(self) -> bytes:
        """A three-dimensional single file's header, for ITK."""
        head = bytearray(self._head) + bytes(FIRST_VOXEL - HEADER_BYTES)
        struct.pack_into(self._order + "8h", head, 40, 3, *self.sizes[:3], 1, 1, 1, 1)
        struct.pack_into(self._order + "f", head, 108, FIRST_VOXEL)
        head[344:348] = b"n+1\0"
        return bytes(head)

    def affines(self) -> list[np.ndarray]:
        """f64[3, 4] each: qform and sform, those that are valid, as LPS.

        Raises:
          CaseError: neither is valid, or they disagree.
        """
        qform_code, sform_code = self._numbers("h", 2, 252)
        if not (0 <= qform_code <= LAST_CODE and 0 <= sform_code <= LAST_CODE):
            raise EOFError(f"a header of qform_code {qform_code} and sform_code {sform_code}")
        found = []
        if qform_code > 0:
            found.append(LPS_FROM_RAS @ self._qform())
        if sform_code > 0:
            found.append(LPS_FROM_RAS @ np.array(self._numbers("f", 12, 280)).reshape(3, 4))
        if not found:
            raise self._file.error(
                "says nothing of its orientation (qform_code and sform_code are 0), so programs "
                "place it differently",
                "Convert the CT and its mask again from DICOM.",
            )
        distance_mm = corner_distance_mm(found[0], found[-1], self.sizes)
        if distance_mm > GEOMETRY_MM:
            raise self._file.error(
                f"has a qform and a sform that place it {distance_mm:.2f} mm apart "
                f"(accepted: {GEOMETRY_MM:g}), so programs place it differently",
                "Find out which is right and write it into both, or convert the CT again.",
            )
        return found

    def _qform(self) -> np.ndarray:
        """f64[3, 4], RAS; the formula of nifti1.h."""
        b, c, d, x, y, z = self._numbers("f", 6, 256)
        square = 1.0 - (b * b + c * c + d * d)
        if square < -1e-3:
            raise EOFError("a header with a quaternion longer than 1")
        a = max(square, 0.0) ** 0.5
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        edges = np.array(self._pixdim[1:4]) * [1, 1, -1 if self._pixdim[0] < 0 else 1]
        return np.column_stack([turn * edges, [x, y, z]])

    def voxels(self, source: ByteSource, found: int) -> np.ndarray:
        """[D, H, W], scaled as the header says: f64 where f64 is stored, else f32.

        Args:
          source: bytes, `found` of which were read.
        """
        found += len(read_exactly(source, self._offset - found))
        if found < self._offset:
            expected = self._offset + int(np.prod(self.sizes)) * self.kind.itemsize
            raise self._file.error(f"is truncated: {found:,} of {expected:,} bytes")
        stored = read_voxels(self._file, source, self.sizes[:3], self.kind, found, spare=True)
        if self._scaling is None:
            return stored
        slope, shift = self._scaling
        scaled = np.empty(stored.shape, "f8" if self.kind.str[1:] == "f8" else "f4")
        for one, other in zip(stored, scaled, strict=True):
            other[:] = one * np.float64(slope) + shift
        return scaled
