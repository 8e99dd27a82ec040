"""PyRadiomics' GLCM features of bodies: against PyRadiomics itself, kept, and as a row."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from launch.readouts import glcm
from launch.readouts.plan import Readout
from launch.readouts.rows import Rows
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from tests.launch.stand_in_readouts import stand_in_cohorts, study
from tests.oracles import pyradiomics


def test_features_are_pyradiomics_of_the_body_in_the_shown_window() -> None:
    """PyRadiomics starts its levels at the bin of the smallest HU, which is -200 HU here."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 60, (9, 10, 11)).astype(np.uint8)
    mask = generator.random((3, 9, 10, 11)) < 0.5
    window = (slice(1, 8), slice(2, 10), slice(0, 9))
    codes[4, 5, 6], mask[2, 4, 5, 6] = 0, True
    arrays = {"image": codes, "mask": mask}
    about = SimpleNamespace(has_body=True, window=window, texture={"bin_width": 50.0})
    cohort = SimpleNamespace(about=about, array=lambda row, name: arrays[name])
    found = glcm.of_body(cohort, 0)  # type: ignore[arg-type]
    hu, body = (-197.5 + 5.0 * codes.astype(np.float64))[window], mask[2][window]
    expected = pyradiomics.glcm_features(hu, body, glcm.FEATURES, binWidth=50)
    assert set(found) == set(glcm.FEATURES)
    for name in glcm.FEATURES:
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name
    arrays["mask"] = np.zeros_like(mask)
    assert np.isnan(list(glcm.of_body(cohort, 0).values())).all()  # type: ignore[arg-type]


def test_features_are_kept_beside_the_cohort(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, path, asked = PreparedCohort(tiny_pool), tmp_path / "glcm.csv", []

    def made(cohort: PreparedCohort, row: int) -> dict[str, float]:
        asked.append(row)
        values = {name: 1.0 + row / 3 + number for number, name in enumerate(glcm.FEATURES)}
        return values if row else dict.fromkeys(glcm.FEATURES, np.nan)

    monkeypatch.setattr(glcm, "of_body", made)
    first, again = glcm.features(cohort, path), glcm.features(cohort, path)
    assert asked == list(range(len(cohort)))
    np.testing.assert_array_equal(first, again)
    assert np.isnan(first[0]).all()
    contrast, mcc = (glcm.FEATURES.index(name) for name in ("Contrast", "MCC"))
    assert first[7, contrast] == pytest.approx(np.log(1 + 7 / 3 + contrast))
    assert first[7, mcc] == 1 + 7 / 3 + mcc
    other = copy.copy(cohort)
    other.table = cohort.table.iloc[::-1]
    glcm.features(other, path)
    assert len(asked) == 2 * len(cohort)


def test_a_row_reads_spacing_from_them(tiny_pool: Path, tmp_path: Path) -> None:
    pytest.importorskip("radiomics", reason="PyRadiomics needs Python < 3.12")
    stand_in_cohorts(tmp_path, tiny_pool)
    row = Readout("GLCM", "a", ceiling="glcm")
    made = Rows(study(rows=(row,), contrasts=()), tmp_path)
    made.do(row, 0)
    assert np.isfinite(made.predicted(row, 0)["spacing"]).all()
    assert (tmp_path / "cohorts" / "new" / "glcm.csv").is_file()
    old = copy.copy(made.encoders.cohort("main"))
    old.about = SimpleNamespace(has_body=False)
    with pytest.raises(UserError, match="has no bodies"):
        glcm.of_body(old, 0)
