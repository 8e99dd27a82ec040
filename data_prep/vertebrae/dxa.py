"""DXA results: reads dxa.csv, applies the label rule, and picks the result that belongs to a CT.

Label of a vertebra (docs/method.md): a given `osteoporosis` comes first; else T-score <= -2.5; else
BMD against the reference of scanner, level and sex.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections import defaultdict
from pathlib import Path

from data_prep.csv_input import Row, read_table, refuse_duplicates, unknown_columns
from data_prep.findings import Findings
from data_prep.vertebrae.device_spelling import question
from data_prep.vertebrae.dxa_columns import refuse_wrong_columns
from data_prep.vertebrae.dxa_doubts import result_doubts
from data_prep.vertebrae.exam_dates import FIRST_DXA, exam_date
from data_prep.vertebrae.scanners import T_SCORE_OSTEOPOROSIS, DeviceTable, t_score
from osteojax.data.devices import device_name
from osteojax.data.vertebrae import LEVELS, UNKNOWN_DEVICE
from osteojax.errors import CaseError

REQUIRED = ("patient_id", "level", "device", "bmd_g_cm2")
OPTIONAL = ("t_score", "osteoporosis", "dxa_date")
MAX_GAP_DAYS = 183
"""Largest gap between CT and DXA: six months (docs/method.md)."""
_TOTAL = re.compile(r"[LT]\d+\W*(TO|BIS)?\W*[LT]?\d+|.*(TOTAL|MEAN|AVERAGE|SPINE|HIP|FEM|NECK).*")


@dataclasses.dataclass(frozen=True)
class DxaResult:
    """One measured vertebra.

    Attributes:
      level: "L1".
      device: DXA scanner, a name of the device table, or "unknown".
      bmd_g_cm2: in g/cm^2 of that scanner, or None.
      t_score: given, or from the reference; None where there is neither.
      osteoporosis: 1, 0, or None where no rule gives a label.
      date: of the measurement, or None.
    """

    level: str
    device: str
    bmd_g_cm2: float | None
    t_score: float | None
    osteoporosis: int | None
    date: datetime.date | None = None


DxaTable = dict[str, list[DxaResult]]
"""patient_id -> results, in the table's order."""


@dataclasses.dataclass(frozen=True)
class Person:
    """What the cohort says of a patient.

    Attributes:
      sex: "F", "M" or None.
      earliest_birth: that age and date of a CT allow, or None.
    """

    sex: str | None = None
    earliest_birth: datetime.date | None = None


@dataclasses.dataclass(frozen=True)
class DxaReading:
    """Content of dxa.csv.

    Attributes:
      results: of each patient.
      patients: of all rows, the failed ones too, in the table's order.
      notes: sentences for the user.
    """

    results: DxaTable
    patients: list[str]
    notes: list[str]


def read_dxa(
    path: str | Path,
    devices: DeviceTable,
    people: dict[str, Person],
    findings: Findings,
) -> DxaReading:
    """Reads dxa.csv and labels every result.

    Args:
      people: by patient_id.
      findings: to which failures and doubts of rows are added.

    Raises:
      UserError: a broken table: no such file, a missing column, the same result twice, a column of
        another unit or quantity.
    """
    rows = read_table(path, REQUIRED, ("patient_id", "level"))
    refuse_duplicates([_plain(row) for row in rows], ("patient_id", "level", "device", "dxa_date"))
    refuse_wrong_columns(rows)
    results: DxaTable = defaultdict(list)
    for row in rows:
        try:
            patient = row.identifier("patient_id")
            person = people.get(patient, Person())
            result = _result(row, devices, person)
        except CaseError as error:
            findings.failures.append(error)
            continue
        doubts = result_doubts(row, result.level, result.device, person.sex, devices)
        if not findings.doubt(doubts):
            results[patient].append(result)
    patients = list(dict.fromkeys(name for row in rows if (name := row.text("patient_id"))))
    notes = unknown_columns(rows, REQUIRED + OPTIONAL)
    return DxaReading(dict(results), patients, notes)


def _plain(row: Row) -> Row:
    """The row with its level, device and date in the forms in which they are compared."""
    plain = {
        "level": _level(row.text("level") or ""),
        "device": device_name(row.text("device") or UNKNOWN_DEVICE),
        "dxadate": (row.text("dxa_date") or "").replace("-", ""),
    }
    return dataclasses.replace(row, values=row.values | plain)


def _level(text: str) -> str:
    return text.upper().replace(" ", "")


def _result(row: Row, devices: DeviceTable, person: Person) -> DxaResult:
    level = _level(row.required("level"))
    if level not in LEVELS:
        expected = "a row is one vertebra, T1-T12 or L1-L6"
        if _TOTAL.fullmatch(level):
            raise row.error("level", f"Leave totals of several vertebrae out: {expected}.")
        raise row.error("level", f"Leave totals out: {expected}.")
    device = _device(row, devices)
    bmd = row.number("bmd_g_cm2", 0, float("inf"), "In g/cm^2.")
    if bmd is not None and bmd > 10:
        raise row.error("bmd_g_cm2", "Looks like mg/cm^2 or mg/cm^3: convert areal BMD to g/cm^2.")
    if bmd is not None and not 0.1 <= bmd <= 3:
        raise row.error("bmd_g_cm2", "Expected 0.1 to 3 g/cm^2.")
    score = row.number("t_score", -10, 10, "In standard deviations.")
    given = row.flag("osteoporosis")
    if bmd is None and score is None and given is None:
        raise row.error(
            "bmd_g_cm2", "Give BMD, t_score or osteoporosis.", "is empty, like the rest"
        )
    date = exam_date(row, "dxa_date", FIRST_DXA)
    if date is not None and person.earliest_birth is not None and date < person.earliest_birth:
        problem = (
            f"is {date}, before the patient's birth: age and ct_date of the cohort give "
            f"{person.earliest_birth} at the earliest"
        )
        raise row.error("dxa_date", "Correct the date, or the age.", problem)
    if score is None and bmd is not None:
        score = t_score(devices, device, level, person.sex, bmd)
    label = given if given is not None else (score is not None and score <= T_SCORE_OSTEOPOROSIS)
    labelled = given is not None or score is not None
    return DxaResult(
        level=level,
        device=device,
        bmd_g_cm2=bmd,
        t_score=None if score is None else round(score, 4),
        osteoporosis=int(label) if labelled else None,
        date=date,
    )


def _device(row: Row, devices: DeviceTable) -> str:
    device = device_name(row.text("device") or UNKNOWN_DEVICE)
    if device in devices or device == UNKNOWN_DEVICE:
        return device
    asked, known = question(device, devices), ", ".join(devices)
    raise row.error("device", f"{asked}Known: {known}; empty for unknown; others by --devices.")


def results_for_ct(
    results: list[DxaResult], ct_date: datetime.date | None
) -> tuple[dict[str, DxaResult], int, list[str]]:
    """The result of each level that belongs to a CT.

    Of several results the one nearest in date is taken; without dates, the first of the table. A
    result whose date is more than six months from the CT's is not used.

    Returns:
      (level -> result, number of levels left out because of the gap, levels for which another
      result is as near and has another label).
    """
    chosen: dict[str, DxaResult] = {}
    dropped = 0
    disputed = []
    for level in dict.fromkeys(result.level for result in results):
        of_level = [result for result in results if result.level == level]
        best = min(of_level, key=lambda result: _gap_days(result, ct_date))  # min keeps the first
        gap = _gap_days(best, ct_date)
        if MAX_GAP_DAYS < gap < float("inf"):
            dropped += 1
            continue
        chosen[level] = best
        labels = {own.osteoporosis for own in of_level if _gap_days(own, ct_date) == gap}
        if {0, 1} <= labels:
            disputed.append(level)
    return chosen, dropped, disputed


def _gap_days(result: DxaResult, ct_date: datetime.date | None) -> float:
    if ct_date is None or result.date is None:
        return float("inf")
    return abs((result.date - ct_date).days)
