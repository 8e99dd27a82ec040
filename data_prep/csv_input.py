"""Reads a user's CSV table as text; each field is then converted, with errors that name its place.

A broken table (no such file, a column missing) is a UserError and ends the run. A bad value is a
CaseError: its row becomes a failure, and the other rows are used.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from data_prep.csv_text import column_key, read_text
from osteojax.errors import CaseError, UserError

EMPTY = frozenset(["", "na", "n/a", "nan", "none", "null"])
YES = frozenset(["1", "1.0", "true", "yes", "y"])
NO = frozenset(["0", "0.0", "false", "no", "n"])
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
_SPOILT_ID = re.compile(
    r"\d([.,]\d+)?E\+\d+|#(N/A|NAME\?|REF!|VALUE!|DIV/0!|NUM!|NULL!)", re.IGNORECASE
)
"""An id of many digits as a spreadsheet shows it, 1.23457E+11, or a formula's error, #N/A."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table, as text.

    Attributes:
      table: file name, for messages.
      line: line number in the file, the header being line 1.
      case: the user's own id of the row, for messages.
      values: `column_key` of each column -> clean text; "" where there is no value.
      columns: names of the columns as written, of the whole table.
      decimal_comma: whether 0,95 is a number: where semicolons or tabs separate the fields.
    """

    table: str
    line: int
    case: str
    values: dict[str, str]
    columns: tuple[str, ...] = ()
    decimal_comma: bool = False

    def text(self, column: str) -> str | None:
        """The field, or None where it is empty or the column is absent. Case, spaces and
        underscores of a column's name do not matter."""
        return self.values.get(column_key(column)) or None

    def required(self, column: str) -> str:
        """The field. Raises CaseError where it is empty."""
        value = self.text(column)
        if value is None:
            raise self.error(column, "Fill it in.", "is empty")
        return value

    def identifier(self, column: str) -> str:
        """The field as an id. Raises CaseError where it is empty or a spreadsheet has lost it."""
        value = self.required(column)
        if _SPOILT_ID.fullmatch(value):
            remedy = (
                "A spreadsheet has replaced the id: format the column as text and export again."
            )
            raise self.error(column, remedy)
        return value

    def number(self, column: str, low: float, high: float, remedy: str) -> float | None:
        """The field as a number in [low, high], or None. Raises CaseError."""
        value = self.text(column)
        if value is None:
            return None
        plain = value.replace("\N{MINUS SIGN}", "-")
        if self.decimal_comma and _DECIMAL_COMMA.fullmatch(plain):
            plain = plain.replace(",", ".")
        if not _NUMBER.fullmatch(plain):
            raise self.error(column, f"Expected a number, with a point as 0.95. {remedy}")
        number = float(plain)
        if not low <= number <= high:  # also refuses NaN
            raise self.error(column, f"Expected {low:g} to {high:g}. {remedy}")
        return number

    def flag(self, column: str) -> bool | None:
        """The field as yes or no, or None. Raises CaseError."""
        value = self.text(column)
        if value is None:
            return None
        if value.casefold() in YES | NO:
            return value.casefold() in YES
        raise self.error(column, "Expected 1, 0, yes, no, true or false.")

    def date(self, column: str) -> datetime.date | None:
        """The field as a date, or None. Raises CaseError."""
        value = self.text(column)
        if value is None:
            return None
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            raise self.error(column, "Expected a date as YYYY-MM-DD.") from None

    def error(self, column: str, remedy: str, problem: str | None = None) -> CaseError:
        """A failure of this row, naming file, line, column and value."""
        problem = problem or f"is {self.values.get(column_key(column))!r}"
        return CaseError(self.case, f"{self.table} line {self.line}: {column} {problem}.", remedy)


def read_table(
    path: str | Path, required: tuple[str, ...], id_columns: tuple[str, ...]
) -> list[Row]:
    """Reads a CSV file.

    Args:
      path: of a table with a header line; `csv_text` says in which forms it may be.
      required: columns that the table must have.
      id_columns: columns whose values, joined by "/", name a row in messages.

    Raises:
      UserError: no such file, not a table, a required column missing, two columns whose names
        differ by case or spaces only, a row with more or fewer fields than the header, or no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give the path of a CSV table.")
    text = read_text(path, required)
    keys = [column_key(name) for name in text.columns]
    missing = [column for column in required if column_key(column) not in keys]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; its columns are "
            f"{', '.join(text.columns)}. Required: {', '.join(required)}, separated by commas."
        )
    if not text.records:
        raise UserError(f"{path}: the table has no rows.")
    rows = []
    for line, fields in text.records:
        values = {key: _value(field) for key, field in zip(keys, fields, strict=True)}
        named = [values.get(column_key(column), "") for column in id_columns]
        name = "/".join(value for value in named if value)
        comma = text.separator != ","
        rows.append(Row(path.name, line, name or f"line {line}", values, text.columns, comma))
    return rows


def _value(field: str) -> str:
    return "" if field.casefold() in EMPTY else field


def unknown_columns(rows: list[Row], known: Iterable[str]) -> list[str]:
    """A sentence about the table's columns that are not read, or none; names that resemble a known
    column that the table lacks are said to."""
    if not rows:
        return []
    present = {column_key(name) for name in rows[0].columns}
    lacking = {column_key(name): name for name in known if column_key(name) not in present}
    read = {column_key(name) for name in known}
    described = []
    for name in rows[0].columns:
        if column_key(name) in read:
            continue
        near = difflib.get_close_matches(column_key(name), list(lacking), 1, 0.75)
        described.append(f"{name} (is it {lacking[near[0]]}?)" if near else name)
    if not described:
        return []
    return [f"{rows[0].table}: these columns are not read: {', '.join(described)}."]


def refuse_duplicates(rows: list[Row], columns: tuple[str, ...]) -> None:
    """Raises UserError where two rows agree in all of `columns`, but for case."""
    seen: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = tuple((row.text(column) or "").casefold() for column in columns)
        if key in seen:
            named = ", ".join(
                f"{column} {row.text(column) or 'empty'}"
                for column in columns
                if column_key(column) in row.values
            )
            raise UserError(
                f"{row.table}: lines {seen[key]} and {row.line} are the same result ({named}). "
                "Keep one of them."
            )
        seen[key] = row.line
