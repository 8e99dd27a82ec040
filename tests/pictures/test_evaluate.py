"""The pictures are evaluated, exported and predicted on by the same verbs as vertebrae."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from osteojax.data.cohort import open_cohort
from osteojax.export.card import write_card
from osteojax.export.load import ExportedModel
from tests.export.test_card import VALID


def test_evaluated_exported_predicted(
    trained: Path, prepared: Path, folder: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "evaluation"
    command = ["evaluate", "--workdir", str(trained), "--data", str(prepared), "--out", str(out)]
    assert main(command) == 0
    assert "direction: along or across" in capsys.readouterr().out
    written = pd.read_csv(out / "predictions.csv")
    assert set(written["split"]) == {"valid", "test"}
    metrics = json.loads((out / "metrics.json").read_text())
    test = written[(written["split"] == "test") & written["width_px"].notna()]
    found = metrics["targets"]["width"]["groups"]["test"]["item"]
    assert found["MAE"] == pytest.approx((test["width_pred"] - test["width_px"]).abs().mean())
    # The data folder is not needed to export, and the exported model says the same.
    assert main(["export", "--workdir", str(trained), "--out", str(tmp_path / "model")]) == 0
    model = ExportedModel(tmp_path / "model")
    assert model.kind == "tests.pictures"
    cohort = open_cohort(prepared)
    rows = cohort.rows("valid", "test", labelled=True)
    outputs = model.predict(np.stack([cohort.array(int(row), "picture") for row in rows]))
    np.testing.assert_allclose(outputs["width_px"], written["width_pred"], atol=1e-4)
    along = outputs["direction_probabilities"][:, 1]
    np.testing.assert_allclose(along, written["direction_probability"], atol=1e-5)
    # `predict` finds the kind's options and code by the card.
    files = [str(folder / f"{name}.png") for name in written["picture_id"]]
    command = ["predict", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "new")]
    assert main([*command, "--picture", *files]) == 0
    new = pd.read_csv(tmp_path / "new" / "predictions.csv")
    columns = ["picture_id", "direction_pred"]
    pd.testing.assert_frame_equal(new[columns], written[columns])
    np.testing.assert_allclose(new["width_pred"], written["width_pred"], atol=1e-4)


def test_a_model_of_a_kind_that_is_not_installed(tmp_path: Path, capsys) -> None:
    card = {**VALID, "kind": "nowhere.pictures"}
    write_card(tmp_path, card)
    assert main(["predict", "--model", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "Python finds no module nowhere" in error


def test_what_a_run_does_not_have(trained: Path, tmp_path: Path, capsys) -> None:
    command = ["export", "--workdir", str(trained), "--out", str(tmp_path / "m")]
    assert main([*command, "--what", "encoder"]) == 1
    error = capsys.readouterr().err.strip()
    assert "--what is 'encoder'" in error
    assert error.endswith("has model.")
