"""A folder that is damaged, edited or put together from two models is refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from osteojax.data.devices import device_name
from osteojax.errors import UserError
from osteojax.evaluation.statistics import ood
from osteojax.export.card import write_card
from osteojax.export.load import ExportedModel
from osteojax.export.programs import serialise
from osteojax.export.write import export_model
from tests.stored import unpack

PROGRAM, WEIGHTS, ATTENTION = "program.jaxexport", "weights.safetensors", "attention.jaxexport"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("0.1.0", tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def whole(stored: Path) -> Path:
    """An exported folder of a model for 8^3 voxels."""
    export_model(stored / "finetune", stored / "model")
    return stored / "model"


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def refused(folder: Path, message: str, what: str = "model") -> None:
    with pytest.raises(UserError, match=message) as error:
        ExportedModel(folder, what)
    assert "\n" not in str(error.value)


def sign(folder: Path, **fields: object) -> None:
    """Makes every hash right again: what is left to find is what the content says."""
    card = {**json.loads((folder / "model.json").read_text()), **fields}
    names = [name for name in (PROGRAM, ATTENTION, WEIGHTS, ood.FILE) if (folder / name).is_file()]
    digests = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    write_card(folder, {**card, "sha256": digests})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def newer(path: Path) -> None:
    """As a later jax would write it: with a calling convention that this one does not know."""
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    changed = dataclasses.replace(program, calling_convention_version=99)
    path.write_bytes(changed.serialize())


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "model.json").read_text()
    assert old in text
    (folder / "model.json").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / WEIGHTS).unlink(), "weights.safetensors is missing"),
        (lambda m: (m / ATTENTION).unlink(), "attention.jaxexport is missing"),
        (lambda m: cut(m / WEIGHTS), "SHA-256 differs"),
        (lambda m: flip(m / WEIGHTS), "SHA-256 differs"),
        (lambda m: flip(m / PROGRAM), "SHA-256 differs"),
        (lambda m: (m / PROGRAM).write_bytes(b""), "SHA-256 differs"),
        (lambda m: (m / "model.json").unlink(), r"no model\.json"),
        (lambda m: cut(m / "model.json"), "not JSON"),
        (lambda m: edit(m, '"spacing_mm": 12.0', '"spacing_mm": 11.0'), "card_sha256 differs"),
        (lambda m: edit(m, '"hologic"', '"medix"'), "card_sha256 differs"),
        (lambda m: edit(m, WEIGHTS, "../model/" + WEIGHTS), "card_sha256 differs"),
    ],
)  # fmt: skip
def test_what_was_damaged_is_refused(
    model: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(model)
    refused(model, message)


def other_weights(model: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    weights = load_file(model / WEIGHTS)
    change(weights)
    save_file(weights, str(model / WEIGHTS))
    sign(model)


KERNEL = "params.backbone.stem.kernel"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: other_weights(m, lambda w: w.update({KERNEL: np.zeros((7, 7, 7, 1, 8), "f4")})),
         r"takes params\.backbone\.stem\.kernel of float32 \(7, 7, 7, 1, 4\), and "
         r"weights\.safetensors holds float32 \(7, 7, 7, 1, 8\)"),
        (lambda m: other_weights(m, lambda w: w.update({KERNEL: w[KERNEL].astype("f2")})),
         "holds float16"),
        (lambda m: other_weights(m, lambda w: w.pop(KERNEL)), "holds nothing"),
        (lambda m: other_weights(m, lambda w: w.update(more=np.zeros(1, "f4"))),
         "takes more of nothing"),
        (lambda m: ((m / WEIGHTS).write_bytes(b"x" * 100), sign(m)), "not a safetensors file"),
        (lambda m: (cut(m / WEIGHTS), sign(m)), "not a safetensors file"),
        (lambda m: (cut(m / PROGRAM), sign(m)), "not a program that jax"),
        (lambda m: (newer(m / PROGRAM), sign(m)), "calling convention 99; jax .* install"),
        (lambda m: ((m / PROGRAM).write_bytes(b""), sign(m)), "not a program that jax"),
        (lambda m: ((m / PROGRAM).write_bytes(b"\x80\x04N."), sign(m)), "not a program"),
        (lambda m: (shutil.copy(m / ATTENTION, m / PROGRAM), sign(m)),
         "does not give probability, bmd_g_cm2"),
        (lambda m: sign(m, inputs={"hu": {"shape": ["b", 9, 9, 9], "spacing_mm": 1.0,
                                          "outside_vertebra": None}}),
         r"takes float32 \(b, 8, 8, 8\), int32 \(b\); model.json says hu float32 \(b, 9, 9, 9\)"),
        (lambda m: sign(m, what="encoder"), "exported with --what encoder"),
        (lambda m: ((m / ood.FILE).write_bytes(b"x" * 9), sign(m)), "damaged"),
        (lambda m: (ood.save(m / ood.FILE, ood.fit(*np.random.default_rng(0).normal(
            size=(2, 40, 5))), {}), sign(m)), "is of 5 features, program.jaxexport gives 8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    model: Path, damage: Callable[[Path], object], message: str
) -> None:
    """Every hash is right: what is wrong is the content."""
    damage(model)
    refused(model, message)


@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_bytes_of_the_weights_changed_and_signed(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """A header that lies about offsets or shapes; the program's bytes are jax's own to check."""
    copy = Path(shutil.copytree(whole, tmp_path / "model", dirs_exist_ok=True))
    changed = bytearray((whole / WEIGHTS).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    (copy / WEIGHTS).write_bytes(changed)
    sign(copy)
    try:
        loaded = ExportedModel(copy)
    except UserError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1
    else:
        assert loaded.size == 8


def test_what_evaluate_knows_of_the_embeddings_is_read(model: Path) -> None:
    assert ExportedModel(model).ood is None
    rng = np.random.default_rng(0)
    stats = ood.fit(rng.normal(size=(40, 8)), rng.normal(size=(30, 8)))
    ood.save(model / ood.FILE, stats, {"checkpoint_step": 1})
    sign(model)
    loaded = ExportedModel(model)
    np.testing.assert_array_equal(loaded.ood["whitening"], stats["whitening"])


def test_the_fingerprint_is_of_the_whole_folder(model: Path) -> None:
    before = ExportedModel(model).fingerprint
    assert before == hashlib.sha256((model / "model.json").read_bytes()).hexdigest()
    other_weights(model, lambda w: w.update({KERNEL: w[KERNEL] + 1}))
    assert ExportedModel(model).fingerprint != before


def test_an_encoder_is_not_taken_for_a_model(stored: Path, tmp_path: Path) -> None:
    export_model(stored / "pretrain", tmp_path, what="features", formats=["safetensors"])
    refused(tmp_path, "exported with --what features, and --what model is needed")


def test_devices_go_by_name(whole: Path) -> None:
    loaded = ExportedModel(whole)
    assert [loaded.device_index(name) for name in ("Hologic", " GE Lunar ", "GE-LUNAR")] == [
        0,
        1,
        1,
    ]
    assert device_name("GE Lunar") == "ge_lunar"
    with pytest.raises(UserError, match="hologic, ge_lunar, medix, unknown"):
        loaded.device_index("Norland")


def test_other_kinds_take_what_their_card_says(whole: Path, tmp_path: Path) -> None:
    """2D pictures that are no squares, and one number for all of them."""

    def program(variables, picture, shift):
        return {"score": (picture * variables["params"]["w"]).sum((1, 2)) + shift}

    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = {
        "picture": {"shape": ["b", 2, 3], "dtype": "float32"},
        "shift": {"shape": ["b"], "dtype": "int32"},
        "made_of": {"what": "not an input of the program"},
    }
    save_file({"params.w": w}, str(tmp_path / WEIGHTS))
    (tmp_path / PROGRAM).write_bytes(serialise(program, {"params.w": w}, inputs))
    card = json.loads((whole / "model.json").read_text())
    own = {
        "kind": "mylab.pictures", "inputs": inputs, "outputs": {"score": {"shape": ["b"]}},
        "fitted": None,
    }  # fmt: skip
    kept = {key: value for key, value in card.items() if key not in ("devices", "levels")}
    (tmp_path / "model.json").write_text(json.dumps({**kept, **own}))
    sign(tmp_path)
    model = ExportedModel(tmp_path)
    assert model.kind == "mylab.pictures"
    pictures = np.random.default_rng(0).normal(size=(11, 2, 3))
    expected = (pictures * w).sum((1, 2))
    np.testing.assert_allclose(model.predict(pictures, 3)["score"], expected + 3, rtol=1e-5)
    shifts = np.arange(11)
    np.testing.assert_allclose(
        model.predict(pictures, shifts)["score"], expected + shifts, rtol=1e-5
    )
    with pytest.raises(ValueError, match="takes picture, shift; 1 inputs are given"):
        model.predict(pictures)
    sign(tmp_path, inputs={**inputs, "picture": {"shape": ["b", 3, 2], "dtype": "float32"}})
    refused(tmp_path, r"takes float32 \(b, 2, 3\), .* says picture float32 \(b, 3, 2\)")
