"""Loads folders that `osteojax export` wrote, without training code and without pickle.

The hash of every file is checked before the file is parsed, and the weights are compared with the
program's arguments. A folder that is damaged, edited or combined from two gives a one-line error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from osteojax.backend import check_devices
from osteojax.data.devices import device_name
from osteojax.errors import UserError
from osteojax.export.card import (
    ATTENTION,
    EMBEDDING,
    PROGRAM,
    PROGRAM_SUFFIX,
    VERTEBRAE,
    WEIGHTS,
    input_entries,
    read_card,
)

BATCH = 8
"""Number of cases (vertebrae) in one call of the program, fixed so that it is compiled once."""

AGAIN = "Export the model again."

VERTEBRA_OUTPUTS = (
    "probability",
    "bmd_g_cm2",
    "bmd_by_device_g_cm2",
    "level_probabilities",
    "gate",
    "embedding",
)


class ExportedModel:
    """An exported model, which predicts, or an exported encoder, which embeds.

    Attributes:
      card: content of model.json.
      kind: kind of data of its input; "vertebrae" for folders of 0.1.
      fingerprint: SHA-256 of model.json, which holds the hashes of all other files.
      ood: statistics of the training embeddings (`osteojax.evaluation.statistics.ood`), or None.
    """

    def __init__(self, directory: str | Path, what: str = "model") -> None:
        """Raises UserError for an invalid folder, or one exported with another --what, or where JAX
        finds no device."""
        directory = Path(directory)
        self.card, self.fingerprint = read_card(directory)
        self.kind = str(self.card.get("kind", VERTEBRAE))
        self._inputs = input_entries(self.card["inputs"])
        if self.card["what"] != what:
            raise UserError(
                f"{directory}: exported with --what {self.card['what']}, and --what {what} is "
                "needed. Export it so."
            )
        if PROGRAM not in self.card["sha256"]:
            raise UserError(
                f"{directory}: exported without a program. Export it with --format stablehlo."
            )
        files = {name: _read(directory, name, sha) for name, sha in self.card["sha256"].items()}
        weights = _weights(directory / WEIGHTS, files[WEIGHTS])
        check_devices()  # without one, the program below would look damaged
        self._programs = {
            name: self._lower(directory / name, files[name], weights)
            for name in files
            if name.endswith(PROGRAM_SUFFIX)
        }
        self._compiled: dict[str, Any] = {}
        self.ood = None
        if EMBEDDING in files:
            from osteojax.evaluation.statistics.ood import load

            self.ood = load(directory / EMBEDDING)
            if self.ood["mean"].size != self._features:
                raise UserError(
                    f"{directory / EMBEDDING} is of {self.ood['mean'].size} features, {PROGRAM} "
                    f"gives {self._features}. Export the model again."
                )
        self._weights = jax.device_put(weights)

    def _lower(self, path: Path, data: bytes, weights: dict[str, np.ndarray]) -> Any:
        """The program, ready to be compiled for `BATCH` vertebrae. Raises UserError unless this jax
        can read it and it takes these weights and this input."""
        program, expected, inputs, outputs = _program(path, data, self.card.get("jax_version"))
        _check_weights(path, expected, weights)
        self._check_inputs(path, inputs)
        if path.name == PROGRAM:
            wanted = list(self.card["outputs"])
            if self.kind == VERTEBRAE:
                whole = self.card["what"] == "model"
                wanted = [*(VERTEBRA_OUTPUTS if whole else ("embedding",)), *wanted]
            if absent := [name for name in dict.fromkeys(wanted) if name not in outputs]:
                raise UserError(f"{path} does not give {', '.join(absent)}. {AGAIN}")
            self._features = outputs["embedding"].shape[1] if "embedding" in outputs else None
        called_with = [jax.ShapeDtypeStruct((BATCH, *i.shape[1:]), i.dtype) for i in inputs]
        try:
            return jax.jit(program.call).lower(expected, *called_with)
        except Exception as error:  # jax may raise anything for a damaged or newer program
            raise UserError(f"{path}: {_unreadable(error)} {AGAIN}") from error

    def _check_inputs(self, path: Path, inputs: list[Any]) -> None:
        """Raises UserError unless the program's inputs are those of the card."""
        stated = {
            name: f"{entry.get('dtype', 'float32')} ({', '.join(map(str, entry['shape']))})"
            for name, entry in self._inputs.items()
        }
        found = [f"{aval.dtype} ({', '.join(map(str, aval.shape))})" for aval in inputs]
        if found != list(stated.values()):
            said = ", ".join(f"{name} {what}" for name, what in stated.items())
            raise UserError(f"{path} takes {', '.join(found)}; model.json says {said}. {AGAIN}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of a vertebra's box, in voxels."""
        depth, height, width = (int(edge) for edge in self.card["inputs"]["hu"]["shape"][1:])
        return depth, height, width

    @property
    def size(self) -> int:
        """Edge of a vertebra's cubic box, in voxels. Raises ValueError if it is no cube."""
        if len(set(self.shape)) > 1:
            raise ValueError(f"the model's box of {self.shape} voxels is no cube: use shape")
        return self.shape[0]

    @property
    def takes_body(self) -> bool:
        """Whether programs take the mask of the vertebral body beside the image."""
        return "body" in self._inputs

    @property
    def spacing_mm(self) -> float:
        return float(self.card["inputs"]["hu"]["spacing_mm"])

    @property
    def devices(self) -> list[str]:
        return list(self.card["devices"])

    @property
    def has_attention(self) -> bool:
        return ATTENTION in self._programs

    def device_index(self, name: str) -> int:
        """Index of a DXA scanner by name. Raises UserError that lists the names."""
        key = device_name(name)
        if key not in self.devices:
            raise UserError(f"--device {name!r}: the model knows {', '.join(self.devices)}.")
        return self.devices.index(key)

    def predict(
        self, *inputs: np.ndarray | int, body: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Computes the outputs that model.json describes.

        Args:
          inputs: those of model.json, in order, with a common first axis B. For vertebrae: HU
            f32[B, D, H, W] in the frame that it describes, and the index of the DXA scanner, one
            for all or i32[B].
          body: bool[B, D, H, W], the vertebral bodies, for a model that takes them; others ignore
            it.

        Raises:
          UserError: the model takes the body, and it is missing.
        """
        return self._run(PROGRAM, self._with_body(inputs, body))

    def embed(self, *inputs: np.ndarray, body: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Outputs of an encoder, exported with --what encoder or features (same as `predict`)."""
        return self._run(PROGRAM, self._with_body(inputs, body))

    def attention(
        self,
        hu_BDHW: np.ndarray,
        device: int | np.ndarray,
        *,
        body: np.ndarray | None = None,
    ) -> np.ndarray:
        """Grad-CAM: f32[B, D, H, W] >= 0, not normalised ([B, D, H] for a model of rank 2 that sees
        the box); body as for `predict`."""
        if not self.has_attention:
            raise ValueError("the folder has no attention program; check has_attention first")
        return self._run(ATTENTION, self._with_body((hu_BDHW, device), body))["attention"]

    def _with_body(self, inputs: tuple[Any, ...], body: np.ndarray | None) -> tuple[Any, ...]:
        """The inputs in the order of the card, with the body in its place."""
        if not self.takes_body or len(inputs) == len(self._inputs):
            return inputs
        if body is None:
            shape = ", ".join(map(str, self._inputs["body"]["shape"]))
            raise UserError(
                f"this model sees the vertebral body: give its mask too, body=bool[{shape}], in "
                "the frame of the image (model.json describes both)."
            )
        place = list(self._inputs).index("body")
        return (*inputs[:place], body, *inputs[place:])

    def _run(self, name: str, inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
        if len(inputs) != len(self._inputs):
            raise ValueError(f"takes {', '.join(self._inputs)}; {len(inputs)} inputs are given")
        if name not in self._compiled:
            self._compiled[name] = self._programs[name].compile()
        total = len(inputs[0])
        arrays = []
        for value, entry in zip(inputs, self._inputs.values(), strict=True):
            array = np.asarray(value)
            one_for_all = array.ndim < len(entry["shape"])
            arrays.append(np.broadcast_to(array, (total, *array.shape)) if one_for_all else array)
        dtypes = [entry.get("dtype", "float32") for entry in self._inputs.values()]
        parts = []
        for start in range(0, total, BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), total - 1)  # padded with the last
            batch = [array[rows].astype(t) for array, t in zip(arrays, dtypes, strict=True)]
            outputs = self._compiled[name](self._weights, *batch)
            kept = min(BATCH, total - start)
            parts.append({name: np.asarray(out)[:kept] for name, out in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read(directory: Path, name: str, expected: str) -> bytes:
    path = directory / name
    if not path.is_file():
        raise UserError(f"{directory}: {name} is missing. Copy the folder whole, or export again.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise UserError(
            f"{path} is not the file that was exported: its SHA-256 differs from model.json. "
            "Export the model again, or copy it whole."
        )
    return data


def _weights(path: Path, data: bytes) -> dict[str, np.ndarray]:
    try:
        return safetensors.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a safetensors file ({error}). Export the model again."
        ) from error


def _unreadable(error: Exception) -> str:
    reason = str(error).split("\n")[0] or type(error).__name__
    return f"not a program that jax {jax.__version__} reads ({reason})."


def _program(path: Path, data: bytes, jax_version: Any) -> tuple[Any, Any, Any, Any]:
    """(program, shapes of its weights by name, shapes of its other inputs, of its outputs)."""
    try:
        program = jax.export.deserialize(bytearray(data))
        (expected, *inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
        if not (isinstance(expected, dict) and isinstance(outputs, dict) and inputs):
            raise ValueError("its signature is not that of an exported model")
    except Exception as error:  # a damaged file can make the reader raise anything
        raise UserError(f"{path}: {_unreadable(error)} {AGAIN}") from error
    version = program.calling_convention_version
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= version <= newest:
        raise UserError(
            f"{path} has calling convention {version}; jax {jax.__version__} reads {oldest} to "
            f"{newest}. It was exported with jax {jax_version}: install a jax nearer to that, or "
            "export the model again."
        )
    return program, expected, inputs, outputs


def _check_weights(path: Path, expected: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    shapes = {name: (aval.shape, aval.dtype) for name, aval in expected.items()}
    found = {name: (array.shape, array.dtype) for name, array in weights.items()}
    for name in sorted({*shapes, *found}):
        if shapes.get(name) != found.get(name):
            raise UserError(
                f"{path} takes {name} of {_words(shapes.get(name))}, and {WEIGHTS} holds "
                f"{_words(found.get(name))}. {AGAIN}"
            )


def _words(shape_dtype: tuple[Any, Any] | None) -> str:
    """'float32 (3, 3)', or 'nothing'."""
    return "nothing" if shape_dtype is None else f"{shape_dtype[1]} {shape_dtype[0]}"
