"""Predicts on one CT and its mask from Python, and returns a table instead of writing files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_prep.vertebrae.label_schemes import find_scheme
from launch.prediction.batches import frame_of
from launch.prediction.cases import Case
from launch.prediction.decision import vertebra_table
from launch.prediction.loading import LoadedCase, load
from osteojax.data.vertebrae import UNKNOWN_DEVICE
from osteojax.export.load import ExportedModel


def predict_scan(
    model: ExportedModel,
    ct: str | Path,
    mask: str | Path,
    *,
    label_scheme: str = "verse",
    device: str = UNKNOWN_DEVICE,
) -> pd.DataFrame:
    """A model's predictions for every vertebra of a CT.

    Args:
      model: exported with `osteojax export`, loaded with `osteojax.load_model`.
      ct: NIfTI, NRRD, MHA, or a folder with a DICOM series.
      mask: of the vertebrae: one file, or a folder of one-vertebra masks.
      label_scheme: of the mask (docs/data.md).
      device: name of the DXA scanner to predict BMD for; the model must know it.

    Returns:
      One row per vertebra from above, with the columns of `decision.vertebra_table`: level,
      probability (0-1), bmd_pred_g_cm2, bmd_low, bmd_high, flags, ...

    Raises:
      UserError: a device or label scheme that is not known; CaseError: an unusable CT or mask.
    """
    ct, mask = Path(ct), Path(mask)
    find_scheme(label_scheme, ct.name)
    index = model.device_index(device)
    case = Case(ct.name, ct, mask, label_scheme, model.devices[index], ct.parent)
    found = load(case, frame_of(model))
    if not isinstance(found, LoadedCase):
        raise found
    table, _ = vertebra_table(model, found, model.predict(found.hu, index, body=found.body))
    return table
