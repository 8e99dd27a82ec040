"""What is written of a case, and the tables over all of them. Imports no JAX: workers do this.

A case's folder holds `prediction.png`, the DICOM objects where they are asked for, and, written
last, `prediction.json`: a case is finished when that says what was asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from launch.prediction.cases import Case, Request
from launch.prediction.contrast import Contrast
from launch.prediction.flags import Flag
from osteojax import __version__
from osteojax.errors import CaseError
from osteojax.evaluation.report import patient_page
from osteojax.files import atomic_path, write_json

ANSWER, PICTURE = "prediction.json", "prediction.png"
NAMING = ["scan_id", "device"]
"""First columns of the tables of vertebrae and patients."""
PREDICTIONS, PATIENTS, FAILURES = "predictions.csv", "patients.csv", "failures.csv"


@dataclasses.dataclass(frozen=True)
class Answer:
    """All that is known of a case.

    Attributes:
      case: whose it is.
      table, flags: of `answers.vertebra_table`.
      case_flags: of the CT.
      contrast: of the CT.
      patient: of `answers.decide`.
      planes: for the page.
      attention: for the page; empty where the model has none.
      model: fingerprint, code_version, checkpoint, intended_use of the model.
      request: of `request_of`.
      dicom: whether DICOM objects are wanted.
    """

    case: Case
    table: pd.DataFrame
    flags: list[list[Flag]]
    case_flags: list[Flag]
    contrast: Contrast
    patient: dict[str, Any]
    planes: patient_page.Reformat
    attention: list[patient_page.Attention]
    model: dict[str, Any]
    request: str
    dicom: bool


def request_of(case: Case, fingerprint: str, request: Request) -> str:
    """A hash of all that a case's folder depends on: model, its files as they are now, options."""
    stated = [flag.text for flag in case.stated]
    parts: list[Any] = [fingerprint, __version__, case.name, case.label_scheme, case.device, stated]
    parts += [request.dicom, request.attention, _stamp(case.ct)]
    parts += [_stamp(case.mask) if case.mask else None]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stamp(path: Path) -> list[Any]:
    """Path, size and time of a file, or of a folder's files; of nothing where it is not there."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        found = []
    return [str(path.resolve()), len(found), sum(s for s, _ in found), [t for _, t in found]]


def is_finished(case: Case, request: str) -> bool:
    """Whether an earlier run answered just this."""
    return (_read(case) or {}).get("request") == request


def _read(case: Case) -> dict[str, Any] | None:
    """The case's answer; None where there is none, or it is damaged."""
    try:
        content = json.loads((case.folder / ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finish(answer: Answer) -> CaseError | None:
    """Writes a case's folder. What is wrong with the case is returned, not raised."""
    folder = answer.case.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ANSWER, PICTURE):
        (folder / name).unlink(missing_ok=True)  # of an earlier request
    # The page in a DICOM object has no name of the user's on it.
    figure = patient_page.draw(answer.planes, answer.table, answer.patient, "", answer.attention)
    if answer.dicom:
        from launch.prediction import dicom_objects

        try:
            dicom_objects.write(answer, patient_page.pixels(figure))
        except CaseError as error:
            return error
    patient_page.entitle(figure, answer.case.name, answer.patient)
    patient_page.save(figure, folder / PICTURE)
    vertebrae = answer.table.astype(object).where(answer.table.notna(), None).to_dict("records")
    content = {
        "case": answer.case.name,
        "device": answer.case.device,
        "patient": answer.patient,
        "contrast": dataclasses.asdict(answer.contrast),
        "vertebrae": vertebrae,
        "model": {key: answer.model[key] for key in ("fingerprint", "code_version", "checkpoint")},
        "intended_use": answer.model["intended_use"],
        "request": answer.request,
    }
    write_json(folder / ANSWER, content)
    return None


def write_tables(
    out: Path, cases: Iterable[Case], failures: list[CaseError]
) -> list[dict[str, Any]]:
    """Writes predictions.csv, patients.csv and failures.csv of all cases that have an answer.

    Returns:
      the contents of their JSON files, in the cases' order.
    """
    out.mkdir(parents=True, exist_ok=True)
    failed = {error.case for error in failures}
    found = [_read(case) for case in cases if case.name not in failed]
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
    if patients:  # whole numbers also where some are undecided
        table["osteoporosis_pred"] = table["osteoporosis_pred"].astype("Int64")
    _write_csv(out / PATIENTS, table)
    _write_csv(out / FAILURES, pd.DataFrame(rows, columns=["case", "reason", "remedy"]))
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
