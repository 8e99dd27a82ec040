"""The pictures are evaluated and exported by the same verbs as vertebrae."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from osteojax.data.cohort import open_cohort
from osteojax.export.load import ExportedModel
from tests.pictures import commands


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert main(commands.train(workdir, prepared)) == 0
    return workdir


def test_evaluated_and_exported(trained: Path, prepared: Path, tmp_path: Path, capsys) -> None:
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


def test_what_a_run_does_not_have(trained: Path, tmp_path: Path, capsys) -> None:
    command = ["export", "--workdir", str(trained), "--out", str(tmp_path / "m")]
    assert main([*command, "--what", "encoder"]) == 1
    error = capsys.readouterr().err.strip()
    assert "--what is 'encoder'" in error
    assert error.endswith("has model.")
