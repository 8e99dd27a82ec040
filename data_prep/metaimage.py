"""Checks the header of a MetaImage file (.mha, .mhd) before ITK sees it.

ITK's parser does not check it: a damaged header can corrupt the process' memory and kill it.
"""

from __future__ import annotations

import math
from pathlib import Path

HEADER_BYTES = 1 << 16
ELEMENT_TYPES = frozenset(
    f"MET_{name}"
    for name in (
        "CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG", "ULONG", "LONG_LONG",
        "ULONG_LONG", "FLOAT", "DOUBLE",
    )
)  # fmt: skip
PER_AXIS = ("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize")
PER_AXIS_PAIR = ("TransformMatrix", "Rotation", "Orientation")
YES_OR_NO = (
    "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData",
)  # fmt: skip
LONGEST_VALUE = 500
MOST_VOXELS = 1 << 32


def check_metaimage(path: Path) -> None:
    """Raises EOFError that says what is wrong with the header."""
    fields = _fields(path)
    if fields.get("ObjectType", "Image") != "Image":
        raise EOFError(f"a header of ObjectType {fields['ObjectType']!r}")
    rank = _integers(fields, "NDims", 1)[0]
    if rank not in (2, 3, 4):
        raise EOFError(f"a header of {rank} dimensions")
    sizes = _integers(fields, "DimSize", rank)
    if min(sizes) < 1 or math.prod(sizes) > MOST_VOXELS:
        raise EOFError(f"a header of {'x'.join(map(str, sizes))} voxels")
    if fields.get("ElementType") not in ELEMENT_TYPES:
        raise EOFError(f"a header of ElementType {fields.get('ElementType')!r}")
    if "ElementNumberOfChannels" in fields:
        _integers(fields, "ElementNumberOfChannels", 1)
    for names, count in ((PER_AXIS, rank), (PER_AXIS_PAIR, rank * rank)):
        for name in names:
            if name in fields:
                _numbers(fields, name, count)
    for name in YES_OR_NO:
        if fields.get(name, "True") not in ("True", "False", "true", "false", "1", "0"):
            raise EOFError(f"a header of {name} {fields[name]!r}")


def _fields(path: Path) -> dict[str, str]:
    """The `Key = value` lines, of which ElementDataFile is the last."""
    with path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
    fields: dict[str, str] = {}
    for line in head.split(b"\n"):
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
            return fields
    raise EOFError(f"a header that breaks off after {len(fields)} fields")


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
