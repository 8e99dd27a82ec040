"""Writes the table of a cohort from the series of a folder: cohort.csv, series.csv, file lists."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.csv_text import read_text
from data_prep.dicom_folder.choice import (
    is_derived,
    kernel_of,
    pick,
    thickness_mm,
    what_it_is,
)
from data_prep.dicom_folder.headers import Found, Series
from data_prep.dicom_folder.pseudonyms import Pseudonyms
from osteojax.errors import UserError
from osteojax.files import write_csv, write_text

COHORT_COLUMNS = ("patient_id", "scan_id", "site", "ct", "mask", "sex", "age", "ct_date")
SERIES_COLUMNS = (
    "scan_id", "series", "what", "slices", "slice_mm", "kernel", "derived", "used",
)  # fmt: skip
LINK_COLUMNS = ("patient_id", "scan_id", "PatientID", "PatientName", "StudyInstanceUID",
                "SeriesInstanceUID", "AccessionNumber")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Written:
    """Rows of the tables. cohort: of cohort.csv; series: of series.csv; left_out: scan ids of
    studies without an axial CT."""

    cohort: list[dict[str, Any]]
    series: list[dict[str, Any]]
    left_out: list[str]


def write_cohort(found: Found, out: Path, site: str, link: Path | None = None) -> Written:
    """Writes cohort.csv (`out`) with a row per study that has an axial CT. What the user wrote
    into an earlier one of the same studies (masks) is kept.

    Beside it: series.csv, every series with what it is and whether it is used;
    series/<scan_id>.txt, the files of the used one, readable by their owner only, because file
    names of a PACS identify images; the key of the pseudonyms. No other file holds a name, an id
    or a UID of the headers.

    Args:
      site: for all rows.
      link: file for the table that leads from pseudonyms back to patients; None writes none.

    Raises:
      UserError: no series at all; `out` is a table of another kind.
    """
    if not found.series:
        raise UserError(
            f"no DICOM series was found ({found.other_files} other files, {found.unreadable} "
            "damaged). Give the folder that the PACS exported."
        )
    names = Pseudonyms(out.resolve().parent)
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in found.series:
        studies[series.study_uid].append(series)
    cohort, listed, links, left_out = [], [], [], []
    for uid, own in studies.items():
        scan, used = names.study(uid), pick(own)
        listed += [_series_row(scan, i, one, one is used) for i, one in enumerate(own, 1)]
        if used is None:
            left_out.append(scan)
            continue
        cohort.append(_cohort_row(names, scan, used, site))
        links.append(_link_row(cohort[-1], used))
        paths = "".join(f"{path.resolve()}\n" for path, _ in used.files)
        write_text(out.parent / cohort[-1]["ct"], paths, private=True)
    write_csv(out, _with_users_cells(pd.DataFrame(cohort, columns=COHORT_COLUMNS), out))
    write_csv(out.parent / "series.csv", pd.DataFrame(listed, columns=SERIES_COLUMNS))
    if link is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, LINK_COLUMNS)
        writer.writeheader()
        writer.writerows(links)
        write_text(link, text.getvalue(), private=True)
    return Written(cohort, listed, left_out)


def _with_users_cells(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The new table, with what the user wrote into an earlier one: cells of the same scan (masks),
    and columns of his own. `ct` is always the new one."""
    if not path.is_file():
        return table
    text = read_text(path, COHORT_COLUMNS)
    earlier = pd.DataFrame([fields for _, fields in text.records], columns=text.columns, dtype=str)
    if "scan_id" not in earlier or earlier["scan_id"].duplicated().any():
        raise UserError(f"{path}: not a table of this command. Choose another --out.")
    mine = table.astype(str).set_index("scan_id")
    own = [column for column in earlier if column not in mine and column != "scan_id"]
    for column in own:
        mine[column] = ""
    for row in earlier.to_dict("records"):
        if row["scan_id"] in mine.index:
            filled = {key: value for key, value in row.items() if value and key in mine}
            for key in filled.keys() - {"ct"}:
                mine.loc[row["scan_id"], key] = filled[key]
    return mine.reset_index()[[*table.columns, *own]]


def _cohort_row(names: Pseudonyms, scan: str, series: Series, site: str) -> dict[str, Any]:
    header = series.header
    # Without an id a study is its own patient: patients must not be joined by a missing id.
    patient_id = str(header.get("PatientID") or "") or f"study {series.study_uid}"
    date = str(header.get("StudyDate") or "")
    sex = str(header.get("PatientSex") or "")
    return {
        "patient_id": names.patient(patient_id, str(header.get("IssuerOfPatientID") or "")),
        "scan_id": scan,
        "site": site,
        "ct": f"series/{scan}.txt",
        "mask": "",
        "sex": sex if sex in ("F", "M") else "",
        "age": _age(header),
        "ct_date": f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 else "",
    }


def _age(header: dict[str, Any]) -> int | str:
    """Whole years: PatientAge, else from the dates of birth and study; "" where unknown."""
    stated = str(header.get("PatientAge") or "")
    if stated.endswith("Y") and stated[:-1].isdigit():
        return int(stated[:-1])
    born, then = (str(header.get(key) or "") for key in ("PatientBirthDate", "StudyDate"))
    if not (len(born) == len(then) == 8 and born.isdigit() and then.isdigit()):
        return ""
    years = int(then[:4]) - int(born[:4]) - (then[4:] < born[4:])
    return years if 0 <= years <= 120 else ""


def _series_row(scan: str, number: int, series: Series, used: bool) -> dict[str, Any]:
    thickness = thickness_mm(series)
    return {
        "scan_id": scan,
        "series": number,
        "what": what_it_is(series),
        "slices": series.frames,
        "slice_mm": "" if thickness is None else f"{thickness:.2f}",
        "kernel": kernel_of(series),
        "derived": int(is_derived(series)),
        "used": int(used),
    }


def _link_row(row: dict[str, Any], series: Series) -> dict[str, str]:
    header = series.header
    return {
        "patient_id": row["patient_id"],
        "scan_id": row["scan_id"],
        **{key: str(header.get(key) or "") for key in ("PatientID", "PatientName")},
        "StudyInstanceUID": series.study_uid,
        "SeriesInstanceUID": series.uid,
        "AccessionNumber": str(header.get("AccessionNumber") or ""),
    }
