"""PyRadiomics' GLCM features of the vertebral body: one number for each feature and vertebra.

They are of the whole body, not voxel maps. Grey levels are those of the folder's maps: of its bin
width, starting at -200 HU. PyRadiomics needs Python 3.11, and takes about 20 ms a body at 1.5 mm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.vertebrae.texture import TextureSettings, pyradiomics_features
from osteojax.data.cohort import PreparedCohort
from osteojax.data.places import BODY_PLANE
from osteojax.errors import UserError
from osteojax.files import atomic_path

POWERS = (
    "ClusterProminence", "ClusterTendency", "Contrast", "DifferenceAverage", "DifferenceVariance",
    "SumSquares",
)  # fmt: skip
"""Features that are powers of differences of grey levels, always positive. Noise and trabeculae
scale them, so that they spread over decades: linear models are given their logarithms."""

FEATURES = (
    *POWERS,
    "Autocorrelation", "ClusterShade", "Correlation", "DifferenceEntropy", "Id", "Idm", "Idmn",
    "Idn", "Imc1", "Imc2", "InverseVariance", "JointAverage", "JointEnergy", "JointEntropy", "MCC",
    "MaximumProbability", "SumEntropy",
)  # fmt: skip
"""All of PyRadiomics' but SumAverage, which is twice JointAverage. None is constant."""

LEAST_POWER = 1e-3
"""Smaller powers count as this one: a hundredth of a grey level or so."""

PLACE = ["scan_id", "level"]


def features(cohort: PreparedCohort, path: Path) -> np.ndarray:
    """f64[N, 23]: `FEATURES` of every vertebra, `POWERS` as natural logarithms; NaN where a box
    shows no body.

    Args:
      path: of a table of the features without logarithms. It is read if it is of this cohort's
        vertebrae, else written.

    Raises:
      UserError: a folder without bodies; PyRadiomics is not installed.
    """
    places = cohort.table[PLACE].reset_index(drop=True)
    table = _read(path) if path.is_file() else None
    if table is None or list(table) != [*PLACE, *FEATURES] or not table[PLACE].equals(places):
        found = [of_body(cohort, row) for row in range(len(cohort))]
        table = pd.concat([places, pd.DataFrame(found, columns=list(FEATURES))], axis=1)
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
        table = _read(path)  # so that rounding cannot make a second reader differ
    powers, others = (
        table[list(names)].to_numpy(np.float64) for names in (POWERS, FEATURES[len(POWERS) :])
    )
    return np.concatenate([np.log(np.maximum(powers, LEAST_POWER)), others], axis=1)


def of_body(cohort: PreparedCohort, row: int) -> dict[str, float]:
    """`FEATURES` of one body within the shown window, in grey levels. Raises UserError."""
    about = cohort.about
    if not about.has_body:
        raise UserError(f"{cohort.directory}: has no bodies. Prepare the cohort again.")
    body = cohort.array(row, "mask")[BODY_PLANE][about.window]
    if not (body[1:] & body[:-1]).any():  # one without neighbours is no body either
        return dict.fromkeys(FEATURES, np.nan)
    codes = cohort.array(row, "image")[about.window]
    bin_width = about.texture.get("bin_width", TextureSettings.bin_width)
    levels = codes // np.uint8(TextureSettings(bin_width=bin_width).codes_per_level) + np.uint8(1)
    return pyradiomics_features(levels, body, FEATURES)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(PLACE, str),
        keep_default_na=False,
        na_values={name: [""] for name in FEATURES},
    )
