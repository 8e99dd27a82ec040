"""Prediction on real CTs, from one file to table, JSON and picture."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from launch import cli
from launch.predict import decide
from osteojax.exported import ExportedModel


def predict(model: Path, out: Path, ct: Path, mask: Path, scheme: str, device: str = "unknown"):
    status = cli.main(
        ["predict", "--model", str(model), "--ct", str(ct), "--mask", str(mask),
         "--label-scheme", scheme, "--device", device, "--out", str(out)]
    )  # fmt: skip
    assert status == 0
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False, na_values={"bmd_low": [""]})
    answer = json.loads((out / "prediction.json").read_text())
    picture = matplotlib.image.imread(out / "prediction.png")
    assert picture.std() > 0.1
    assert min(picture.shape[:2]) > 500
    assert np.isfinite(table[["probability", "bmd_g_cm2", "gate_0"]].to_numpy()).all()
    return table, answer


def test_torso_ct_with_both_label_files(exported_model: Path, real_data: Path, tmp_path) -> None:
    folder = real_data / "totalsegmentator"
    ct = folder / "example_ct.nii.gz"
    whole, answer = predict(
        exported_model, tmp_path / "whole", ct, folder / "totalseg.nii.gz", "totalsegmentator_v2"
    )
    bodies, _ = predict(
        exported_model, tmp_path / "bodies", ct,
        folder / "totalseg_vertebrae_pp_refined.nii.gz", "verse", "hologic",
    )  # fmt: skip
    assert {"L1", "L2", "L3", "L4", "L5"} <= set(whole["level"]) & set(bodies["level"])
    cut = whole.set_index("level")
    assert cut.loc["T12", "truncated"]
    assert "cut by the border" in cut.loc["T12", "flags"]
    assert list(cut.loc[["L1", "L4", "L5"], "decides"]) == [True, True, False]
    assert answer["patient"]["osteoporosis"] in (True, False)
    assert answer["device"] == "unknown"
    assert whole["bmd_low"].notna().all()  # the spread over the devices
    assert any("unknown" in note for note in answer["patient"]["notes"])


def test_dicom_series_with_a_flipped_mask(exported_model: Path, real_data: Path, tmp_path) -> None:
    folder = real_data / "totalsegmentator"
    table, answer = predict(
        exported_model, tmp_path, folder / "dicom", folder / "example_seg_dicom.nii.gz",
        "totalsegmentator_v2", "ge_lunar",
    )  # fmt: skip
    assert list(table["level"]) == ["T11", "T12"]
    assert table["truncated"].all()
    assert answer["patient"]["osteoporosis"] is None
    assert "undecided" in answer["patient"]["text"]
    # The series' own identifiers stay in it.
    written = (tmp_path / "prediction.json").read_text() + (
        tmp_path / "predictions.csv"
    ).read_text()
    assert "1.3.12.2.1107" not in written


def test_lumbar_sample_in_another_orientation(
    exported_model: Path, real_data: Path, tmp_path
) -> None:
    folder = real_data / "tptbox"
    table, _ = predict(
        exported_model, tmp_path, folder / "sub-ct_label-22_ct.nii.gz",
        folder / "sub-ct_seg-vert_label-22_msk.nii.gz", "verse", "medix",
    )  # fmt: skip
    assert list(table["level"]) == ["L2", "L3", "L4"]
    assert not table.set_index("level").loc["L3", "truncated"]


def test_what_cannot_be_read_is_one_line(exported_model: Path, tmp_path, capsys) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"not an image")
    arguments = ["--ct", str(tmp_path / "ct.nii.gz"), "--mask", "m", "--out", str(tmp_path / "o")]
    assert cli.main(["predict", "--model", str(exported_model), *arguments]) == 1
    assert "\n" not in capsys.readouterr().err.strip()
    other = [*arguments, "--device", "norland"]
    assert cli.main(["predict", "--model", str(exported_model), *other]) == 1
    assert "hologic, ge_lunar, medix, unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [({"L1": 0.2, "L5": 0.99}, False), ({"L1": 0.2, "L3": 0.5}, True), ({"T12": 0.9}, None)],
)
def test_a_patient_is_decided_on_l1_to_l4(exported_model, probabilities, expected) -> None:
    table = pd.DataFrame({"level": list(probabilities), "probability": probabilities.values()})
    table["decides"] = table["level"].isin(["L1", "L2", "L3", "L4"])
    assert decide(ExportedModel(exported_model), table, "hologic")["osteoporosis"] is expected
