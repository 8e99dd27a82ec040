"""Exported models that see the vertebral body: their inputs, and programs that cut their crops."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from launch.evaluation.run import predictions_table
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from osteojax.evaluation.vertebrae import VertebraEvaluation
from osteojax.export.load import ExportedModel
from osteojax.export.write import export_model
from tests.small_runs import on_devices


@pytest.fixture(scope="module")
def evaluated(
    body_pool: Path, fine_tuned_body: Path
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """What `evaluate` writes of the test split, and HU and bodies of its vertebrae."""
    with on_devices(1):
        found = predictions_table(fine_tuned_body, body_pool, ("test",), "best", True)
    table, _, cohort = found
    hu, body = images_of(cohort, cohort.rows("test", labelled=True))
    return table, hu, body


def images_of(cohort: PreparedCohort, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    window = cohort.about.window
    codes = np.stack([cohort.array(int(row), "image")[window] for row in rows])
    body = np.stack([cohort.array(int(row), "mask")[2][window] for row in rows])
    return cohort.about.maps[0].decode(codes), body


@pytest.fixture(scope="module")
def model(exported_body_model: Path) -> ExportedModel:
    return ExportedModel(exported_body_model)


def test_it_predicts_what_evaluate_writes(evaluated, model: ExportedModel) -> None:
    table, hu, body = evaluated
    device = np.array([model.device_index(name) for name in table["device"]], np.int32)
    outputs = model.predict(hu, device, body=body)
    np.testing.assert_allclose(outputs["probability"], table["probability"], atol=1e-5)
    np.testing.assert_allclose(outputs["bmd_g_cm2"], table["bmd_pred_g_cm2"], atol=1e-5)
    gates = table[["expert_1", "expert_2", "expert_3"]].to_numpy(float)
    np.testing.assert_allclose(outputs["gate"], gates, atol=1e-5)
    assert (table["body_share"] == 1).all()
    # The body matters, and may be given in the card's order too.
    assert np.ptp(model.predict(hu, body, device)["probability"] - outputs["probability"]) == 0
    moved = model.predict(hu, device, body=np.roll(body, 1, axis=1))
    assert np.abs(moved["probability"] - outputs["probability"]).max() > 1e-4


def test_attention_is_of_the_box(evaluated, model: ExportedModel) -> None:
    _, hu, body = evaluated
    heat = model.attention(hu[:2], 0, body=body[:2])
    assert heat.shape == hu[:2].shape
    assert heat.min() >= 0


def test_the_card_describes_body_crops_and_numbers(exported_body_model: Path) -> None:
    card = json.loads((exported_body_model / "model.json").read_text())
    assert card["format_version"] == 3  # refused in one line by 0.2
    inputs = card["inputs"]
    assert inputs["hu"]["shape"] == inputs["body"]["shape"] == ["b", 8, 10, 12]
    assert inputs["body"]["dtype"] == "bool"
    assert "crops are cut inside it" in inputs["body"]["what"]
    crops = inputs["crops"]
    assert (crops["edge_voxels"], crops["count"], crops["body_share"]) == (3, 3, 1.0)
    assert crops["scale"] != inputs["network_input"]["scale"]  # of bodies, and of boxes
    assert len(inputs["numbers"]["names"]) == 11
    program = jax.export.deserialize(
        bytearray((exported_body_model / "program.jaxexport").read_bytes())
    )
    (weights, *_), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    assert weights["numbers.mean"].shape == weights["numbers.std"].shape == (11,)


def test_a_missing_body_is_one_line(evaluated, model: ExportedModel) -> None:
    _, hu, _ = evaluated
    with pytest.raises(
        UserError, match=r"sees the vertebral body.*body=bool\[b, 8, 10, 12\]"
    ) as no:
        model.predict(hu, 0)
    assert "\n" not in str(no.value)
    with pytest.raises(ValueError, match="is no cube: use shape"):
        _ = model.size


def test_a_model_of_boxes_ignores_the_body(exported_model: Path) -> None:
    model = ExportedModel(exported_model)
    assert not model.takes_body
    hu = np.zeros((1, *model.shape), np.float32)
    body = np.ones(hu.shape, bool)
    outputs, alone = model.predict(hu, 0, body=body), model.predict(hu, 0)
    assert all((outputs[name] == alone[name]).all() for name in alone)


def test_pictures_are_of_the_shown_window(body_pool: Path) -> None:
    """The body goes to the model; what it answers is drawn where it lies."""
    cohort = PreparedCohort(body_pool)

    def attention(variables, hu, body, device):
        return {"attention": jnp.where(body, hu - hu.min() + 1.0 + device[0], 0.0)}

    shown = VertebraEvaluation(cohort, lambda: {}, attention, takes_body=True)
    (picture,) = shown.pictures({}, cohort.table.iloc[[4]])
    hu, body = images_of(cohort, np.array([4]))
    np.testing.assert_array_equal(picture.hu, hu[0])
    np.testing.assert_array_equal(picture.heat > 0, body[0])
    assert picture.mask.shape == cohort.about.shown


def test_features_of_both_encoders(
    fine_tuned_body: Path, evaluated, model: ExportedModel, tmp_path: Path
) -> None:
    """The encoders' part of the model's embedding; a stage's mean is that of its encoder."""
    _, hu, body = evaluated
    card = export_model(fine_tuned_body, tmp_path, what="features")
    assert set(card["outputs"]) == {"embedding", "stage1", "whole_stage1"}
    assert not any(name.startswith("numbers.") for name in card["outputs"])
    found = ExportedModel(tmp_path, "features").embed(hu, body=body)
    whole = model.predict(hu, 0, body=body)["embedding"]
    np.testing.assert_allclose(found["embedding"], whole[:, :-11], rtol=1e-5, atol=1e-5)
    stages = np.concatenate([found["stage1"], found["whole_stage1"]], axis=1)
    np.testing.assert_allclose(stages, found["embedding"], rtol=1e-5, atol=1e-5)
