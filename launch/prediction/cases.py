"""The cases to predict on: one CT, or the rows of a table."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.csv_input import Row, read_table, refuse_duplicates
from data_prep.vertebrae.cohort import EXCLUSIONS
from data_prep.vertebrae.device_spelling import question
from data_prep.vertebrae.label_schemes import find_scheme
from data_prep.volumes import is_dicom
from launch.prediction import segment
from launch.prediction.flags import Flag
from osteojax.data.devices import device_name
from osteojax.data.vertebrae import UNKNOWN_DEVICE
from osteojax.errors import CaseError, UserError

REQUIRED = ("scan_id", "ct")


@dataclasses.dataclass(frozen=True)
class Case:
    """One CT with its mask and options.

    Attributes:
      name: given by the user: the table's scan_id, or the file's name.
      ct, mask: paths; mask is None if TotalSegmentator is to make one.
      label_scheme: of the mask.
      device: DXA scanner to predict for, by the model's name of it.
      folder: for the results.
      stated: flags from columns of the table (contrast, fracture, implant, poor_quality).
      ignored: numbers of the mask that are read as background.
    """

    name: str
    ct: Path
    mask: Path | None
    label_scheme: str
    device: str
    folder: Path
    stated: tuple[Flag, ...] = ()
    ignored: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of the command line for all cases.

    Attributes:
      devices: DXA scanners that the model knows; the last one is "unknown".
      mask, label_scheme, device: of one CT, or for rows that have none.
      segment: whether to make missing masks.
      dicom: whether to write DICOM objects, which needs a DICOM series.
      attention: whether to show Grad-CAM.
      out: folder for the results.
      ignore_labels: numbers of masks that are read as background.
    """

    devices: Sequence[str]
    mask: Path | None
    label_scheme: str
    device: str
    segment: bool
    dicom: bool
    attention: bool
    out: Path
    ignore_labels: tuple[int, ...] = ()


def is_table(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".csv"


def one_case(ct: Path, request: Request) -> Case:
    """The only case of a command line without a table. Raises UserError."""
    name = ct.resolve().name
    if request.mask is None and not request.segment:
        raise CaseError(name, "no mask of its vertebrae.", segment.how_to(ct))
    _check_dicom(ct, name, request)
    return Case(
        name, ct, request.mask, request.label_scheme, request.device, request.out,
        ignored=request.ignore_labels,
    )  # fmt: skip


def table_cases(path: Path, request: Request) -> tuple[list[Case], list[CaseError]]:
    """The rows of a table, as cases and failures.

    Columns: scan_id, ct, and mask unless masks are to be made; optionally label_scheme, device, and
    the yes-or-no columns of a cohort table, which become flags. Paths are relative to the table.

    Raises:
      UserError: a broken table, or one that names a scan twice.
    """
    if request.mask is not None:
        raise UserError(f"--mask {request.mask}: with a table, masks are its column `mask`.")
    rows = read_table(path, REQUIRED if request.segment else (*REQUIRED, "mask"), ("scan_id",))
    refuse_duplicates([row for row in rows if row.text("scan_id")], ("scan_id",))
    cases: list[Case] = []
    failures: list[CaseError] = []
    for row in rows:
        try:
            cases.append(_row_case(row, path.resolve().parent, request))
        except CaseError as error:
            failures.append(error)
    return cases, failures


def _row_case(row: Row, folder: Path, request: Request) -> Case:
    name, ct, mask = row.identifier("scan_id"), folder / row.required("ct"), row.text("mask")
    if mask is None and not request.segment:
        raise CaseError(name, "no mask of its vertebrae.", segment.how_to(ct))
    scheme = row.text("label_scheme") or request.label_scheme
    find_scheme(scheme, name)
    _check_dicom(ct, name, request)
    device = device_name(row.text("device") or request.device)
    if device not in request.devices:
        asked = question(device, [name for name in request.devices if name != UNKNOWN_DEVICE])
        raise row.error("device", f"{asked}The model knows {', '.join(request.devices)}.")
    stated = tuple(
        Flag("stated", f"{column.replace('_', ' ')}, says the table")
        for column in EXCLUSIONS
        if row.flag(column)
    )
    out = request.out / folder_name(name)
    path = folder / mask if mask else None
    return Case(name, ct, path, scheme, device, out, stated, request.ignore_labels)


def _check_dicom(ct: Path, name: str, request: Request) -> None:
    if request.dicom and ct.exists() and not is_dicom(ct):
        raise CaseError(
            name,
            "--dicom-out needs the CT as DICOM: a result belongs to its study.",
            "Give the series' folder, or leave out --dicom-out.",
        )


def folder_name(name: str) -> str:
    """A folder's name for a scan's id: the id itself, or a similar unique name if the id is not
    valid."""
    plain = re.sub(r"[^\w.-]+", "_", name)
    if plain == name and not name.startswith(".") and len(name) <= 100:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain.lstrip('.')[:80]}-{digest}"
