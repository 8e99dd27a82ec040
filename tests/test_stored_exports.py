"""Folders that earlier versions exported load, give the same numbers, and are exported alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from osteojax.export.card import input_entries
from osteojax.export.load import ExportedModel
from osteojax.export.write import export_model
from tests.stored import EXPORTED, EXPORTED_VERSIONS, unpack

OUTPUTS = (
    "probability", "bmd_g_cm2", "bmd_by_device_g_cm2", "level_probabilities", "gate", "embedding",
)  # fmt: skip


@pytest.fixture(scope="module", params=EXPORTED_VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def exported(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `features` and `expected.npz`, as that version wrote them."""
    return unpack(version, tmp_path_factory.mktemp("exported"), EXPORTED)


@pytest.fixture(scope="module")
def expected(exported: Path) -> dict[str, np.ndarray]:
    with np.load(exported / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_every_folder_is_small() -> None:
    assert EXPORTED_VERSIONS
    for path in EXPORTED.iterdir():
        assert path.stat().st_size < 300_000


def test_a_model_predicts_as_it_did(exported: Path, expected: dict[str, np.ndarray]) -> None:
    model = ExportedModel(exported / "model")
    assert model.kind == "vertebrae"
    assert (model.size, model.spacing_mm) == (8, 12.0)
    assert model.card["fitted"]["patient"]["threshold"] == 0.375
    assert model.ood is not None
    outputs = model.predict(expected["hu"], expected["device"])
    assert set(outputs) == set(OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_allclose(
            outputs[name], expected[f"model_{name}"], rtol=1e-6, atol=1e-6, err_msg=name
        )
    attention = model.attention(expected["hu"], expected["device"])
    np.testing.assert_allclose(attention, expected["model_attention"], atol=1e-6)


def test_an_encoder_embeds_as_it_did(exported: Path, expected: dict[str, np.ndarray]) -> None:
    outputs = ExportedModel(exported / "features", "features").embed(expected["hu"])
    assert set(outputs) == {"embedding", "stage1", "stage2"}
    for name, value in outputs.items():
        known = expected[f"features_{name}"]
        np.testing.assert_allclose(value, known, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("what", "run"), [("model", "finetune"), ("features", "pretrain")])
def test_this_version_exports_the_same_folder(
    version: str, exported: Path, tmp_path: Path, what: str, run: str
) -> None:
    """The same weights, inputs, outputs and facts; a card says its kind since 0.2."""
    workdir = unpack(version, tmp_path) / run
    export_model(workdir, tmp_path / "new", what=what, formats=["safetensors"])
    old, new = (
        json.loads((folder / "model.json").read_text())
        for folder in (exported / what, tmp_path / "new")
    )
    assert new["kind"] == "vertebrae"
    assert list(input_entries(new["inputs"])) == list(input_entries(old["inputs"]))
    changes = {"kind", "fitted", "formats", "sha256", "card_sha256", "code_version", "jax_version"}
    kept = [{key: card[key] for key in card if key not in changes} for card in (old, new)]
    assert kept[0] == kept[1]
    weights, before = (
        load_file(f / "weights.safetensors") for f in (tmp_path / "new", exported / what)
    )
    assert set(weights) == set(before)
    assert all(weights[name].tobytes() == before[name].tobytes() for name in before)


def test_import_paths_of_0_1() -> None:
    import osteojax.exported
    import osteojax.programs

    assert osteojax.exported.ExportedModel is ExportedModel
    assert osteojax.programs.tree_weights({"params.a.b": 1}) == {"params": {"a": {"b": 1}}}
