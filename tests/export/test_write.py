"""An exported folder holds the checkpoint that was asked for and predicts what `evaluate` does."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from launch import cli
from launch.evaluation.run import predictions_table
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import PreparedCohort
from osteojax.data.manifest import load_manifest
from osteojax.data.vertebrae import about
from osteojax.errors import UserError
from osteojax.evaluation import predictions
from osteojax.evaluation.statistics import ood
from osteojax.export.load import ExportedModel
from osteojax.export.programs import flat_weights, tree_weights
from osteojax.export.write import export_model, load_run
from osteojax.files import write_json
from osteojax.objectives.multitask import build_model
from tests.small_runs import pretraining
from tests.stored import unpack


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdirs `finetune`, with averaged weights, and `pretrain`."""
    return unpack("0.1.0", tmp_path_factory.mktemp("stored"))


def rois_of(pool: Path, rows: np.ndarray) -> np.ndarray:
    """f32[N, D, H, W] HU of some rows of a prepared folder, decoded from its shards."""
    cohort = PreparedCohort(pool)
    codes = np.concatenate([cohort.members(int(row), ["image"]) for row in rows])
    return cohort.about.maps[0].decode(codes)


def test_predicts_what_evaluate_wrote(
    tiny_pool: Path, fine_tuned: Path, exported_model: Path, tmp_path: Path
) -> None:
    table, _, cohort = predictions_table(fine_tuned, tiny_pool, ("test",), "best", True)
    predictions.write(tmp_path / "predictions.csv", table)
    written = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False)
    exported = ExportedModel(exported_model)
    device = np.array([exported.device_index(name) for name in written["device"]], np.int32)
    assert len(set(device)) == 2
    hu = rois_of(tiny_pool, cohort.rows("test", labelled=True))
    outputs = exported.predict(hu, device)
    np.testing.assert_allclose(outputs["probability"], written["probability"], atol=1e-5)
    np.testing.assert_allclose(outputs["bmd_g_cm2"], written["bmd_pred_g_cm2"], atol=1e-5)
    levels = outputs["level_probabilities"]
    np.testing.assert_array_equal(levels.argmax(1) + 1, written["level_pred"])
    np.testing.assert_allclose(levels.max(1), written["level_probability"], atol=1e-5)
    gates = written[["expert_1", "expert_2", "expert_3"]].astype(float)
    np.testing.assert_allclose(outputs["gate"], gates, atol=1e-5)
    # BMD on every device is what each device's own call gives.
    for index in range(len(exported.devices)):
        one = exported.predict(hu[:2], index)["bmd_g_cm2"]
        np.testing.assert_allclose(outputs["bmd_by_device_g_cm2"][:2, index], one, atol=1e-6)


def test_one_program_for_every_platform_and_batch(exported_model: Path) -> None:
    for name in ("program", "attention"):
        data = (exported_model / f"{name}.jaxexport").read_bytes()
        program = jax.export.deserialize(bytearray(data))
        assert program.platforms == ("cpu", "cuda", "tpu")
        (_, hu, device), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        assert [str(size) for size in hu.shape] == ["b", "16", "16", "16"]
        assert [str(size) for size in device.shape] == ["b"]
        # TF32 on a GPU would move predictions by more than 1e-5.
        product = re.compile(r"= stablehlo\.(convolution|dot_general)\b.*")
        products = [match.group() for match in product.finditer(program.mlir_module())]
        assert any("convolution" in line for line in products)
        assert {line.count("HIGHEST") for line in products} == {2}


@pytest.mark.slow
def test_grad_cam_is_that_of_the_library(
    tiny_pool: Path, fine_tuned: Path, exported_model: Path
) -> None:
    from osteojax.data.augment import network_input
    from osteojax.models.gradcam import gradcam

    config, manifest = load_run(fine_tuned)
    _, variables = load_variables(fine_tuned)
    codes = PreparedCohort(tiny_pool).members(0, ["image"])
    x = network_input(codes, np.zeros(1, np.int32), about(manifest).map_affine(), 3)
    inner = {"params": variables["params"], **variables["model_state"]}
    device = np.array([1], np.int32)
    model = build_model(config, len(about(manifest).devices), None)
    expected = jax.jit(lambda x: gradcam(model, inner, x, device))(x)
    exported = ExportedModel(exported_model)
    assert exported.has_attention
    got = exported.attention(about(manifest).maps[0].decode(codes), device)
    assert got.shape == (1, 16, 16, 16)
    np.testing.assert_allclose(got, expected, atol=1e-5 * float(np.max(expected)))


def test_card_says_what_goes_in_and_out(exported_model: Path) -> None:
    card = json.loads((exported_model / "model.json").read_text())
    hu = card["inputs"]["hu"]
    assert hu["shape"] == ["b", 16, 16, 16]
    assert hu["dtype"] == "float32"
    assert hu["unit"] == "HU"
    assert hu["window"] == [-200.0, 1000.0]
    assert hu["spacing_mm"] == 6.0
    assert len(hu["axes"]) == 3
    assert card["inputs"]["label_scheme_of_training_masks"] == "verse"
    assert card["outputs"]["level_probabilities"]["shape"] == ["b", 18]
    assert card["outputs"]["bmd_g_cm2"]["unit"] == "g/cm^2"
    assert card["devices"] == ["hologic", "ge_lunar", "medix", "unknown"]
    assert card["fitted"] is None  # never evaluated
    assert card["checkpoint"]["which"] == "best"
    assert card["config"]["objective"]["name"] == "multitask"
    assert card["code_version"]
    assert "Not a medical device" in card["intended_use"]
    assert set(card["sha256"]) == {
        "program.jaxexport", "attention.jaxexport", "weights.safetensors"
    }  # fmt: skip


def test_network_input_is_described_exactly(tiny_pool: Path, exported_model: Path) -> None:
    """Who reads the weights alone makes the network's input by model.json."""
    how = json.loads((exported_model / "model.json").read_text())["inputs"]["network_input"]
    manifest = load_manifest(tiny_pool)
    hu = np.arange(-1100, 2000, 0.5, np.float32)
    code = np.clip(np.floor((hu - how["offset_hu"]) / how["step_hu"] + 0.5), 0, how["codes"] - 1)
    np.testing.assert_array_equal(code, about(manifest).maps[0].encode(hu))
    stored = about(manifest).maps[0].decode(code.astype(np.uint8))
    z_scored = (stored - about(manifest).maps[0].mean) / about(manifest).maps[0].std
    np.testing.assert_allclose(how["scale"] * code + how["shift"], z_scored, rtol=1e-5, atol=1e-5)


def test_weights_come_back_into_flax_bit_for_bit(fine_tuned: Path, exported_model: Path) -> None:
    _, variables = load_variables(fine_tuned)
    inner = {"params": variables["params"], "batch_stats": variables["model_state"]["batch_stats"]}
    loaded = tree_weights(load_file(exported_model / "weights.safetensors"))
    assert jax.tree.structure(loaded) == jax.tree.structure(inner)
    for here, there in zip(jax.tree.leaves(loaded), jax.tree.leaves(inner), strict=True):
        assert here.dtype == there.dtype == np.float32
        assert here.tobytes() == np.asarray(there).tobytes()
    # The module of the config takes them: names and shapes are its own.
    config, manifest = load_run(fine_tuned)
    model = build_model(config, len(about(manifest).devices), None)
    x = jax.ShapeDtypeStruct((2, 16, 16, 16, 1), np.float32)
    wanted = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, np.zeros(2, np.int32), train=False), x
    )
    assert jax.tree.map(np.shape, dict(wanted)) == jax.tree.map(np.shape, loaded)


NAMES = {
    "params.backbone.stem.kernel": (7, 7, 7, 1, 4),
    "params.backbone.stem_norm.norm.scale": (4,),
    "batch_stats.backbone.stem_norm.norm.mean": (4,),
    "batch_stats.backbone.stage1_block1.norm1.norm.var": (4,),
    "params.backbone.stage1_block1.conv1.kernel": (3, 3, 3, 4, 4),
    "params.backbone.stage1_block1.norm2.norm.bias": (4,),
    "params.backbone.stage2_block1.conv1.kernel": (3, 3, 3, 4, 8),
    "params.backbone.stage2_block1.projection.kernel": (1, 1, 1, 4, 8),
    "params.backbone.stage2_block1.projection_norm.norm.scale": (8,),
    "params.experts.device_embedding.embedding": (4, 8),
    "params.experts.experts.hidden.kernel": (3, 8, 256),
    "params.experts.experts.diagnosis.bias": (3, 2),
    "params.experts.experts.bmd.kernel": (3, 256, 1),
    "params.experts.experts.position.kernel": (3, 256, 18),
    "params.experts.gate_hidden.kernel": (8, 128),
    "params.experts.gate_output.bias": (3,),
}


def test_names_of_the_weights_are_those_documented(exported_model: Path) -> None:
    """Other people's loaders go by them: docs/export.md."""
    weights = load_file(exported_model / "weights.safetensors")
    assert {name: weights[name].shape for name in NAMES} == NAMES
    assert len(weights) == 43


def test_best_last_averaged_and_raw(stored: Path, tmp_path: Path) -> None:
    found = {}
    for which in ("best", "last"):
        step, variables = load_variables(stored / "finetune", which)
        for weights, kind in (("averaged", "ema_params"), ("raw", "params")):
            card = export_model(
                stored / "finetune", tmp_path, which, formats=["safetensors"], weights=weights
            )
            assert card["checkpoint"] == {
                "which": which, "step": step, "averaged_parameters": weights == "averaged"
            }  # fmt: skip
            expected = flat_weights(
                {"params": variables[kind], "batch_stats": variables["model_state"]["batch_stats"]}
            )
            got = load_file(tmp_path / "weights.safetensors")
            assert set(got) == set(expected)
            assert all(np.array_equal(got[name], expected[name]) for name in got)
            found[which, weights] = got["params.experts.gate_output.kernel"].tobytes()
    assert len(set(found.values())) == 4
    card = export_model(stored / "finetune", tmp_path, formats=["safetensors"])
    assert card["checkpoint"]["averaged_parameters"] is True  # what evaluate evaluates
    assert not (tmp_path / "program.jaxexport").exists()
    with pytest.raises(UserError, match=r"without a program.*--format stablehlo"):
        ExportedModel(tmp_path)


def test_averaged_weights_that_were_not_kept(fine_tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no averaged weights.*--weights raw"):
        export_model(fine_tuned, tmp_path / "out", weights="averaged")
    assert not (tmp_path / "out").exists()


def evaluated(workdir: Path, step: int) -> dict:
    """Leaves in a workdir what `evaluate` leaves there of a checkpoint."""
    unit = {"n": 9, "threshold": 0.25, "temperature": 1.5, "notes": {}}
    fitted = {
        "vertebra": unit, "patient": unit, "patient_mean": unit,
        "bmd_residual_g_cm2": {"n": 9, "quantiles": {"0.05": -0.1, "0.95": 0.1}, "notes": {}},
    }  # fmt: skip
    write_json(
        workdir / "evaluation" / "metrics.json",
        {"context": {"checkpoint_step": step}, "fitted": fitted},
    )
    rng = np.random.default_rng(0)
    stats = ood.fit(rng.normal(size=(40, 8)), rng.normal(size=(30, 8)))
    ood.save(workdir / "evaluation" / ood.FILE, stats, {"checkpoint_step": step})
    return fitted


def test_what_was_fitted_goes_along_with_its_own_checkpoint_only(tmp_path: Path, caplog) -> None:
    workdir = unpack("0.1.0", tmp_path) / "finetune"
    step, _ = load_variables(workdir)
    fitted = evaluated(workdir, step)
    card = export_model(workdir, tmp_path / "model", formats=["safetensors"])
    assert card["fitted"] == fitted
    assert "embedding.safetensors" in card["sha256"]
    # Thresholds of the averaged weights are not those of the raw ones, nor of another step.
    for choice in ({"weights": "raw"}, {"which": "last"}):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            card = export_model(workdir, tmp_path / "model", formats=["safetensors"], **choice)
        assert card["fitted"] is None
        assert "embedding.safetensors" not in card["sha256"]
        assert not (tmp_path / "model" / "embedding.safetensors").exists()
        assert "its evaluation is of" in caplog.text
    ood.save(
        workdir / "evaluation" / ood.FILE,
        ood.load(workdir / "evaluation" / ood.FILE),
        {"checkpoint_step": step + 1},
    )
    card = export_model(workdir, tmp_path / "model", formats=["safetensors"])
    assert "embedding.safetensors" not in card["sha256"]
    (workdir / "evaluation" / "metrics.json").write_text('{"context": [')
    with pytest.raises(UserError, match=r"metrics\.json is damaged.*Rerun osteojax evaluate"):
        export_model(workdir, tmp_path / "model", formats=["safetensors"])


def test_only_fine_tuned_runs_give_a_model(tiny_pool: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        export_model(tmp_path, tmp_path / "model")
    load_manifest(tiny_pool).save(tmp_path)
    config = {"config": json.loads(pretraining().to_json())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is a swav run.*--what encoder"):
        export_model(tmp_path, tmp_path / "model")
    with pytest.raises(
        UserError, match=r"--what is 'heads'; .* swav run and has encoder, features"
    ):
        export_model(tmp_path, tmp_path / "model", what="heads")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "stablehlo,onnx"), r"jax2onnx 0\.17\.1.*conv layouts.*export_onnx\.py"),
        (("--format", "tflite"), "'tflite'; choose from stablehlo, safetensors"),
        (("--format", ","), "--format is empty"),
    ],
)
def test_formats_that_are_not_offered_are_refused_at_once(
    tmp_path: Path, capsys, arguments: tuple[str, str], message: str
) -> None:
    out = tmp_path / "out"
    command = ["export", "--workdir", str(tmp_path), "--out", str(out), *arguments]
    assert cli.main(command) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(message, error)
    assert not out.exists()


def test_the_command_lists_what_it_wrote(stored: Path, tmp_path: Path, capsys) -> None:
    command = ["export", "--workdir", str(stored / "pretrain"), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--what", "encoder", "--format", "safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split("  ")[0]).name for line in lines] == [
        "model.json", "weights.safetensors"
    ]  # fmt: skip
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (card["what"], card["formats"]) == ("encoder", ["safetensors"])
    assert set(card["outputs"]) == {"embedding"}
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert all(name.split(".")[1] == "backbone" for name in weights)
