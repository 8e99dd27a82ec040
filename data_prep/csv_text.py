"""The text of a user's CSV: bytes become a header and records of clean fields, or a UserError.

The same table is written in many ways. These are read: UTF-8 and UTF-16 with a mark at the start;
fields separated by commas, semicolons or tabs; blank lines and lines of separators only; columns at
the right end that have neither a name nor a value; characters that nobody sees (zero-width spaces,
byte order marks, non-breaking spaces); `="0012"`, by which some programs keep a spreadsheet from
removing zeros. A record whose fields do not match the header is refused, because its values would
stand in wrong columns.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from osteojax.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_AS_TEXT = re.compile(r'="(.*)"')
_WITH_POINT, _WITH_COMMA = re.compile(r"[+-]?\d*\.\d+"), re.compile(r"[+-]?\d*,\d+")


@dataclasses.dataclass(frozen=True)
class Text:
    """A table as text.

    Attributes:
      columns: names in the header, as written.
      records: (number of the line in the file, a field per column).
      separator: a key of `SEPARATORS`.
    """

    columns: tuple[str, ...]
    records: list[tuple[int, list[str]]]
    separator: str


def read_text(path: Path, required: tuple[str, ...]) -> Text:
    """Reads a table.

    Args:
      required: columns by which the separator is recognised.

    Raises:
      UserError: no text, broken quotes, no header, two columns of one name, a record with more or
        fewer fields than the header, decimal points and commas in one column.
    """
    text = _decoded(path)
    text, separator = _separated(text, required)
    try:
        records = [record for record in _records(text, separator) if any(record[1])]
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table ({error}). Export it again.") from error
    if not records:
        raise UserError(f"{path}: not a CSV table (it is empty). Export it again.")
    (_, header), *rest = records
    _check_lengths(path, header, rest, separator)
    kept = _named_columns(path, header, rest)
    columns = tuple(header[i] for i in kept)
    _refuse_same_names(path, columns)
    chosen = [(line, [fields[i] for i in kept]) for line, fields in rest]
    if separator != ",":
        _refuse_mixed_decimals(path, columns, chosen)
    return Text(columns, chosen, separator)


def column_key(name: str) -> str:
    """The form in which names of columns are compared: "CT date" and "ct_date" are the same."""
    return re.sub(r"[\s_.-]", "", name.casefold())


def clean(field: str) -> str:
    """A field without the characters that nobody sees, and without space around it."""
    visible = "".join(
        " " if unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc") else c
        for c in field
        if unicodedata.category(c) != "Cf"
    ).strip()
    as_text = _AS_TEXT.fullmatch(visible)
    return as_text[1].strip() if as_text else visible


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeError as error:
        raise UserError(
            f"{path}: not a CSV table in UTF-8 ({error}). Export it again, in a spreadsheet as "
            '"CSV UTF-8".'
        ) from error
    if "\0" in text:
        raise UserError(f"{path}: not a CSV table (it holds NUL characters). Export it again.")
    return text


def _separated(text: str, required: tuple[str, ...]) -> tuple[str, str]:
    """The text without a first line "sep=;", and the separator: that line's, or the one by which
    most required columns are found."""
    first, _, rest = text.partition("\n")
    told = re.fullmatch(r"sep=(.)", first.strip("\r "), re.IGNORECASE)
    if told and told[1] in SEPARATORS:
        return "\n" + rest, told[1]  # lines keep their numbers
    wanted = {column_key(name) for name in required}

    def found(separator: str) -> int:
        try:
            header = next((own for _, own in _records(text, separator) if any(own)), [])
        except csv.Error:
            return 0
        return len(wanted & {column_key(name) for name in header})

    return text, max(SEPARATORS, key=found)  # of equal ones the first, the comma


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line, clean fields) of each record; its line is the one where it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line, columns = 1, 0
    for fields in reader:
        columns = columns or len(fields)
        for field in fields:
            # A field with a line break that holds as many separators as a line is several lines.
            if "\n" in field and columns > 1 and field.count(separator) >= columns - 1:
                raise csv.Error(f"a quotation mark in line {line} is not closed there")
        yield line, [clean(field) for field in fields]
        line = reader.line_num + 1


def _check_lengths(
    path: Path, header: list[str], records: list[tuple[int, list[str]]], separator: str
) -> None:
    for line, fields in records:
        if len(fields) != len(header):
            decimals = " and decimals with a point" if separator == "," else ""
            raise UserError(
                f"{path}: row {line} has {len(fields)} fields, the header {len(header)}. Give each "
                f"row one field per column, with no {SEPARATORS[separator]} behind the last; write "
                f"fields that hold {SEPARATORS[separator]} in quotation marks{decimals}."
            )


def _named_columns(
    path: Path, header: list[str], records: list[tuple[int, list[str]]]
) -> list[int]:
    """Positions of the columns that have a name."""
    for position in (i for i, name in enumerate(header) if not name):
        for line, fields in records:
            if fields[position]:
                raise UserError(
                    f"{path}: row {line} has {fields[position]!r} in column {position + 1}, which "
                    "has no name in the header. Name the column or empty it."
                )
    return [i for i, name in enumerate(header) if name]


def _refuse_same_names(path: Path, columns: tuple[str, ...]) -> None:
    seen: dict[str, str] = {}
    for name in columns:
        key = column_key(name)
        if key in seen:
            raise UserError(
                f"{path}: the columns {seen[key]!r} and {name!r} have the same name but for case, "
                "spaces and underscores. Keep one of them, or rename one."
            )
        seen[key] = name


def _refuse_mixed_decimals(
    path: Path, columns: tuple[str, ...], records: list[tuple[int, list[str]]]
) -> None:
    """Where commas may be decimal, a point may separate thousands: both in one column have no sure
    meaning."""
    for position, name in enumerate(columns):
        own = [(line, fields[position]) for line, fields in records]
        point = next((found for found in own if _WITH_POINT.fullmatch(found[1])), None)
        comma = next((found for found in own if _WITH_COMMA.fullmatch(found[1])), None)
        if point and comma:
            raise UserError(
                f"{path}: {name} is {point[1]!r} in row {point[0]} and {comma[1]!r} in row "
                f"{comma[0]}. Write all decimals of the table with a point."
            )
