"""An exported model predicts what `evaluate` predicts, where osteojax cannot be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from launch.evaluate import predictions_table
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import PreparedCohort
from osteojax.data.schema import Manifest
from osteojax.errors import UserError
from osteojax.export import export_model, flat_weights, tree_weights
from osteojax.exported import ExportedModel
from tests.small_runs import pretraining

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "evaluate_exported.py"


def rois_of(pool: Path, device: str) -> tuple[np.ndarray, np.ndarray]:
    """HU volumes of the test vertebrae of a device, decoded from the shards, and their rows."""
    cohort = PreparedCohort(pool)
    rows = cohort.rows("test", labelled=True)
    rows = rows[cohort.table["device"].to_numpy()[rows] == device]
    codes = np.concatenate([cohort.members(int(row), ["image"]) for row in rows])
    return cohort.manifest.maps[0].decode(codes), rows


def test_equals_evaluate(tiny_pool: Path, fine_tuned: Path, exported_model: Path) -> None:
    table, _, _ = predictions_table(fine_tuned, tiny_pool, ("test",), "best", True)
    hu, _ = rois_of(tiny_pool, "hologic")
    exported = ExportedModel(exported_model)
    outputs = exported.predict(hu, exported.device_index("Hologic"))
    mine = table[table["device"] == "hologic"]
    np.testing.assert_allclose(outputs["probability"], mine["probability"], atol=1e-5)
    np.testing.assert_allclose(outputs["bmd_g_cm2"], mine["bmd_pred_g_cm2"], atol=1e-5)
    np.testing.assert_array_equal(outputs["level_probabilities"].argmax(1) + 1, mine["level_pred"])
    gates = mine[["gate_0", "gate_1", "gate_2"]]
    np.testing.assert_allclose(outputs["gate"], gates, atol=1e-5)


def test_a_fresh_interpreter_without_osteojax(
    tiny_pool: Path, exported_model: Path, tmp_path: Path
) -> None:
    hu, _ = rois_of(tiny_pool, "ge_lunar")
    np.save(tmp_path / "rois.npy", hu)
    blocker = tmp_path / "block" / "osteojax"
    blocker.mkdir(parents=True)
    (blocker / "__init__.py").write_text("raise ImportError('osteojax is not here')\n")
    environment = {**os.environ, "PYTHONPATH": str(blocker.parent), "JAX_PLATFORMS": "cpu"}
    check = "import osteojax"
    command = [sys.executable, "-c", check]
    blocked = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "osteojax is not here" in blocked.stderr
    command = [
        sys.executable,
        str(EXAMPLE),
        str(exported_model),
        str(tmp_path / "rois.npy"),
        "ge_lunar",
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    exported = ExportedModel(exported_model)
    expected = exported.predict(hu, exported.device_index("ge_lunar"))
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=1e-5, err_msg=name)


def test_card_says_what_goes_in_and_out(exported_model: Path) -> None:
    card = json.loads((exported_model / "model.json").read_text())
    assert card["inputs"]["hu"]["shape"] == ["b", 16, 16, 16]
    assert card["inputs"]["hu"]["spacing_mm"] == 6.0
    assert card["devices"] == ["hologic", "ge_lunar", "medix", "unknown"]
    assert card["fitted"] is None  # never evaluated
    assert "Not a medical device" in card["intended_use"]


def test_weights_round_trip_bit_exactly(fine_tuned: Path, exported_model: Path) -> None:
    _, variables = load_variables(fine_tuned)
    flat = flat_weights(variables["params"], variables["model_state"]["batch_stats"])
    loaded = ExportedModel(exported_model)._weights
    assert set(loaded) == set(flat)
    for name, leaf in flatten_dict(tree_weights(loaded), sep=".").items():
        np.testing.assert_array_equal(leaf, flat[name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "weights.safetensors").unlink(), "is missing"),
        (lambda m: (m / "weights.safetensors").write_bytes(b"x" * 100), "SHA-256 differs"),
        (lambda m: (m / "program.jaxexport").write_bytes(b""), "SHA-256 differs"),
        (lambda m: (m / "model.json").write_text("{"), "not a model card"),
        (lambda m: (m / "model.json").unlink(), r"no model\.json"),
        (lambda m: change(m, format_version=2), "version 2"),
        (lambda m: change(m, sha256={}), "not a model card"),
        (lambda m: change(m, sha256={"../model.json": "0", "program.jaxexport": "0",
                                     "weights.safetensors": "0"}), "is missing"),
    ],
)  # fmt: skip
def test_what_was_changed_is_refused(
    exported_model: Path, tmp_path: Path, damage, message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(exported_model, copy)
    damage(copy)
    with pytest.raises(UserError, match=message):
        ExportedModel(copy)


def change(model: Path, **fields) -> None:
    path = model / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_only_fine_tuned_runs_export(tiny_pool: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        export_model(tmp_path, tmp_path / "model")
    Manifest.load(tiny_pool).save(tmp_path)
    config = {"config": json.loads(pretraining().to_json())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is a swav run"):
        export_model(tmp_path, tmp_path / "model")


def test_an_unknown_device_lists_the_known(exported_model: Path) -> None:
    with pytest.raises(UserError, match="hologic, ge_lunar, medix, unknown"):
        ExportedModel(exported_model).device_index("Norland")
