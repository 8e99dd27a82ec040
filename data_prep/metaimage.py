"""Reads MetaImage volumes: .mha, or a header (.mhd) beside its voxels; compressed or not.

Source of the layout: https://itk.org/Wiki/ITK/MetaIO/Documentation. ITK's parser does not check a
header: a damaged one can corrupt the process' memory and kill it. So the header is checked first.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_prep.volume_file import (
    Unpacked,
    VolumeFile,
    check_place,
    itk_place,
    placed_image,
    read_voxels,
)

HEADER_BYTES = 1 << 16
KINDS = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""MetaIO stores its LONG in four bytes on every machine."""
ORIGIN = ("Offset", "Position", "Origin")
SPACING = ("ElementSpacing", "ElementSize")
AXES = ("TransformMatrix", "Rotation", "Orientation")
YES = ("True", "true", "1")
NO = ("False", "false", "0")
YES_OR_NO = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")
UNREAD = ("HeaderSize", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset")
"""Fields that change which bytes are voxels, or what they mean, unless they say the usual."""
LONGEST_VALUE = 500
CONVERT = "Save it again as compressed .mha, for example with SimpleITK or 3D Slicer."


def is_metaimage(head: bytes) -> bool:
    """Whether the first bytes are those of a MetaImage header."""
    return re.match(rb"(ObjectType|NDims|Comment|ObjectSubType|BinaryData)\s*=", head) is not None


def read_metaimage(file: VolumeFile) -> sitk.Image:
    """Reads it with all checks.

    Raises:
      CaseError: truncated, too long, no volume, or a form that is not read.
      EOFError: says what is wrong with the header.
    """
    fields, length = _fields(file.path)
    sizes, kind, packed = _check(file, fields)
    affine = np.column_stack(
        [
            np.array(_numbers(fields, _one_of(fields, AXES), len(sizes) ** 2))
            .reshape(len(sizes), -1)[:3, :3]
            .T
            * _numbers(fields, _one_of(fields, SPACING), len(sizes))[:3],
            _numbers(fields, _one_of(fields, ORIGIN), len(sizes))[:3],
        ]
    )
    alone = {**fields, "CompressedData": "False", "ElementDataFile": "LOCAL"}
    alone.pop("CompressedDataSize", None)
    header = "".join(f"{key} = {value}\n" for key, value in alone.items()).encode()
    place = itk_place(file, header, ".mha", sizes)
    check_place(file, place, affine, sizes)
    path, before = _voxels(file, fields["ElementDataFile"], length)
    with path.open("rb") as stream:
        stream.seek(before)
        if not packed:
            values = read_voxels(file, stream, sizes[:3], kind, before)
        else:
            _check_packed_size(file, fields, path.stat().st_size - before)
            values = read_voxels(file, Unpacked(stream, parts=False), sizes[:3], kind)
    return placed_image(file, values, place)


def _check(file: VolumeFile, fields: dict[str, str]) -> tuple[list[int], np.dtype, bool]:
    """Sizes, type of a stored voxel, and whether voxels are compressed."""
    if fields.get("ObjectType", "Image") != "Image":
        raise EOFError(f"a header of ObjectType {fields['ObjectType']!r}")
    rank = _integers(fields, "NDims", 1)[0]
    if rank not in (2, 3, 4):
        raise EOFError(f"a header of {rank} dimensions")
    sizes = _integers(fields, "DimSize", rank)
    if min(sizes) < 1:
        raise EOFError(f"a header of {'x'.join(map(str, sizes))} voxels")
    channels = _integers({"ElementNumberOfChannels": "1", **fields}, "ElementNumberOfChannels", 1)
    if channels != [1]:
        raise file.error(f"has {channels[0]} channels, not one")
    file.check_shape(sizes)
    if fields.get("ElementType") not in KINDS:
        raise EOFError(f"a header of ElementType {fields.get('ElementType')!r}")
    for name in YES_OR_NO:
        if fields.get(name, "True") not in YES + NO:
            raise EOFError(f"a header of {name} {fields[name]!r}")
    usual = {"HeaderSize": ("0",), UNREAD[1]: ("1",), UNREAD[2]: ("0",)}
    for name in UNREAD:
        if fields.get(name, usual[name][0]) not in usual[name]:
            raise file.unreadable(f"a header of {name} {fields[name]!r}", CONVERT)
    if fields.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise file.unreadable("a header in other units than mm", CONVERT)
    if fields.get("BinaryData", "False") not in YES:
        raise file.unreadable("voxels as text, not binary", CONVERT)
    orders = {fields[name] in YES for name in YES_OR_NO[1:3] if name in fields}
    if len(orders) > 1:
        raise EOFError("a header with two byte orders")
    kind = np.dtype(KINDS[fields["ElementType"]]).newbyteorder(">" if orders == {True} else "<")
    return sizes, kind, fields.get("CompressedData", "False") in YES


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The `Key = value` lines, of which ElementDataFile is the last, and their length."""
    with path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
    fields: dict[str, str] = {}
    length = 0
    for line in head.split(b"\n"):
        length += len(line) + 1
        try:
            key, equals, value = line.decode("ascii").rstrip("\r").partition("=")
        except UnicodeDecodeError:
            break
        key, value = key.strip(), value.strip()
        plain = key.replace("_", "").replace(" ", "").isalnum() and value.isprintable()
        if not equals or not plain or key in fields or len(value) > LONGEST_VALUE:
            break
        fields[key] = value
        if key == "ElementDataFile":
            return fields, length
    raise EOFError(f"a header that breaks off after {len(fields)} fields")


def _one_of(fields: dict[str, str], names: tuple[str, ...]) -> str:
    """The one of the names that the header uses. Without it the volume would have no place."""
    used = [name for name in names if name in fields]
    if len(used) != 1:
        raise EOFError(f"a header with {len(used)} lines of {' or '.join(names)}, not one")
    return used[0]


def _voxels(file: VolumeFile, name: str, length: int) -> tuple[Path, int]:
    """The file with the voxels, and where they begin in it."""
    if name.upper() == "LOCAL":
        return file.path, length
    return file.voxel_file(name, CONVERT), 0


def _check_packed_size(file: VolumeFile, fields: dict[str, str], found: int) -> None:
    if "CompressedDataSize" not in fields:
        return
    expected = _integers(fields, "CompressedDataSize", 1)[0]
    if found < expected:
        raise file.error(f"is truncated: {found:,} of {expected:,} compressed bytes")
    if found > expected:
        raise file.error(
            f"has {found:,} compressed bytes, more than the {expected:,} of its header"
        )


def _integers(fields: dict[str, str], name: str, count: int) -> list[int]:
    numbers = _numbers(fields, name, count)
    if any(number != int(number) for number in numbers):
        raise EOFError(f"a header of {name} {fields[name]!r}")
    return [int(number) for number in numbers]


def _numbers(fields: dict[str, str], name: str, count: int) -> list[float]:
    """The field as `count` finite numbers."""
    try:
        numbers = [float(word) for word in fields.get(name, "").split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise EOFError(f"a header of {name} {fields.get(name, '')!r}, not {count} numbers")
    return numbers
