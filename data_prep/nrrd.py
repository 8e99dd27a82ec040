"""Reads NRRD volumes: raw or gzip, with their header (.nrrd) or beside it (.nhdr).

Source of the layout: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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

MOST_HEADER_BYTES = 1 << 20
KINDS = {
    name: kind
    for kind, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, "
        "int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
LPS_FROM_SPACE = {
    name: signs
    for signs, names in {
        (1.0, 1.0, 1.0): ("left-posterior-superior", "lps"),
        (-1.0, -1.0, 1.0): ("right-anterior-superior", "ras"),
        (1.0, -1.0, 1.0): ("left-anterior-superior", "las"),
    }.items()
    for name in names
}
NEEDED = ("type", "dimension", "sizes", "encoding", "space", "space directions", "space origin")
OTHER_NAMES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
HARMLESS = frozenset(
    [
        "endian",
        "data file",
        "line skip",
        "byte skip",
        "kinds",
        "centers",
        "centerings",
        "content",
        "thicknesses",
        "labels",
        "units",
        "space units",
        "sample units",
        "sampleunits",
        "measurement frame",
        "min",
        "max",
        "old min",
        "oldmin",
        "old max",
        "oldmax",
        "number",
        "block size",
        "blocksize",
    ]
)
"""Fields that may stand beside those that are needed. Another one may change what voxels mean."""
CONVERT = "Save it as NIfTI-1, or as NRRD with encoding gzip and its space in the header."


def is_nrrd(head: bytes) -> bool:
    """Whether the first bytes are those of an NRRD file."""
    return re.match(rb"NRRD000[1-5]\r?\n", head) is not None


def read_nrrd(file: VolumeFile) -> sitk.Image:
    """Reads it with all checks.

    Raises:
      CaseError: truncated, too long, no volume, an encoding or a space that is not read.
      EOFError: says what is wrong with the header.
    """
    with file.path.open("rb") as stream:
        head = stream.read(MOST_HEADER_BYTES)
        lines, length = _header_lines(head)
        fields = _fields(lines)
        sizes, kind = _sizes(file, fields), _kind(file, fields)
        for name in ("line skip", "byte skip"):
            if fields.get(name, "0") != "0":
                raise file.unreadable(f"a header with {name} {fields[name]!r}", CONVERT)
        attached = [line for line in lines if not re.match(rb"data ?file:", line.lower())]
        place = itk_place(file, b"\n".join(attached) + b"\n\n", ".nrrd", sizes)
        check_place(file, place, _affine(file, fields), sizes)
        packed = _packed(file, fields)
        if "data file" not in fields:
            stream.seek(length)
            source = Unpacked(stream, parts=False) if packed else stream
            values = read_voxels(file, source, sizes, kind, 0 if packed else length)
            return placed_image(file, values, place)
    with file.voxel_file(fields["data file"], CONVERT).open("rb") as stream:
        source = Unpacked(stream, parts=False) if packed else stream
        return placed_image(file, read_voxels(file, source, sizes, kind), place)


def _header_lines(head: bytes) -> tuple[list[bytes], int]:
    """The header's lines, and its length with the blank line that ends it."""
    lines: list[bytes] = []
    at = 0
    while at < len(head):
        end = head.find(b"\n", at)
        line = head[at : end if end >= 0 else len(head)].removesuffix(b"\r")
        at = end + 1 if end >= 0 else len(head)
        if not line:
            return lines, at
        lines.append(line)
    if len(head) == MOST_HEADER_BYTES:
        raise EOFError("a header that does not end")
    return lines, at


def _fields(lines: list[bytes]) -> dict[str, str]:
    """The fields. Comments and the user's own keys (`key:=value`) are left out."""
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith(b"#") or re.match(rb"[^:]*:=", line):
            continue
        try:
            name, colon, value = line.decode("ascii").partition(": ")
        except UnicodeDecodeError:
            raise EOFError("a header with a line that is not text") from None
        name = OTHER_NAMES.get(name, name)
        if not colon or (name not in NEEDED and name not in HARMLESS):
            raise EOFError(f"a header with the line {line[:40].decode('ascii', 'replace')!r}")
        if name in fields:
            raise EOFError(f"a header with two lines {name!r}")
        fields[name] = value.strip()
    for name in NEEDED:
        if name not in fields:
            raise EOFError(f"a header without {name!r}")
    return fields


def _sizes(file: VolumeFile, fields: Mapping[str, str]) -> list[int]:
    if not re.fullmatch(r"\d{1,10}( +\d{1,10})*", fields["sizes"]):
        raise EOFError(f"a header of sizes {fields['sizes'][:40]!r}")
    sizes = [int(word) for word in fields["sizes"].split()]
    if str(len(sizes)) != fields["dimension"]:
        raise EOFError(f"a header of dimension {fields['dimension'][:40]!r}")
    if len(sizes) != 3:
        raise file.error(f"is {'x'.join(map(str, sizes))}, not a volume")
    file.check_shape(sizes)
    return sizes


def _kind(file: VolumeFile, fields: Mapping[str, str]) -> np.dtype:
    """The type of a stored voxel, with its byte order."""
    if fields["type"].lower() not in KINDS:
        raise EOFError(f"a header of type {fields['type'][:40]!r}")
    kind = np.dtype(KINDS[fields["type"].lower()])
    if kind.itemsize == 1:
        return kind
    order = fields.get("endian", "").lower()
    if order not in ("little", "big"):
        raise EOFError(f"a header of endian {order[:40]!r}")
    return kind.newbyteorder(">" if order == "big" else "<")


def _packed(file: VolumeFile, fields: Mapping[str, str]) -> bool:
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise file.unreadable(f"encoding {encoding[:40]!r}, not raw or gzip", CONVERT)
    return encoding != "raw"


def _affine(file: VolumeFile, fields: Mapping[str, str]) -> np.ndarray:
    """f64[3, 4], LPS."""
    space = fields["space"].lower()
    if space not in LPS_FROM_SPACE:
        raise file.unreadable(f"space {space[:40]!r}, not LPS, RAS or LAS", CONVERT)
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if set(units) - {"mm", ""}:
        raise file.unreadable("a space in other units than mm", CONVERT)
    columns = [_vector(text) for text in re.findall(r"\([^()]*\)", fields["space directions"])]
    left = re.sub(r"\([^()]*\)", "", fields["space directions"]).strip()
    if len(columns) != 3 or left:
        raise EOFError(f"a header of space directions {fields['space directions'][:60]!r}")
    columns.append(_vector(fields["space origin"]))
    return np.array(LPS_FROM_SPACE[space])[:, None] * np.array(columns).T


def _vector(text: str) -> list[float]:
    """Three finite numbers in parentheses."""
    number = r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*"
    match = re.fullmatch(rf"\({number},{number},{number}\)", text)
    try:
        numbers = [float(word) for word in match.groups()] if match else []
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise EOFError(f"a header with the vector {text[:40]!r}")
    return numbers
