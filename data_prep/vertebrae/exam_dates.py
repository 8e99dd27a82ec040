"""Dates of examinations: none is in the future, none is older than the method."""

from __future__ import annotations

import datetime

from data_prep.csv_input import Row

FIRST_DXA = datetime.date(1987, 1, 1)
"""The first DXA scanners were sold in 1987."""
FIRST_CT = datetime.date(1971, 10, 1)
"""The first patient was scanned by CT on 1 October 1971."""


def exam_date(row: Row, column: str, first: datetime.date) -> datetime.date | None:
    """The field as a date from `first` to today, or None. Raises CaseError."""
    date, today = row.date(column), datetime.date.today()
    if date is not None and date > today:
        raise row.error(column, "Correct the date.", f"is {date}, after today ({today})")
    if date is not None and date < first:
        raise row.error(column, "Correct the date.", f"is {date}, before there was such a scanner")
    return date


def earliest_birth(age: float | None, ct_date: datetime.date | None) -> datetime.date | None:
    """The earliest date of birth of a patient of a given age, in completed years, at a CT."""
    if age is None or ct_date is None:
        return None
    return ct_date - datetime.timedelta(days=int((age + 1) * 365.25) + 1)
