"""Reads cohort.csv and dxa.csv into scans with their split and labels.

A broken table ends the run (UserError). A bad row becomes a failure, and the other rows are used.
Scans that the table flags (contrast, fracture, implant, poor quality) are excluded, not failures.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

from data_prep.csv_input import Row, read_table, refuse_duplicates, unknown_columns
from data_prep.findings import Findings
from data_prep.recipe import Cohort, Doubt
from data_prep.split import DEFAULT_FRACTIONS, SplitPatient, assign_splits
from data_prep.vertebrae.dxa import DxaResult, DxaTable, Person, read_dxa, results_for_ct
from data_prep.vertebrae.exam_dates import FIRST_CT, earliest_birth, exam_date
from data_prep.vertebrae.label_schemes import find_scheme
from data_prep.vertebrae.patient_ids import listed, near_misses
from data_prep.vertebrae.scanners import DeviceTable
from osteojax.data.schema import SPLITS
from osteojax.errors import CaseError, UserError

REQUIRED = ("patient_id", "scan_id", "site", "ct", "mask")
EXCLUSIONS = ("contrast", "fracture", "implant", "poor_quality")
"""Columns of cohort.csv that exclude a scan if they say yes (docs/method.md, inclusion)."""
OPTIONAL = ("sex", "age", "split", "label_scheme", "ct_date", *EXCLUSIONS)
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


@dataclasses.dataclass(frozen=True)
class Scan:
    """One CT with its mask, its DXA results and its row of the table; the unit of work.

    Attributes:
      index: position in the cohort; it fixes the shard.
      ct, mask: absolute paths.
      dxa: level -> result.
      ct_date: None where the table has none.
      source: digest of CT, mask and label scheme as the table names them (`Cohort.sources`).
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
    ct_date: datetime.date | None = None
    source: str = ""

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
    doubts_fail: bool = False,
) -> Cohort:
    """Reads both tables; the items are `Scan`s.

    Args:
      label_scheme: for masks whose row has none.
      include: columns of `EXCLUSIONS` that do not exclude.
      doubts_fail: whether doubtful scans and rows are failures.
      The other arguments: see `split.assign_splits`.

    Raises:
      UserError: a broken table or split. A bad row is in `failures` instead.
    """
    rows = read_table(cohort_csv, REQUIRED, ("scan_id",))
    refuse_duplicates([row for row in rows if row.text("scan_id")], ("scan_id",))
    findings = Findings(doubts_fail)
    excluded: list[tuple[str, str, str]] = []
    scans: list[Scan] = []
    for row in rows:
        try:
            reason = _exclusion(row, include)
            scan = _scan(row, Path(cohort_csv).resolve().parent, label_scheme)
        except CaseError as error:
            findings.failures.append(error)
            continue
        if reason:
            excluded.append((scan.scan_id, scan.patient_id, reason))
        else:
            scans.append(scan)
    doubts = _scan_doubts(scans)
    scans = [scan for scan in scans if not findings.doubt(doubts.get(scan.scan_id, []))]
    scans = [dataclasses.replace(scan, index=index) for index, scan in enumerate(scans)]
    notes = unknown_columns(rows, REQUIRED + OPTIONAL)
    if dxa_csv is not None:
        dxa = read_dxa(dxa_csv, devices, _people(scans), findings)
        notes += dxa.notes
        patients = [name for row in rows if (name := row.text("patient_id"))]
        notes += _strangers(dxa.patients, patients, dxa_csv, cohort_csv, findings)
        scans, dropped = _with_results(scans, dxa.results, findings)
        notes += _notes(scans, dropped)
    splits = assign_splits(_split_patients(scans), external_sites, fractions, seed)
    scans = [dataclasses.replace(scan, split=splits[scan.patient_id]) for scan in scans]
    digest = _digest(cohort_csv, dxa_csv)
    sources = [scan.source for scan in scans]
    return Cohort(scans, findings.failures, excluded, notes, digest, findings.doubts, sources)


def _scan(row: Row, folder: Path, label_scheme: str) -> Scan:
    """The scan of a row, still without its index and DXA results."""
    sex, split = row.text("sex"), row.text("split")
    if sex is not None and sex.casefold() not in SEXES:
        raise row.error("sex", "Expected F or M, or empty.")
    if split is not None and split not in SPLITS:
        raise row.error("split", f"Expected one of {', '.join(SPLITS)}, or empty.")
    scheme = row.text("label_scheme") or label_scheme
    find_scheme(scheme, row.case)
    ct, mask = row.required("ct"), row.required("mask")
    source = hashlib.sha256(json.dumps([ct, mask, scheme]).encode()).hexdigest()
    return Scan(
        index=-1,
        patient_id=row.identifier("patient_id"),
        scan_id=row.identifier("scan_id"),
        site=row.required("site"),
        split=split or "",
        sex=SEXES[sex.casefold()] if sex else None,
        age=row.number("age", 0, 120, "In years."),
        ct=str(folder / ct),
        mask=str(folder / mask),
        label_scheme=scheme,
        dxa={},
        ct_date=exam_date(row, "ct_date", FIRST_CT),
        source=source,
    )


def _exclusion(row: Row, include: frozenset[str]) -> str:
    flags = {column: row.flag(column) for column in EXCLUSIONS}
    return ", ".join(column for column, flag in flags.items() if flag and column not in include)


def _scan_doubts(scans: list[Scan]) -> dict[str, list[Doubt]]:
    """Doubts of scans whose rows contradict each other: scan_id -> doubts."""
    doubts: dict[str, list[Doubt]] = defaultdict(list)
    sexes: dict[str, dict[str, str]] = defaultdict(dict)
    of_ct: dict[str, Scan] = {}
    of_mask: dict[str, Scan] = {}
    for scan in scans:
        if scan.sex:
            sexes[scan.patient_id].setdefault(scan.sex, scan.scan_id)
    for scan in scans:
        own = sexes[scan.patient_id]
        if len(own) > 1:
            told = " and ".join(f"{sex} in scan {name}" for sex, name in own.items())
            reason = f"the sex of patient {scan.patient_id} is {told}."
            doubts[scan.scan_id].append((scan.scan_id, reason, "Correct the wrong row."))
        ct, mask = of_ct.setdefault(scan.ct, scan), of_mask.setdefault(scan.mask, scan)
        # Two reconstructions of a patient may share a mask.
        if ct is not scan:
            reason = f"the scan has the CT of scan {ct.scan_id}."
            doubts[scan.scan_id].append((scan.scan_id, reason, "Name the CT of each scan."))
        elif mask.patient_id != scan.patient_id:
            reason = f"the scan has the mask of scan {mask.scan_id}, of another patient."
            doubts[scan.scan_id].append((scan.scan_id, reason, "Name the mask of each scan."))
    return doubts


def _people(scans: list[Scan]) -> dict[str, Person]:
    """What the cohort says of each patient; of several scans the last one's sex, and the birth that
    all of them allow."""
    births = defaultdict(list)
    for scan in scans:
        if birth := earliest_birth(scan.age, scan.ct_date):
            births[scan.patient_id].append(birth)
    return {s.patient_id: Person(s.sex, min(births[s.patient_id], default=None)) for s in scans}


def _strangers(
    named: list[str],
    patients: list[str],
    dxa_csv: str | Path,
    cohort_csv: str | Path,
    findings: Findings,
) -> list[str]:
    """Notes about patients of the DXA table that no scan has; those whose id nearly is a patient's
    are doubts.

    Args:
      named: patients of the DXA table.
      patients: of the rows of the cohort's table.

    Raises:
      UserError: no patient of the DXA table has a scan.
    """
    known, measured = set(patients), set(named)
    strangers = [name for name in named if name not in known]
    near = near_misses(strangers, list(dict.fromkeys(patients)), measured)
    if named and not known & measured:
        meant = "".join(f" {name} may be {' or '.join(own)}." for name, own in [*near.items()][:1])
        raise UserError(
            f"{dxa_csv}: none of its patients ({named[0]}, ...) is in {cohort_csv} "
            f"({next(iter(patients), 'none')}, ...).{meant} Write patient_id the same way in both."
        )
    for name, own in near.items():
        reason = (
            f"{Path(dxa_csv).name}: no scan has patient_id {name!r}, which is nearly that of "
            f"patient {' or '.join(own)}; its results are not used."
        )
        remedy = "If it is the same patient, write the id the same way; zeros may have been lost."
        findings.doubt([(name, reason, remedy)])
    if not strangers:
        return []
    count = f"{len(strangers)} patient{'s' if len(strangers) > 1 else ''}"
    return [f"{count} of {Path(dxa_csv).name} have no scan: {listed(strangers)}."]


def _with_results(
    scans: list[Scan], results: DxaTable, findings: Findings
) -> tuple[list[Scan], int]:
    """Scans with the DXA results that belong to them, and the number of results left out because
    they are old."""
    dropped_in_all, with_results = 0, []
    for scan in scans:
        own, dropped, disputed = results_for_ct(results.get(scan.patient_id, []), scan.ct_date)
        dropped_in_all += dropped
        for level in disputed:
            reason = (
                f"patient {scan.patient_id} has several DXA results of {level} with different "
                "labels, and no date makes one the nearest. The table's first is used."
            )
            remedy = "Give ct_date and dxa_date, or keep one result."
            if findings.doubt([(f"{scan.scan_id}/{level}", reason, remedy)]):
                del own[level]
        with_results.append(dataclasses.replace(scan, dxa=own))
    return with_results, dropped_in_all


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
