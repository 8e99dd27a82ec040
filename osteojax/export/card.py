"""`model.json` of an exported folder: inputs, outputs, fitted values, and the hash of every file.

The file is not trusted: each field that the loader or `predict` uses is checked, file names must be
those that `osteojax export` writes, and the card contains its own hash, so that a changed threshold
is refused like a changed weight.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osteojax.data import vertebrae
from osteojax.errors import UserError
from osteojax.files import write_json

FORMAT = "osteojax-model"
FORMAT_VERSIONS = (2, 3)
"""2 (0.1 and 0.2): programs take a cubic box of the image. 3 (0.3): a box of any shape, or the body
beside it. A model that fits version 2 is still written as one, so that 0.2 reads it."""
CARD = "model.json"
PROGRAM_SUFFIX = ".jaxexport"
PROGRAM = f"program{PROGRAM_SUFFIX}"
ATTENTION = f"attention{PROGRAM_SUFFIX}"
WEIGHTS = "weights.safetensors"
EMBEDDING = "embedding.safetensors"

VERTEBRAE = vertebrae.KIND
"""The kind of data of a card that names none: those of 0.1."""

FIELDS = (
    "what",
    "code_version",
    "intended_use",
    "simulated_training_data",
    "checkpoint",
    "inputs",
    "outputs",
    "fitted",
    "config",
    "sha256",
)
"""What a card must have."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
KIND = re.compile(r"[A-Za-z_]\w{0,39}(\.[A-Za-z_]\w{0,39}){0,5}", re.ASCII)
DTYPES = ("float32", "int32", "uint8", "bool")
MAX_AXES = 4
MAX_EDGE = 1024


def is_file_name(name: Any) -> bool:
    """Whether an exported folder may contain a file of this name: only plain names, so that a name
    cannot lead out of the folder."""
    if name in (WEIGHTS, EMBEDDING):
        return True
    role = name.removesuffix(PROGRAM_SUFFIX) if isinstance(name, str) else ""
    return role != name and NAME.fullmatch(role) is not None


def input_entries(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a card's `inputs` that are inputs of a program (those with a shape), in
    order."""
    return {n: e for n, e in inputs.items() if isinstance(e, dict) and "shape" in e}


def format_version(inputs: Mapping[str, Any]) -> int:
    """The lowest of `FORMAT_VERSIONS` that can describe these `inputs`."""
    image = inputs.get("hu", {}).get("shape", [])[1:]
    return 3 if "body" in inputs or len(set(image)) > 1 else 2


def write_card(directory: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Writes model.json with its own hash, atomically; returns the written card."""
    signed = {**card, "card_sha256": card_sha256(card)}
    write_json(directory / CARD, signed)
    return signed


def read_card(directory: str | Path) -> tuple[dict[str, Any], str]:
    """Reads and checks `model.json`.

    Returns:
      (its content, SHA-256 of the file).

    Raises:
      UserError: it is absent, not JSON, of another version, edited, or has an invalid field.
    """
    path = Path(directory) / CARD
    if not path.is_file():
        raise UserError(
            f"{directory}: no model.json. Give the folder that `osteojax export` wrote."
        )
    data = path.read_bytes()
    try:
        card = json.loads(data)
        _check(card)
    except _Wrong as wrong:
        raise UserError(f"{path}: {wrong}") from wrong
    except (ValueError, RecursionError) as error:  # truncated, not UTF-8, or nested too deeply
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a model card, not JSON ({reason}). Copy the folder whole, or export the "
            "model again."
        ) from error
    return card, hashlib.sha256(data).hexdigest()


def card_sha256(card: dict[str, Any]) -> str:
    """Hash of the card without its own hash, as JSON with sorted keys and no spaces."""
    rest = {name: value for name, value in card.items() if name != "card_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Wrong(Exception):
    """Says what is wrong with a card, and the way out."""


def _require(condition: bool, field: str, value: Any, expected: str) -> None:
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise _Wrong(f"{field} is {shown}, expected {expected}. Export the model again.")


def _member(value: Any, field: str, name: str) -> Any:
    """`value[name]` of an object called `field` in messages."""
    _require(isinstance(value, dict), field, value, "an object")
    if name not in value:
        raise _Wrong(f"{field} has no {name}. Export the model again.")
    return value[name]


def _check(card: Any) -> None:
    """Raises `_Wrong` at the first invalid field."""
    _require(isinstance(card, dict), "the card", card, "an object")
    _require(card.get("format") == FORMAT, "format", card.get("format"), repr(FORMAT))
    version = card.get("format_version")
    _require(
        version in FORMAT_VERSIONS and type(version) is int,
        "format_version",
        version,
        f"{' or '.join(map(str, FORMAT_VERSIONS))}, which this osteojax reads",
    )
    if card.get("card_sha256") != card_sha256(card):
        raise _Wrong(
            "its content is not what was exported: card_sha256 differs. Copy the folder whole, or "
            "export the model again; to change thresholds, evaluate again."
        )
    fields = {name: _member(card, "the card", name) for name in FIELDS}
    for name, pattern, value in (
        ("what", NAME, fields["what"]), ("kind", KIND, card.get("kind", VERTEBRAE)),
    ):  # fmt: skip
        known = isinstance(value, str) and pattern.fullmatch(value) is not None
        _require(known, name, value, "a plain name")
    for name in ("code_version", "intended_use"):
        _require(isinstance(fields[name], str), name, fields[name], "text")
    simulated = fields["simulated_training_data"]
    _require(isinstance(simulated, bool), "simulated_training_data", simulated, "true or false")
    for name in ("checkpoint", "config"):
        _require(isinstance(fields[name], dict), name, fields[name], "an object")
    _check_names(fields["outputs"], "outputs")
    _check_files(fields["sha256"])
    _check_inputs(fields["inputs"])
    if card.get("kind", VERTEBRAE) == VERTEBRAE:
        for name in ("devices", "levels"):
            _check_names(_member(card, "the card", name), name)
        _check_images(fields["inputs"])
        _check_fitted(fields["fitted"])


def _check_files(hashes: Any) -> None:
    _require(isinstance(hashes, dict), "sha256", hashes, "an object")
    for name, value in hashes.items():
        expected = f"{WEIGHTS}, {EMBEDDING} or a name with {PROGRAM_SUFFIX}"
        _require(is_file_name(name), "a file of sha256", name, expected)
        known = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
        _require(known, f"sha256 of {name}", value, "64 hexadecimal digits")
    _require(WEIGHTS in hashes, "sha256", sorted(hashes), f"{WEIGHTS} among them")


def _check_inputs(inputs: Any) -> None:
    """Checks every input: a batch of arrays of up to `MAX_AXES` axes, of a known dtype."""
    _require(isinstance(inputs, dict), "inputs", inputs, "an object")
    for name, entry in input_entries(inputs).items():
        shape, dtype = entry["shape"], entry.get("dtype", "float32")
        whole = (
            isinstance(shape, list)
            and 1 <= len(shape) <= 1 + MAX_AXES
            and shape[0] == "b"
            and all(type(edge) is int and 0 < edge <= MAX_EDGE for edge in shape[1:])
        )
        expected = f'["b"] and up to {MAX_AXES} numbers in 1..{MAX_EDGE}'
        _require(whole, f"inputs.{name}.shape", shape, expected)
        known = isinstance(dtype, str) and dtype in DTYPES
        _require(known, f"inputs.{name}.dtype", dtype, f"one of {', '.join(DTYPES)}")


def _check_images(inputs: dict[str, Any]) -> None:
    """Checks the inputs of a model of vertebrae: the box that `predict` extracts, and the body."""
    hu = _member(inputs, "inputs", "hu")
    shape = _member(hu, "inputs.hu", "shape")
    _require(len(shape) == 4, "inputs.hu.shape", shape, f'["b", d, h, w] in 1..{MAX_EDGE}')
    spacing = _member(hu, "inputs.hu", "spacing_mm")
    _require(_is_number(spacing) and spacing > 0, "inputs.hu.spacing_mm", spacing, "a positive mm")
    back = hu.get("back_mm", 0.0)
    _require(_is_number(back), "inputs.hu.back_mm", back, "a number of mm")
    outside = _member(hu, "inputs.hu", "outside_vertebra")
    _require(
        outside is None or _is_number(outside), "inputs.hu.outside_vertebra", outside, "HU or null"
    )
    if "body" in inputs:
        body = _member(inputs["body"], "inputs.body", "shape")
        _require(body == shape, "inputs.body.shape", body, f"that of hu, {shape}")
    if "crops" in inputs:
        crops = inputs["crops"]
        edge = _member(crops, "inputs.crops", "edge_voxels")
        fits = type(edge) is int and 0 < edge <= min(shape[1:])
        _require(fits, "inputs.crops.edge_voxels", edge, f"1 to {min(shape[1:])}")
        share = _member(crops, "inputs.crops", "body_share")
        _require(
            _is_number(share) and 0 < share <= 1, "inputs.crops.body_share", share, "above 0 to 1"
        )


def _check_names(names: Any, field: str) -> None:
    """Checks that names are different texts: a list, or the keys of an object."""
    texts = list(names) if isinstance(names, dict | list) else None
    known = (
        texts is not None
        and len(texts) > 0
        and all(isinstance(text, str) for text in texts)
        and len(set(texts)) == len(texts)
    )
    _require(known, field, names, "different names")


def _check_fitted(fitted: Any) -> None:
    """Checks the values that `osteojax evaluate` fitted on validation; null if it did not run."""
    if fitted is None:
        return
    for unit in ("vertebra", "patient"):
        name = f"fitted.{unit}"
        values = _member(fitted, "fitted", unit)
        threshold = _member(values, name, "threshold")
        temperature = _member(values, name, "temperature")
        usable = threshold is None or (_is_number(threshold) and 0 <= threshold <= 1)
        _require(usable, f"{name}.threshold", threshold, "0 to 1, or null")
        usable = temperature is None or (_is_number(temperature) and temperature > 0)
        _require(usable, f"{name}.temperature", temperature, "a positive number, or null")
    name = "fitted.bmd_residual_g_cm2"
    quantiles = _member(_member(fitted, "fitted", "bmd_residual_g_cm2"), name, "quantiles")
    if quantiles is not None:
        for quantile in ("0.05", "0.95"):
            value = _member(quantiles, f"{name}.quantiles", quantile)
            _require(_is_number(value), f"{name}.quantiles.{quantile}", value, "a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for float64
        return False
