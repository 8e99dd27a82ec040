"""Prediction by a model that sees the vertebral body: its mask goes along, and doubts are said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_prep.vertebrae.roi import extract_rois
from data_prep.vertebrae.verify import load_case
from launch import cli
from launch.prediction.batches import frame_of
from launch.prediction.cases import Case
from launch.prediction.decision import _crop_flags, vertebra_table
from launch.prediction.loading import LoadedCase, load
from launch.prediction.scan import predict_scan
from osteojax.export.load import ExportedModel
from tests.data_prep.phantom import spine, write_scan

LEVELS = ("L1", "L2", "L3")


@pytest.fixture(scope="module")
def model(exported_body_model: Path) -> ExportedModel:
    return ExportedModel(exported_body_model)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """CT and mask of a phantom."""
    folder = tmp_path_factory.mktemp("scan")
    row = write_scan(folder, "s", spine(LEVELS, 3.0, seed=1, bone_hu=150.0))
    return folder / row["ct"], folder / row["mask"]


def test_bodies_go_to_the_model_with_their_images(model: ExportedModel, scan) -> None:
    table = predict_scan(model, *scan, device="hologic")
    grid = frame_of(model).grid
    assert (grid.shape, grid.spacing_mm, grid.back_mm) == ((8, 10, 12), 6.0, 0.0)
    rois = extract_rois(*load_case(*scan, "verse", "s"), grid, "s")
    body = np.stack([roi.body for roi in rois])
    assert body.any(axis=(1, 2, 3)).all()
    outputs = model.predict(np.stack([roi.hu for roi in rois]), 0, body=body)
    np.testing.assert_allclose(table["probability"], outputs["probability"], atol=1e-6)
    assert np.ptp(outputs["probability"]) > 1e-6


def test_the_frame_is_that_of_the_box(model: ExportedModel, monkeypatch) -> None:
    hu = {**model.card["inputs"]["hu"], "box": "vertebra", "back_mm": 12.0}
    monkeypatch.setitem(model.card["inputs"], "hu", hu)
    assert frame_of(model).grid.back_mm == 12.0


@pytest.mark.slow  # draws the page; the rest of the command: test_predict.py
def test_the_command_shows_where_the_model_looked(
    exported_body_model: Path, scan, tmp_path: Path
) -> None:
    ct, mask = scan
    arguments = ["--ct", str(ct), "--mask", str(mask), "--attention", "--workers", "0"]
    command = ["predict", "--model", str(exported_body_model), "--out", str(tmp_path)]
    assert cli.main([*command, *arguments]) == 0
    answer = json.loads((tmp_path / "prediction.json").read_text())
    assert "body_crop" not in answer["patient"]["flags"]
    assert (tmp_path / "prediction.png").stat().st_size > 10_000


def test_a_crop_that_lacks_a_voxel_is_not_all_body() -> None:
    crops = {"crops": {"edge_voxels": 12, "body_share": 1.0}}
    model: Any = SimpleNamespace(card={"inputs": crops}, spacing_mm=1.5)
    body = np.zeros((14, 14, 14), bool)
    body[1:13, 1:13, 1:13] = True
    assert _crop_flags(model, body) == []
    body[1, 1, 1] = False
    (flag,) = _crop_flags(model, body)
    assert flag.text == "no 18 mm crop lies inside its body (the best one is 99% body)"


def test_a_body_without_a_place_is_answered_with_a_doubt(model: ExportedModel, scan) -> None:
    """Plates of two voxels: two thirds of a crop of three. A body that holds crops has no flag, nor
    has a model that sees no crops."""
    ct, mask = scan
    loaded = load(Case("s", ct, mask, "verse", "hologic", ct.parent), frame_of(model))
    assert isinstance(loaded, LoadedCase)
    body = loaded.body.copy()
    body[1] = False
    body[1, 3:5, 2:8, 2:9] = True
    loaded = dataclasses.replace(loaded, body=body)
    table, flags = vertebra_table(model, loaded, model.predict(loaded.hu, 0, body=body))
    found = [[flag.text for flag in own if flag.name == "body_crop"] for own in flags]
    text = "no 18 mm crop lies inside its body (the best one is 67% body)"
    assert found == [[], [text], []]
    assert text in table["flags"][1]
    assert table["doubtful"][1]
    assert np.isfinite(table["probability"]).all()
    inputs = {name: entry for name, entry in model.card["inputs"].items() if name != "crops"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.card, "inputs", inputs)
        _, flags = vertebra_table(model, loaded, model.predict(loaded.hu, 0, body=body))
    assert not any(flag.name == "body_crop" for own in flags for flag in own)
