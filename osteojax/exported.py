"""Loads what `osteojax export` wrote: no training code is used, nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from osteojax.errors import UserError

FORMAT, FORMAT_VERSION = "osteojax-model", 1
PROGRAM, WEIGHTS, CARD = "program.jaxexport", "weights.safetensors", "model.json"
BATCH = 8


class ExportedModel:
    """A model that predicts.

    Attributes:
      card: content of model.json.
    """

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        self.card = _read_card(directory)
        for name, expected in self.card["sha256"].items():
            path = directory / name
            if Path(name).name != name or not path.is_file():
                raise UserError(f"{directory}: {name} is missing. Export the model again.")
            if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                raise UserError(
                    f"{path} is not the file that was exported: its SHA-256 differs from "
                    "model.json. Export the model again, or copy it whole."
                )
        self._weights = load_file(str(directory / WEIGHTS))
        program = jax.export.deserialize(bytearray((directory / PROGRAM).read_bytes()))
        self._call = jax.jit(program.call)

    @property
    def size(self) -> int:
        """Edge of the ROI in voxels."""
        return int(self.card["inputs"]["hu"]["shape"][1])

    @property
    def spacing_mm(self) -> float:
        return float(self.card["inputs"]["hu"]["spacing_mm"])

    @property
    def devices(self) -> list[str]:
        return list(self.card["devices"])

    def device_index(self, name: str) -> int:
        """Index of a DXA device by name. Raises UserError that lists the names."""
        key = name.strip().lower().replace(" ", "_").replace("-", "_")
        if key not in self.devices:
            raise UserError(f"--device {name!r}: the model knows {', '.join(self.devices)}.")
        return self.devices.index(key)

    def predict(self, hu_BDHW: np.ndarray, device: int) -> dict[str, np.ndarray]:
        """f32[B, D, H, W] HU in the frame that model.json describes -> its outputs."""
        parts = []
        for start in range(0, len(hu_BDHW), BATCH):
            chunk = hu_BDHW[start : start + BATCH].astype(np.float32)
            # One batch shape, compiled once.
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], BATCH - len(chunk), axis=0)])
            outputs = self._call(self._weights, padded, np.full(BATCH, device, np.int32))
            parts.append({name: np.asarray(out)[: len(chunk)] for name, out in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read_card(directory: Path) -> dict[str, Any]:
    path = directory / CARD
    if not path.is_file():
        raise UserError(
            f"{directory}: no model.json. Give the folder that `osteojax export` wrote."
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT or card["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{path}: {card['format']} version {card['format_version']}; this osteojax reads "
                f"{FORMAT} version {FORMAT_VERSION}. Export the model with this version."
            )
        for key in ("inputs", "outputs", "devices", "levels", "sha256"):
            card[key]
        if not {PROGRAM, WEIGHTS} <= set(card["sha256"]):
            raise KeyError("sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a model card ({error!r}). Export the model again.") from error
    return card
