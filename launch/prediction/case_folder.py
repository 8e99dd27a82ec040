"""Writes the folder of one CT's results. It imports no JAX, because it runs in workers.

The folder contains `prediction.png`, DICOM objects if requested, and, written last,
`prediction.json`. A case is finished if that file has the hash of the same request.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from data_prep.dicom_series import is_list, listed_files
from launch.prediction.answered_case import AnsweredCase
from launch.prediction.cases import Case, Request
from osteojax import __version__
from osteojax.errors import CaseError
from osteojax.evaluation.report import patient_page
from osteojax.files import write_json

ANSWER, PICTURE = "prediction.json", "prediction.png"


def request_of(case: Case, fingerprint: str, request: Request) -> str:
    """A hash of everything that a case's folder depends on: model, current input files, options."""
    stated = [flag.text for flag in case.stated]
    parts: list[Any] = [fingerprint, __version__, case.name, case.label_scheme, case.device, stated]
    parts += [request.dicom, request.attention, _stamp(case.ct)]
    parts += [_stamp(case.mask) if case.mask else None]
    if case.ignored:  # answers of earlier versions were to requests without it
        parts.append(list(case.ignored))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stamp(path: Path) -> list[Any]:
    """Path, size and time of a file, or of the files of a folder or list; empty if the path does
    not exist."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if is_list(path):
            files += listed_files(path)
        found = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        found = []
    return [str(path.resolve()), len(found), sum(s for s, _ in found), [t for _, t in found]]


def read_answer(case: Case, request: str) -> dict[str, Any] | None:
    """The answer of an earlier run to the same request; None if there is none or the file is
    damaged."""
    try:
        content = json.loads((case.folder / ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(content, dict) and content.get("request") == request
    return content if same else None


def finish(answer: AnsweredCase) -> CaseError | None:
    """Writes a case's folder. Returns the error of an unusable case instead of raising it."""
    folder = answer.case.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ANSWER, PICTURE):
        (folder / name).unlink(missing_ok=True)  # of an earlier request
    # The page in a DICOM object must not show the user's name of the case.
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
