"""Reads cohort.csv and dxa.csv into scans with their split and labels.

A broken table ends the run (UserError). A bad row becomes a failure, and the other rows are used.
Scans that the table flags (contrast, fracture, implant, poor quality) are excluded, not failures.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

from data_prep.csv_input import Row, read_table, refuse_duplicates
from data_prep.recipe import Cohort
from data_prep.split import DEFAULT_FRACTIONS, SplitPatient, assign_splits
from data_prep.vertebrae.dxa import DxaResult, DxaTable, read_dxa, results_for_ct
from data_prep.vertebrae.label_schemes import find_scheme
from data_prep.vertebrae.scanners import DeviceTable
from osteojax.data.schema import SPLITS
from osteojax.errors import CaseError, UserError

REQUIRED = ("patient_id", "scan_id", "site", "ct", "mask")
EXCLUSIONS = ("contrast", "fracture", "implant", "poor_quality")
"""Columns of cohort.csv that exclude a scan if they say yes (docs/method.md, inclusion)."""
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


@dataclasses.dataclass(frozen=True)
class Scan:
    """One CT with its mask, its DXA results and its row of the table; the unit of work.

    Attributes:
      index: position in the cohort; it fixes the shard.
      ct, mask: absolute paths.
      dxa: level -> result.
    """

    index: int
    patient_id: str
    scan_id: str
    site: str
    split: str
    sex: str | None
    age: float | None
    ct: str
    mask: str
    label_scheme: str
    dxa: dict[str, DxaResult]

    @property
    def case(self) -> str:
        return self.scan_id


def read_cohort(
    cohort_csv: str | Path,
    dxa_csv: str | Path | None,
    devices: DeviceTable,
    label_scheme: str,
    external_sites: frozenset[str] = frozenset(),
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    include: frozenset[str] = frozenset(),
) -> Cohort:
    """Reads both tables; the items are `Scan`s.

    Args:
      label_scheme: for masks whose row has none.
      include: columns of `EXCLUSIONS` that do not exclude.
      The other arguments: see `split.assign_splits`.

    Raises:
      UserError: a broken table or split. A bad row is in `failures` instead.
    """
    rows = read_table(cohort_csv, REQUIRED, ("scan_id",))
    refuse_duplicates([row for row in rows if row.text("scan_id")], ("scan_id",))
    folder = Path(cohort_csv).resolve().parent
    failures: list[CaseError] = []
    excluded: list[tuple[str, str, str]] = []
    scans: list[Scan] = []
    ct_dates: list[datetime.date | None] = []
    for row in rows:
        try:
            reason = _exclusion(row, include)
            scan = _scan(row, folder, label_scheme)
            ct_date = row.date("ct_date")
        except CaseError as error:
            failures.append(error)
            continue
        if reason:
            excluded.append((scan.scan_id, scan.patient_id, reason))
        else:
            scans.append(dataclasses.replace(scan, index=len(scans)))
            ct_dates.append(ct_date)
    dxa: DxaTable = {}
    notes: list[str] = []
    if dxa_csv is not None:
        dxa, dxa_failures = read_dxa(dxa_csv, devices, {s.patient_id: s.sex for s in scans})
        failures += dxa_failures
        _refuse_strangers(dxa, rows, dxa_csv, cohort_csv)
        chosen = [
            results_for_ct(dxa.get(scan.patient_id, []), date)
            for scan, date in zip(scans, ct_dates, strict=True)
        ]
        scans = [
            dataclasses.replace(scan, dxa=results)
            for scan, (results, _) in zip(scans, chosen, strict=True)
        ]
        notes = _notes(scans, sum(dropped for _, dropped in chosen))
    splits = assign_splits(_split_patients(scans), external_sites, fractions, seed)
    scans = [dataclasses.replace(scan, split=splits[scan.patient_id]) for scan in scans]
    return Cohort(scans, failures, excluded, notes, _digest(cohort_csv, dxa_csv))


def _scan(row: Row, folder: Path, label_scheme: str) -> Scan:
    """The scan of a row, still without its index and DXA results."""
    sex, split = row.text("sex"), row.text("split")
    if sex is not None and sex.casefold() not in SEXES:
        raise row.error("sex", "Expected F or M, or empty.")
    if split is not None and split not in SPLITS:
        raise row.error("split", f"Expected one of {', '.join(SPLITS)}, or empty.")
    scheme = row.text("label_scheme") or label_scheme
    find_scheme(scheme, row.case)
    return Scan(
        index=-1,
        patient_id=row.required("patient_id"),
        scan_id=row.required("scan_id"),
        site=row.required("site"),
        split=split or "",
        sex=SEXES[sex.casefold()] if sex else None,
        age=row.number("age", 0, 120, "In years."),
        ct=str(folder / row.required("ct")),
        mask=str(folder / row.required("mask")),
        label_scheme=scheme,
        dxa={},
    )


def _exclusion(row: Row, include: frozenset[str]) -> str:
    flags = {column: row.flag(column) for column in EXCLUSIONS}
    return ", ".join(column for column, flag in flags.items() if flag and column not in include)


def _refuse_strangers(
    dxa: DxaTable, rows: list[Row], dxa_csv: str | Path, cohort_csv: str | Path
) -> None:
    patients = {row.text("patient_id") for row in rows}
    if dxa and not patients & set(dxa):
        raise UserError(
            f"{dxa_csv}: none of its patients ({next(iter(dxa))}, ...) is in {cohort_csv} "
            f"({rows[0].text('patient_id')}, ...). Write patient_id the same way in both."
        )


def _notes(scans: list[Scan], dropped: int) -> list[str]:
    notes = []
    if dropped:
        notes.append(f"{dropped} DXA results more than six months from the CT were not used.")
    without = Counter(
        (result.device, "no sex given" if scan.sex is None else "no reference for device or level")
        for scan in scans
        for result in scan.dxa.values()
        if result.osteoporosis is None
    )
    for (device, reason), count in sorted(without.items()):
        notes.append(
            f"{count} BMD values of device {device} give no label ({reason}); "
            "add t_score or osteoporosis to the DXA table, or a reference by --devices."
        )
    return notes


def _split_patients(scans: list[Scan]) -> list[SplitPatient]:
    of_patient = defaultdict(list)
    for scan in scans:
        of_patient[scan.patient_id].append(scan)
    patients = []
    for patient_id, own in of_patient.items():
        labels = {result.osteoporosis for scan in own for result in scan.dxa.values()}
        label = "positive" if 1 in labels else "negative" if 0 in labels else "unlabelled"
        sites = frozenset(scan.site for scan in own)
        given = frozenset(scan.split for scan in own if scan.split)
        patients.append(SplitPatient(patient_id, sites, given, label))
    return patients


def _digest(*paths: str | Path | None) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = b"" if path is None else Path(path).read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
