"""`model.json` of an exported folder: what goes in and out, what was fitted, and every hash.

Read as if a stranger had written it: each field that the loader or `predict` uses is checked, file
names must be those that `osteojax export` gives, and the card carries its own hash, so that a
threshold with one digit changed is refused as a changed weight is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from osteojax.errors import UserError
from osteojax.files import write_json

FORMAT, FORMAT_VERSION = "osteojax-model", 2
CARD = "model.json"
PROGRAM = "program.jaxexport"
ATTENTION = "attention.jaxexport"
WEIGHTS = "weights.safetensors"
EMBEDDING = "embedding.safetensors"
FILES = (PROGRAM, ATTENTION, WEIGHTS, EMBEDDING)
"""All that a folder may hold beside the card. Names in a card are compared with these, so that none
can lead out of the folder."""

WHATS = ("model", "encoder", "features")
FIELDS = (
    "what",
    "code_version",
    "intended_use",
    "simulated_training_data",
    "checkpoint",
    "inputs",
    "outputs",
    "devices",
    "levels",
    "fitted",
    "config",
    "sha256",
)
"""What a card must have."""

MAX_EDGE = 1024


def write_card(directory: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Writes model.json with its own hash, atomically; returns what was written."""
    signed = {**card, "card_sha256": card_sha256(card)}
    write_json(directory / CARD, signed)
    return signed


def read_card(directory: str | Path) -> tuple[dict[str, Any], str]:
    """Reads and checks `model.json`.

    Returns:
      (its content, SHA-256 of the file).

    Raises:
      UserError: absent, not JSON, of another version, edited, or with a field that cannot be.
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
    except (ValueError, RecursionError) as error:  # cut off, not UTF-8, or nested without end
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a model card, not JSON ({reason}). Copy the folder whole, or export the "
            "model again."
        ) from error
    return card, hashlib.sha256(data).hexdigest()


def card_sha256(card: dict[str, Any]) -> str:
    """Of the card without its own hash, in JSON with sorted keys and no spaces."""
    rest = {name: value for name, value in card.items() if name != "card_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Wrong(Exception):
    """What is wrong with a card, and the way out."""


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
    """Raises `_Wrong` at the first field that cannot be."""
    _require(isinstance(card, dict), "the card", card, "an object")
    _require(card.get("format") == FORMAT, "format", card.get("format"), repr(FORMAT))
    version = card.get("format_version")
    _require(
        version == FORMAT_VERSION and type(version) is int,
        "format_version",
        version,
        f"{FORMAT_VERSION}, which is what this osteojax reads",
    )
    if card.get("card_sha256") != card_sha256(card):
        raise _Wrong(
            "its content is not what was exported: card_sha256 differs. Copy the folder whole, or "
            "export the model again; thresholds are changed by evaluating anew."
        )
    fields = {name: _member(card, "the card", name) for name in FIELDS}
    _require(fields["what"] in WHATS, "what", fields["what"], f"one of {', '.join(WHATS)}")
    for name in ("code_version", "intended_use"):
        _require(isinstance(fields[name], str), name, fields[name], "text")
    simulated = fields["simulated_training_data"]
    _require(isinstance(simulated, bool), "simulated_training_data", simulated, "true or false")
    for name in ("checkpoint", "config"):
        _require(isinstance(fields[name], dict), name, fields[name], "an object")
    for name in ("outputs", "devices", "levels"):
        _check_names(fields[name], name)
    _check_files(fields["sha256"])
    _check_hu(_member(fields["inputs"], "inputs", "hu"))
    _check_fitted(fields["fitted"])


def _check_files(hashes: Any) -> None:
    _require(isinstance(hashes, dict), "sha256", hashes, "an object")
    for name, value in hashes.items():
        _require(name in FILES, "a file of sha256", name, f"one of {', '.join(FILES)}")
        known = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
        _require(known, f"sha256 of {name}", value, "64 hexadecimal digits")
    _require(WEIGHTS in hashes, "sha256", sorted(hashes), f"{WEIGHTS} among them")


def _check_hu(hu: Any) -> None:
    shape = _member(hu, "inputs.hu", "shape")
    whole = (
        isinstance(shape, list)
        and len(shape) == 4
        and shape[0] == "b"
        and all(type(edge) is int and 0 < edge <= MAX_EDGE for edge in shape[1:])
        and len(set(shape[1:])) == 1
    )
    _require(whole, "inputs.hu.shape", shape, f'["b", n, n, n] with n in 1..{MAX_EDGE}')
    spacing = _member(hu, "inputs.hu", "spacing_mm")
    _require(_is_number(spacing) and spacing > 0, "inputs.hu.spacing_mm", spacing, "a positive mm")
    outside = _member(hu, "inputs.hu", "outside_vertebra")
    _require(
        outside is None or _is_number(outside), "inputs.hu.outside_vertebra", outside, "HU or null"
    )


def _check_names(names: Any, field: str) -> None:
    """Different texts: a list, or the keys of an object."""
    texts = list(names) if isinstance(names, dict | list) else None
    known = (
        texts is not None
        and len(texts) > 0
        and all(isinstance(text, str) for text in texts)
        and len(set(texts)) == len(texts)
    )
    _require(known, field, names, "different names")


def _check_fitted(fitted: Any) -> None:
    """What `osteojax evaluate` fitted on validation; null where it did not run."""
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
    except OverflowError:  # an integer beyond float64
        return False
