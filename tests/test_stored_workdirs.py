"""Workdirs that earlier versions wrote open, resume, warm-start and export in this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from osteojax.checkpoints import load_variables, warm_start
from osteojax.export.load import ExportedModel
from osteojax.export.write import export_model, load_run
from osteojax.objectives.multitask import build_model
from osteojax.train import loop
from tests.small_runs import fine_tuning, on_devices, pretraining
from tests.stored import VERSIONS, unpack
from tests.tiny_cohort import write_tiny_cohort

OUTPUTS = ("probability", "bmd_g_cm2", "gate", "embedding")


@pytest.fixture(scope="module", params=VERSIONS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`finetune`, `pretrain` and `expected.npz` of one version."""
    return unpack(request.param, tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def expected(stored: Path) -> dict[str, np.ndarray]:
    """What the version itself said of three vertebrae."""
    with np.load(stored / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_every_version_is_small() -> None:
    assert VERSIONS
    for version in VERSIONS:
        assert (Path(__file__).parent / "stored" / f"{version}.tar.xz").stat().st_size < 300_000


def test_a_fine_tuned_run_predicts_as_it_did(
    stored: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    export_model(stored / "finetune", tmp_path / "model")
    model = ExportedModel(tmp_path / "model")
    outputs = model.predict(expected["hu"], expected["device"])
    for name in OUTPUTS:
        np.testing.assert_allclose(
            outputs[name], expected[f"best_ema_params_{name}"], atol=1e-5, err_msg=name
        )
    # The last step's raw weights, in the same compiled program.
    export_model(
        stored / "finetune", tmp_path / "raw", "last", weights="raw", formats=["safetensors"]
    )
    model._weights = load_file(tmp_path / "raw" / "weights.safetensors")
    outputs = model.predict(expected["hu"], expected["device"])
    for name in OUTPUTS:
        np.testing.assert_allclose(
            outputs[name], expected[f"last_params_{name}"], atol=1e-5, err_msg=name
        )


def test_a_pretrained_encoder_embeds_as_it_did(
    stored: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    card = export_model(stored / "pretrain", tmp_path / "model", what="features")
    assert set(card["outputs"]) == {"embedding", "stage1", "stage2"}
    outputs = ExportedModel(tmp_path / "model", "features").embed(expected["hu"])
    np.testing.assert_allclose(outputs["embedding"], expected["pretrain_embedding"], atol=1e-5)
    np.testing.assert_allclose(outputs["stage1"], expected["pretrain_stage1"], atol=1e-5)
    # The last stage's mean is the embedding.
    np.testing.assert_allclose(outputs["stage2"], outputs["embedding"], atol=1e-6)


def test_a_pretrained_encoder_starts_a_model_of_this_version(
    stored: Path, expected: dict[str, np.ndarray]
) -> None:
    config, _ = load_run(stored / "finetune")
    model = build_model(config, 4, None)
    x = jax.ShapeDtypeStruct((2, *expected["hu"].shape[1:], 1), np.float32)
    fresh = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, np.zeros(2, np.int32), train=False), x
    )
    _, source = load_variables(stored / "pretrain")
    _, taken = warm_start(fresh["params"], source["params"])
    assert len(taken) == 18
    if config.model.norm == "group":  # keeps no statistics
        assert "batch_stats" not in fresh
        return
    _, taken = warm_start(fresh["batch_stats"], source["model_state"]["image_batch_stats"])
    assert len(taken) == 12


@pytest.mark.parametrize(
    ("verb", "current"), [("finetune", fine_tuning), ("pretrain", pretraining)]
)
def test_a_finished_run_is_resumed_and_has_nothing_to_do(
    stored: Path, expected: dict[str, np.ndarray], tmp_path: Path, verb: str, current
) -> None:
    """The whole state is restored, optimiser and all, on a config that may know more fields."""
    size = expected["hu"].shape[1]
    pool = write_tiny_cohort(tmp_path / "pool", patients=20, size=size)
    workdir = Path(shutil.copytree(stored / verb, tmp_path / verb))
    shutil.copy(workdir / "manifest.json", pool)  # the folder as that version prepared it
    config = current()
    with config.unlocked():
        config.update(ConfigDict(json.loads((workdir / "config.json").read_text())["config"]))
    with on_devices(1):
        best = loop.train(config, workdir, pool)
    assert best["step"] in (2, 4)
