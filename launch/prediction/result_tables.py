"""The tables over all CTs of a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from launch.prediction import case_folder
from launch.prediction.cases import Case
from osteojax.errors import CaseError
from osteojax.evaluation.report import scans_page
from osteojax.files import atomic_path, write_text

NAMING = ["scan_id", "device"]
"""First columns of the tables of vertebrae and of patients."""
PREDICTIONS, PATIENTS, FAILURES = "predictions.csv", "patients.csv", "failures.csv"
INDEX = "index.html"


def write_tables(
    out: Path, cases: Sequence[Case], failures: list[CaseError], requests: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Writes predictions.csv, patients.csv, failures.csv and index.html of all cases that have an
    answer.

    Args:
      requests: case -> `case_folder.request_of`; an answer to another request is left out.

    Returns:
      the contents of the cases' JSON files, in the order of the cases.
    """
    out.mkdir(parents=True, exist_ok=True)
    failed = {error.case for error in failures}
    found = [
        case_folder.read_answer(case, requests[case.name])
        for case in cases
        if case.name not in failed and case.name in requests
    ]
    answers = [content for content in found if content is not None]
    vertebrae = [
        {"scan_id": content["case"], "device": content["device"], **row}
        for content in answers
        for row in content["vertebrae"]
    ]
    patients = [_patient_row(content) for content in answers]
    rows = [(error.case, error.reason, error.remedy) for error in failures]
    _write_csv(out / PREDICTIONS, pd.DataFrame(vertebrae, columns=None if vertebrae else NAMING))
    table = pd.DataFrame(patients, columns=None if patients else NAMING)
    if patients:  # a nullable integer, because some patients may be undecided
        table["osteoporosis_pred"] = table["osteoporosis_pred"].astype("Int64")
    _write_csv(out / PATIENTS, table)
    _write_csv(out / FAILURES, pd.DataFrame(rows, columns=["case", "reason", "remedy"]))
    folders = {case.name: case.folder for case in cases}
    pages = [
        (folders[content["case"]] / case_folder.PICTURE).relative_to(out).as_posix()
        for content in answers
    ]
    write_text(out / INDEX, scans_page.render(answers, pages, rows))
    return answers


def _patient_row(content: dict[str, Any]) -> dict[str, Any]:
    patient, contrast = content["patient"], content["contrast"]
    decision = {None: None, True: 1, False: 0}[patient["osteoporosis_pred"]]
    return {
        "scan_id": content["case"],
        "device": content["device"],
        "osteoporosis_pred": decision,
        **{key: patient[key] for key in ("probability", "threshold_patient", "verdict", "caution")},
        "flags": "; ".join(patient["flags"]),
        "vessel_hu": contrast["vessel_hu"],
    }


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def written(out: Path, many: bool, dicom: bool) -> list[Path]:
    """Files that a prediction writes; of many CTs, those of one are in a folder by its scan_id."""
    paths = [out / PREDICTIONS, out / PATIENTS, out / INDEX]
    folder = out / "SCAN_ID" if many else out
    paths += [folder / case_folder.ANSWER, folder / case_folder.PICTURE]
    if dicom:
        from launch.prediction import dicom_objects

        paths += [folder / dicom_objects.REPORT, folder / dicom_objects.PAGE]
    return paths
