"""What spreadsheets, databases and people do to a CSV, each as a function of a table of text.

Each takes and returns rows of fields, of which the first is the header; what concerns the file as a
whole (separator, encoding, ends of lines) is in `File`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from random import Random

Rows = list[list[str]]
NUMBERS = ("age", "bmd_g_cm2", "t_score")
DATES = ("ct_date", "dxa_date")
IDS = ("patient_id", "scan_id")
FLAGS = ("contrast", "osteoporosis")
UNSEEN = (" ", "\u00a0", "\u200b", "\ufeff", "\u2009", "\u202f", "\u200e")


def _name(header: str) -> str:
    return "".join(
        c for c in header.lower().replace(" ", "_") if c in "abcdefghijklmnop_qrstuvwxyz2"
    )


def _cells(rows: Rows, names: tuple[str, ...], change: Callable[[str], str]) -> Rows:
    """Changes the fields of some columns that are not empty."""
    where = {i for i, header in enumerate(rows[0]) if _name(header) in names}
    body = [[change(f) if f and i in where else f for i, f in enumerate(row)] for row in rows[1:]]
    return [rows[0], *body]


def other_case(rows: Rows, rng: Random) -> Rows:
    change = rng.choice([str.upper, str.title, str.capitalize])
    return [[change(name) for name in rows[0]], *rows[1:]]


def spaced_header(rows: Rows, rng: Random) -> Rows:
    return [[name.replace("_", rng.choice([" ", "_", "-"])) + " " for name in rows[0]], *rows[1:]]


def unseen_characters(rows: Rows, rng: Random) -> Rows:
    def change(field: str) -> str:
        extra = rng.choice(UNSEEN)
        return rng.choice([field, extra + field, field + extra])

    return [[change(field) for field in row] for row in rows]


def empty_columns(rows: Rows, rng: Random) -> Rows:
    more = [""] * rng.randint(1, 3)
    return [[*row, *more] for row in rows]


def trailing_separator(rows: Rows, rng: Random) -> Rows:
    """On all rows but the header's, or on one."""
    chosen = rng.choice([range(1, len(rows)), [rng.randrange(1, len(rows))]])
    return [[*row, ""] if i in chosen else row for i, row in enumerate(rows)]


def short_row(rows: Rows, rng: Random) -> Rows:
    at = rng.randrange(1, len(rows))
    return [*rows[:at], rows[at][: -rng.randint(1, 2)], *rows[at + 1 :]]


def blank_rows(rows: Rows, rng: Random) -> Rows:
    blank = rng.choice([[], [""] * len(rows[0]), [" "] * len(rows[0])])
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(rows))
        rows = [*rows[:at], blank, *rows[at:]]
    return rows


def lost_zeros(rows: Rows, rng: Random) -> Rows:
    return _cells(rows, IDS, lambda field: field.lstrip("0") or "0")


def decimal_commas(rows: Rows, rng: Random) -> Rows:
    return _cells(rows, NUMBERS, lambda field: field.replace(".", ","))


def some_decimal_commas(rows: Rows, rng: Random) -> Rows:
    def change(field: str) -> str:
        return field.replace(".", ",") if rng.random() < 0.5 else field

    return _cells(rows, NUMBERS, change)


def other_dates(rows: Rows, rng: Random) -> Rows:
    form = rng.choice(
        ["{2}.{1}.{0}", "{1}/{2}/{0}", "{0}{1}{2}", "{0}-{1}-{2} 00:00:00", "{0}/{1}/{2}"]
    )
    return _cells(rows, DATES, lambda field: form.format(*field.split("-")))


def numbers_rewritten(rows: Rows, rng: Random) -> Rows:
    form = rng.choice(["{:g}", "{:.6f}", "{:.3e}", " {:g} "])
    return _cells(rows, NUMBERS, lambda field: form.format(float(field)))


def other_minus(rows: Rows, rng: Random) -> Rows:
    return _cells(rows, NUMBERS, lambda field: field.replace("-", "\N{MINUS SIGN}"))


def other_flags(rows: Rows, rng: Random) -> Rows:
    yes, no = rng.choice([("TRUE", "FALSE"), ("Yes", "no"), ("1.0", "0.0"), ("WAHR", "FALSCH")])
    return _cells(rows, FLAGS, lambda field: {"1": yes, "0": no}[field])


def ids_as_formulas(rows: Rows, rng: Random) -> Rows:
    return _cells(rows, IDS, lambda field: f'="{field}"')


def large_ids(rows: Rows, rng: Random) -> Rows:
    return _cells(rows, IDS, lambda field: f"{1e11 + len(field):.5E}")


def lower_levels(rows: Rows, rng: Random) -> Rows:
    return _cells(rows, ("level",), str.lower)


def other_order(rows: Rows, rng: Random) -> Rows:
    order = rng.sample(range(len(rows[0])), len(rows[0]))
    return [[row[i] for i in order] for row in rows]


def another_column(rows: Rows, rng: Random) -> Rows:
    return [["remark", *rows[0]], *(["seen, twice", *row] for row in rows[1:])]


def twin_column(rows: Rows, rng: Random) -> Rows:
    at = rng.randrange(len(rows[0]))
    return [[*rows[0], rows[0][at].upper()], *([*row, ""] for row in rows[1:])]


def twin_row(rows: Rows, rng: Random) -> Rows:
    return [*rows, rng.choice(rows[1:])]


def thousandfold(rows: Rows, rng: Random) -> Rows:
    return _cells(rows, ("bmd_g_cm2",), lambda field: f"{1000 * float(field):g}")


MANGLINGS = (
    other_case, spaced_header, unseen_characters, empty_columns, trailing_separator, short_row,
    blank_rows, lost_zeros, decimal_commas, some_decimal_commas, other_dates, numbers_rewritten,
    other_minus, other_flags, ids_as_formulas, large_ids, lower_levels, other_order, another_column,
    twin_column, twin_row, thousandfold,
)  # fmt: skip
SHAPED = (trailing_separator, short_row, blank_rows)
"""After these, rows have other lengths than the header, so they come last. In this order, because a
separator behind a shortened row would be an empty field like any other."""
VALUES = (numbers_rewritten, other_dates, other_flags, thousandfold)
"""These read values, so they come first."""


@dataclasses.dataclass(frozen=True)
class File:
    """How a table is written."""

    separator: str
    encoding: str
    line_end: str
    quoting: int

    def write(self, rows: Rows) -> bytes:
        stream = io.StringIO()
        form = {"delimiter": self.separator, "lineterminator": self.line_end}
        csv.writer(stream, quoting=self.quoting, **form).writerows(rows)  # type: ignore[arg-type]
        return stream.getvalue().encode(self.encoding)


def some_file(rng: Random) -> File:
    return File(
        rng.choice([",", ",", ";", "\t"]),
        rng.choice(["utf-8", "utf-8-sig", "utf-16"]),
        rng.choice(["\n", "\r\n", "\r"]),
        rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    )


def mangled(rows: Rows, rng: Random) -> tuple[Rows, list[str]]:
    """The table after up to three changes, and their names."""
    chosen = rng.sample(MANGLINGS, rng.randint(0, 3))
    chosen.sort(key=lambda own: SHAPED.index(own) + 1 if own in SHAPED else -(own in VALUES))
    for change in chosen:
        rows = change(rows, rng)
    return rows, [change.__name__ for change in chosen]
