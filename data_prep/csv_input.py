"""Reads a user's CSV table as text; each field is then converted, with errors that name its place.

A broken table (no such file, a column missing) is a UserError and ends the run. A bad value is a
CaseError: its row becomes a failure, and the other rows are used.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import pandas as pd

from osteojax.errors import CaseError, UserError

EMPTY = frozenset(["", "na", "n/a", "nan", "none", "null"])
YES = frozenset(["1", "1.0", "true", "yes", "y"])
NO = frozenset(["0", "0.0", "false", "no", "n"])


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table, as text.

    Attributes:
      table: file name, for messages.
      line: line number in the file, the header being line 1.
      case: the user's own id of the row, for messages.
      values: column -> stripped text; "" where there is no value.
    """

    table: str
    line: int
    case: str
    values: dict[str, str]

    def text(self, column: str) -> str | None:
        """The field, or None where it is empty or the column is absent."""
        return self.values.get(column) or None

    def required(self, column: str) -> str:
        """The field. Raises CaseError where it is empty."""
        value = self.text(column)
        if value is None:
            raise self.error(column, "Fill it in.", "is empty")
        return value

    def number(self, column: str, low: float, high: float, remedy: str) -> float | None:
        """The field as a number in [low, high], or None. Raises CaseError."""
        value = self.text(column)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            raise self.error(column, f"Expected a number. {remedy}") from None
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
        problem = problem or f"is {self.values.get(column)!r}"
        return CaseError(self.case, f"{self.table} line {self.line}: {column} {problem}.", remedy)


def read_table(
    path: str | Path, required: tuple[str, ...], id_columns: tuple[str, ...]
) -> list[Row]:
    """Reads a CSV file.

    Args:
      path: UTF-8, comma separated, with a header line.
      required: columns that the table must have.
      id_columns: columns whose values, joined by "/", name a row in messages.

    Raises:
      UserError: no such file, not a table, a required column missing, or no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give the path of a CSV table.")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeError) as error:  # ValueError includes pandas' parser errors
        reason = " ".join(str(error).split())  # pandas may end a message with a line break
        raise UserError(f"{path}: not a CSV table in UTF-8 ({reason}). Export it again.") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    missing = [column for column in required if column not in frame.columns]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; its columns are "
            f"{', '.join(frame.columns)}. Required: {', '.join(required)}, separated by commas."
        )
    if frame.empty:
        raise UserError(f"{path}: the table has no rows.")
    rows = []
    for position, record in enumerate(frame.to_dict("records")):
        values = {str(key): _clean(value) for key, value in record.items()}
        name = "/".join(values[column] for column in id_columns if values.get(column))
        line = position + 2
        rows.append(Row(path.name, line, name or f"line {line}", values))
    return rows


def _clean(value: object) -> str:
    text = str(value).strip()
    return "" if text.casefold() in EMPTY else text


def refuse_duplicates(rows: list[Row], columns: tuple[str, ...]) -> None:
    """Raises UserError where two rows agree in all of `columns`."""
    seen: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = tuple(row.values.get(column, "").casefold() for column in columns)
        if key in seen:
            named = ", ".join(f"{c} {row.values[c] or 'empty'}" for c in columns if c in row.values)
            raise UserError(
                f"{row.table}: lines {seen[key]} and {row.line} are the same result ({named}). "
                "Keep one of them."
            )
        seen[key] = row.line
