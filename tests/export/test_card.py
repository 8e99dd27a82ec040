"""model.json, mutated: the right answer or one clear line, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osteojax.errors import UserError
from osteojax.export.card import (
    CARD,
    VERTEBRAE,
    card_sha256,
    input_entries,
    is_file_name,
    read_card,
    write_card,
)
from osteojax.export.load import ExportedModel

UNIT = {"n": 9, "threshold": 0.25, "temperature": 1.5, "notes": {}}
VALID: dict[str, Any] = {
    "format": "osteojax-model", "format_version": 2, "what": "model", "code_version": "0.1.0",
    "intended_use": "research", "simulated_training_data": False,
    "checkpoint": {"which": "best", "step": 3, "averaged_parameters": False},
    "inputs": {"hu": {"shape": ["b", 16, 16, 16], "spacing_mm": 6.0, "outside_vertebra": None}},
    "outputs": {"probability": {"shape": ["b"]}}, "devices": ["hologic", "unknown"],
    "levels": ["T1", "T2"], "config": {"model": {"width": 4}},
    "fitted": {
        "vertebra": UNIT, "patient": UNIT,
        "bmd_residual_g_cm2": {"n": 9, "quantiles": {"0.05": -0.1, "0.95": 0.1}, "notes": {}},
    },
    "sha256": {"weights.safetensors": "0" * 64, "program.jaxexport": "f" * 64},
}  # fmt: skip

HU = {
    "shape": ["b", 4, 6, 8], "spacing_mm": 6.0, "outside_vertebra": None, "back_mm": 12.0,
}  # fmt: skip
OF_A_BODY: dict[str, Any] = {
    **VALID, "format_version": 3,
    "inputs": {
        "hu": HU, "body": {"shape": HU["shape"], "dtype": "bool"},
        "crops": {"edge_voxels": 3, "count": 8, "body_share": 1.0},
    },
}  # fmt: skip
"""A card of 0.3: a box that is no cube, and the body beside it."""

FUZZ = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["../x", "/etc/passwd", "weights.safetensors", 10**400, -0.0, "b", "model"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything inside a JSON value."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    return [p for key in keys for p in [(*path, key), *places(value[key], (*path, key))]]


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any] = VALID) -> Any:
    """A valid card with up to three places removed, replaced or added to."""
    card = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        found = places(card)
        if not found:
            return draw(values)
        *way, last = draw(st.sampled_from(found))
        parent = card
        for key in way:
            parent = parent[key]
        action = draw(st.sampled_from(("remove", "replace", "add")))
        if action == "remove":
            del parent[last]
        elif action == "replace" or isinstance(parent, list):
            parent[last] = draw(values)
        else:
            parent[draw(st.text(max_size=6))] = draw(values)
    return draw(st.just(card) | values)


def use(card: dict[str, Any]) -> None:
    """Everything that the loader and `predict` take from a card without looking again."""
    model = ExportedModel.__new__(ExportedModel)
    model.card = card
    for entry in input_entries(card["inputs"]).values():
        assert np.prod([1, *entry["shape"][1:]]) > 0
        assert np.dtype(entry.get("dtype", "float32")).itemsize <= 4
    for name in card["sha256"]:
        assert is_file_name(name)
        assert Path(name).name == name
    if card.get("kind", VERTEBRAE) != VERTEBRAE:
        return
    assert all(edge > 0 for edge in model.shape)
    assert 0 < model.spacing_mm < float("inf")
    assert [model.devices.index(name) for name in model.devices] == list(range(len(model.devices)))
    assert all(isinstance(level, str) for level in card["levels"])
    assert abs(float(card["inputs"]["hu"].get("back_mm", 0.0))) < float("inf")
    if crops := card["inputs"].get("crops"):
        assert 0 < crops["edge_voxels"] <= min(model.shape)
        assert 0 < crops["body_share"] <= 1
    outside = card["inputs"]["hu"]["outside_vertebra"]
    assert outside is None or abs(float(outside)) >= 0
    if card["fitted"] is not None:
        for unit in ("vertebra", "patient"):
            threshold, temperature = (
                card["fitted"][unit].get(n) for n in ("threshold", "temperature")
            )
            assert threshold is None or 0 <= float(threshold) <= 1
            assert temperature is None or float(temperature) > 0
        quantiles = card["fitted"]["bmd_residual_g_cm2"]["quantiles"]
        assert quantiles is None or float(quantiles["0.05"]) <= float("inf")


def read_or_refuse(folder: Path) -> dict[str, Any] | None:
    """The card, or None where it is refused in one line. Any other exception is a failure."""
    try:
        return read_card(folder)[0]
    except UserError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    return None


@pytest.mark.parametrize("valid", [VALID, OF_A_BODY])
def test_what_is_written_is_read(tmp_path: Path, valid: dict[str, Any]) -> None:
    written = write_card(tmp_path, valid)
    card, fingerprint = read_card(tmp_path)
    assert card == written == {**valid, "card_sha256": card_sha256(valid)}
    assert len(fingerprint) == 64
    use(card)


@FUZZ
@given(card=mutated())
def test_edited_and_not_signed_again(tmp_path: Path, card: Any) -> None:
    """The hash is of the content: a card reads only where it says what was exported."""
    signed = {**card, "card_sha256": card_sha256(VALID)} if isinstance(card, dict) else card
    (tmp_path / CARD).write_text(json.dumps(signed))
    assert read_or_refuse(tmp_path) in (None, {**VALID, "card_sha256": card_sha256(VALID)})


@FUZZ
@given(card=mutated() | mutated(OF_A_BODY))
def test_edited_and_signed(tmp_path: Path, card: Any) -> None:
    """Whoever writes a card anew can still say nothing that breaks its reader."""
    signed = {**card, "card_sha256": card_sha256(card)} if isinstance(card, dict) else card
    (tmp_path / CARD).write_text(json.dumps(signed))
    if (read := read_or_refuse(tmp_path)) is not None:
        use(read)


@FUZZ
@given(data=st.data())
def test_bytes_changed_or_cut_off(tmp_path: Path, data: st.DataObject) -> None:
    write_card(tmp_path, VALID)
    whole = (tmp_path / CARD).read_bytes()
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / CARD).write_bytes(changed)
    assert read_or_refuse(tmp_path) in (None, {**VALID, "card_sha256": card_sha256(VALID)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "format is 'other', expected 'osteojax-model'"),
        ({"format_version": 1}, "format_version is 1, expected 2"),
        ({"what": "../heads"}, r"what is '\.\./heads', expected a plain name"),
        ({"kind": "a..b"}, r"kind is 'a\.\.b', expected a plain name"),
        ({"kind": "../pictures"}, "expected a plain name"),
        ({"kind": ["x"]}, "expected a plain name"),
        (
            {"kind": "p", "inputs": {"i": {"shape": ["b", 0, 8]}}},
            r"inputs\.i\.shape is \['b', 0, 8\]",
        ),
        ({"kind": "p", "inputs": {"i": {"shape": ["b", 10**9]}}}, r"inputs\.i\.shape"),
        ({"kind": "p", "inputs": {"i": {"shape": ["b"], "dtype": "object"}}}, r"inputs\.i\.dtype"),
        ({"inputs": {"hu": {"shape": ["b", 8, 8]}}}, r"inputs\.hu\.shape"),
        (
            {"inputs": {"hu": HU, "body": {"shape": ["b", 8, 8, 8], "dtype": "bool"}}},
            r"inputs\.body\.shape is \['b', 8, 8, 8\], expected that of hu",
        ),
        (
            {"inputs": {"hu": HU, "crops": {"edge_voxels": 5, "body_share": 1.0}}},
            r"inputs\.crops\.edge_voxels is 5, expected 1 to 4",
        ),
        (
            {"inputs": {"hu": HU, "crops": {"edge_voxels": 4, "body_share": 0}}},
            r"inputs\.crops\.body_share is 0, expected above 0 to 1",
        ),
        ({"devices": []}, r"devices is \[\]"),
        ({"devices": ["a", "a"]}, "expected different names"),
        ({"sha256": {"../weights.safetensors": "0" * 64}}, r"a file of sha256 is '\.\./weights"),
        ({"sha256": {"/etc/passwd": "0" * 64}}, "a file of sha256 is '/etc/passwd'"),
        ({"sha256": {"program.jaxexport": "0" * 64}}, "expected weights.safetensors among them"),
        ({"sha256": {"weights.safetensors": "0"}}, "expected 64 hexadecimal digits"),
        ({"inputs": {"hu": {"shape": ["b", 16, 16, 10**9]}}}, r"inputs\.hu\.shape"),
        ({"inputs": {"hu": {"shape": ["b", 2, 2, 2], "spacing_mm": 0}}}, r"spacing_mm is 0"),
        (
            {"fitted": {"vertebra": {**UNIT, "threshold": 1.5}}},
            r"fitted\.vertebra\.threshold is 1\.5",
        ),
        (
            {"fitted": {"vertebra": {**UNIT, "temperature": 0}}},
            r"fitted\.vertebra\.temperature is 0",
        ),
        ({"fitted": {"vertebra": {}}}, r"fitted\.vertebra has no threshold"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_card(tmp_path, {**VALID, **fields})
    with pytest.raises(UserError, match=message):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": NaN', "null", "[]", "7", '"x"'])
def test_what_is_no_card_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD).write_text(text)
    with pytest.raises(UserError, match=r"expected an object|not JSON") as refused:
        read_card(tmp_path)
    assert "\n" not in str(refused.value)
    (tmp_path / CARD).unlink()
    with pytest.raises(UserError, match=r"no model\.json"):
        read_card(tmp_path)
