"""Checkpoint -> a folder that predicts without this repository.

    model.json            what goes in and out: shapes, dtypes, units, tables, thresholds, hashes
    program.jaxexport     StableHLO for CPU, CUDA and TPU, symbolic batch (`jax.export`)
    weights.safetensors   every parameter and running statistic, float32, by dotted name

The program takes the weights as its first argument, so it stays small and the weights stay
readable. `osteojax.exported` loads the folder; so does any script that has jax and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from osteojax import __version__
from osteojax.checkpoints import load_variables
from osteojax.data.augment import network_input
from osteojax.data.schema import HU_MAX, HU_MIN, LEVELS, Manifest
from osteojax.errors import UserError
from osteojax.exported import CARD, FORMAT, FORMAT_VERSION, PROGRAM, WEIGHTS
from osteojax.files import atomic_path, write_json
from osteojax.objectives.multitask import build_model

log = logging.getLogger(__name__)

PLATFORMS = ("cpu", "cuda", "tpu")

INTENDED_USE = (
    "Research on opportunistic screening for low bone density. Not a medical device: no diagnosis "
    "and no treatment may rest on it."
)


def export_model(workdir: str | Path, out: str | Path, which: str = "best") -> dict[str, Any]:
    """Writes the exported folder.

    Args:
      workdir: of a fine-tuning run.
      out: folder to write; files of an earlier export are replaced.
      which: "best" or "last" checkpoint. Averaged parameters are taken where the run kept them.

    Returns:
      the content of model.json.

    Raises:
      UserError: the workdir is not a fine-tuning run's, or has no checkpoint.
    """
    workdir, out = Path(workdir), Path(out)
    config, manifest = load_run(workdir)
    if config.objective.name != "multitask":
        raise UserError(
            f"{workdir} is a {config.objective.name} run; only fine-tuned models predict. Give the "
            "workdir of configs/moe_multitask_resnet34.py."
        )
    step, variables = load_variables(workdir, which)
    averaged = variables["ema_params"] is not None
    params = variables["ema_params"] if averaged else variables["params"]
    weights = flat_weights(params, variables["model_state"]["batch_stats"])
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / WEIGHTS) as temporary:
        save_file(weights, str(temporary))
    with atomic_path(out / PROGRAM) as temporary:
        temporary.write_bytes(_serialise(predict_function(config, manifest), weights, manifest))
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "code_version": __version__,
        "intended_use": INTENDED_USE,
        "simulated_training_data": bool(manifest.settings.get("simulated", False)),
        "checkpoint": {"which": which, "step": step, "averaged_parameters": averaged},
        "inputs": _inputs(manifest),
        "outputs": _outputs(config),
        "devices": list(manifest.devices),
        "levels": list(LEVELS),
        "fitted": _fitted(workdir, step),
        "config": json.loads(config.to_json()),
        "sha256": {name: _sha256(out / name) for name in (PROGRAM, WEIGHTS)},
    }
    write_json(out / CARD, card)
    return card


def load_run(workdir: Path) -> tuple[ConfigDict, Manifest]:
    """Config and manifest that a training run wrote. Raises UserError."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: no config.json. Give the --workdir of a training run.")
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Train into a new workdir.") from error
    return config, Manifest.load(workdir)


def flat_weights(params: Any, batch_stats: Any) -> dict[str, np.ndarray]:
    """{"params.backbone.stem.kernel": array, ...}: parameters and running statistics by name."""
    tree = {"params": params, "batch_stats": batch_stats}
    return {name: np.ascontiguousarray(leaf) for name, leaf in flatten_dict(tree, sep=".").items()}


def tree_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `flat_weights`: {"params": ..., "batch_stats": ...}."""
    return unflatten_dict(weights, sep=".")


def predict_function(config: ConfigDict, manifest: Manifest) -> Callable:
    """The exported function.

    (weights, hu f32[B, D, H, W], device i32[B]) -> probability f32[B], bmd_g_cm2 f32[B],
    level_probabilities f32[B, 18], gate f32[B, N], embedding f32[B, F]. HU are quantised as the
    shards quantise them, so that a model sees what it was trained on.
    """
    model = build_model(config, len(manifest.devices), axis_name=None)
    image = manifest.maps[0]
    map_affine = jnp.asarray(manifest.map_affine())

    def predict(weights: dict[str, Array], hu: Array, device: Array) -> dict[str, Array]:
        codes = jnp.floor((hu - image.offset) / image.step + 0.5)
        codes = jnp.clip(codes, 0, image.codes - 1)
        maps = jnp.zeros(hu.shape[0], jnp.int32)
        x = network_input(codes, maps, map_affine, config.model.rank)
        outputs: Any = model.apply(tree_weights(weights), x, device, train=False)
        return {
            "probability": jax.nn.softmax(outputs["logits"])[:, 1],
            "bmd_g_cm2": outputs["bmd"] * manifest.bmd_std + manifest.bmd_mean,
            "level_probabilities": jax.nn.softmax(outputs["level_logits"]),
            "gate": outputs["gate"],
            "embedding": outputs["embedding"],
        }

    return predict


def _serialise(predict: Callable, weights: dict[str, np.ndarray], manifest: Manifest) -> bytes:
    (batch,) = jax.export.symbolic_shape("b")
    edge = manifest.size
    arguments = (
        {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()},
        jax.ShapeDtypeStruct((batch, edge, edge, edge), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(*arguments)
    return bytes(exported.serialize())


def _inputs(manifest: Manifest) -> dict[str, Any]:
    edge = manifest.size
    return {
        "weights": {"file": WEIGHTS, "what": "all tensors of the file, as a dict by name"},
        "hu": {
            "shape": ["b", edge, edge, edge],
            "dtype": "float32",
            "unit": "HU",
            "window": [HU_MIN, HU_MAX],
            "spacing_mm": manifest.spacing_mm,
            "outside_ct": -1000.0,
            "outside_vertebra": HU_MIN if manifest.texture.get("domain") == "vertebra" else None,
            "axes": ["inferior to superior", "anterior to posterior", "right to left"],
            "frame": "centred on the vertebral body, along the vertebra's own axes",
        },
        "device": {"shape": ["b"], "dtype": "int32", "what": "index into `devices`"},
        "label_scheme_of_training_masks": manifest.label_scheme,
    }


def _outputs(config: ConfigDict) -> dict[str, Any]:
    return {
        "probability": {"shape": ["b"], "what": "of osteoporosis, uncalibrated"},
        "bmd_g_cm2": {"shape": ["b"], "unit": "g/cm^2", "what": "areal BMD on the given device"},
        "level_probabilities": {"shape": ["b", len(LEVELS)], "what": "by `levels`"},
        "gate": {"shape": ["b", config.moe.num_experts], "what": "weights of the experts"},
        "embedding": {"shape": ["b", None], "what": "pooled features of the encoder"},
    }


def _fitted(workdir: Path, step: int) -> dict[str, Any] | None:
    """Thresholds and calibration of the evaluation of this very checkpoint, if there was one."""
    path = workdir / "evaluation" / "metrics.json"
    if not path.is_file():
        log.warning(
            "%s: not evaluated yet; the model carries no fitted threshold, 0.5 is used", workdir
        )
        return None
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if metrics["context"].get("checkpoint_step") != step:
        log.warning("%s is of another step than %s; rerun osteojax evaluate", path, step)
        return None
    return metrics["fitted"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
