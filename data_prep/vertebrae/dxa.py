"""DXA results: reads dxa.csv, applies the label rule, and picks the result that belongs to a CT.

Label of a vertebra (docs/method.md): a given `osteoporosis` comes first; else T-score <= -2.5; else
BMD against the reference of scanner, level and sex.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections import defaultdict
from pathlib import Path

from data_prep.csv_input import Row, read_table, refuse_duplicates
from data_prep.vertebrae.scanners import T_SCORE_OSTEOPOROSIS, DeviceTable, t_score
from osteojax.data.devices import device_name
from osteojax.data.vertebrae import LEVELS, UNKNOWN_DEVICE
from osteojax.errors import CaseError

REQUIRED = ("patient_id", "level", "device", "bmd_g_cm2")
MAX_GAP_DAYS = 183
"""Largest gap between CT and DXA: six months (docs/method.md)."""


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


def read_dxa(
    path: str | Path, devices: DeviceTable, sex_of_patient: dict[str, str | None]
) -> tuple[DxaTable, list[CaseError]]:
    """Reads dxa.csv and labels every result.

    Returns:
      (results by patient, failures of bad rows).

    Raises:
      UserError: a broken table: no such file, a missing column, the same result twice.
    """
    rows = read_table(path, REQUIRED, ("patient_id", "level"))
    refuse_duplicates(rows, ("patient_id", "level", "device", "dxa_date"))
    results: DxaTable = defaultdict(list)
    failures = []
    for row in rows:
        try:
            patient = row.required("patient_id")
            results[patient].append(_result(row, devices, sex_of_patient.get(patient)))
        except CaseError as error:
            failures.append(error)
    return dict(results), failures


def _result(row: Row, devices: DeviceTable, sex: str | None) -> DxaResult:
    level = row.required("level").upper()
    if level not in LEVELS:
        raise row.error("level", "Expected one vertebra, T1-T12 or L1-L6; leave totals out.")
    device = device_name(row.text("device") or UNKNOWN_DEVICE)
    if device not in devices and device != UNKNOWN_DEVICE:
        known = ", ".join(devices)
        raise row.error("device", f"Known: {known}; empty for unknown; others by --devices.")
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
    if score is None and bmd is not None:
        score = t_score(devices, device, level, sex, bmd)
    label = given if given is not None else (score is not None and score <= T_SCORE_OSTEOPOROSIS)
    labelled = given is not None or score is not None
    return DxaResult(
        level=level,
        device=device,
        bmd_g_cm2=bmd,
        t_score=None if score is None else round(score, 4),
        osteoporosis=int(label) if labelled else None,
        date=row.date("dxa_date"),
    )


def results_for_ct(
    results: list[DxaResult], ct_date: datetime.date | None
) -> tuple[dict[str, DxaResult], int]:
    """The result of each level that belongs to a CT.

    Of several results the one nearest in date is taken; without dates, the first of the table. A
    result whose date is more than six months from the CT's is not used.

    Returns:
      (level -> result, number of levels left out because of the gap).
    """
    chosen: dict[str, DxaResult] = {}
    dropped = 0
    for level in dict.fromkeys(result.level for result in results):
        of_level = [result for result in results if result.level == level]
        best = min(of_level, key=lambda result: _gap_days(result, ct_date))  # min keeps the first
        if MAX_GAP_DAYS < _gap_days(best, ct_date) < float("inf"):
            dropped += 1
        else:
            chosen[level] = best
    return chosen, dropped


def _gap_days(result: DxaResult, ct_date: datetime.date | None) -> float:
    if ct_date is None or result.date is None:
        return float("inf")
    return abs((result.date - ct_date).days)
