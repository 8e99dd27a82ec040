"""One CT after prediction, with all data for its folder, its page and its DICOM objects."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from data_prep.vertebrae.contrast import Contrast
from launch.prediction.cases import Case
from launch.prediction.flags import Flag
from osteojax.evaluation.report import patient_page


@dataclasses.dataclass(frozen=True)
class AnsweredCase:
    """A case after prediction.

    Attributes:
      case: the case.
      table, flags: of `decision.vertebra_table`.
      case_flags: of the CT.
      contrast: of the CT.
      patient: of `decision.decide`.
      planes: for the page.
      attention: for the page; empty if the model has none.
      model: fingerprint, code_version, checkpoint, intended_use of the model.
      request: of `case_folder.request_of`.
      dicom: whether to write DICOM objects.
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
