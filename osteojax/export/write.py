"""Checkpoint -> a folder that predicts without this repository.

    model.json             what goes in and out, what was fitted, every hash (`card.py`)
    program.jaxexport      StableHLO for CPU, CUDA and TPU, symbolic batch (`programs.py`)
    attention.jaxexport    likewise: Grad-CAM, beside a whole model
    weights.safetensors    every parameter and running statistic, float32, by dotted name
    embedding.safetensors  statistics of the training embeddings, where `evaluate` left them

`osteojax.export.load` loads the folder; so does any script that has jax (examples/).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from osteojax import __version__
from osteojax.checkpoints import load_variables
from osteojax.data.manifest import load_manifest
from osteojax.data.schema import Manifest
from osteojax.data.vertebrae import HU_MAX, HU_MIN, LEVELS, about
from osteojax.errors import UserError
from osteojax.export.card import (
    ATTENTION,
    CARD,
    EMBEDDING,
    FILES,
    FORMAT,
    FORMAT_VERSION,
    PROGRAM,
    WEIGHTS,
    WHATS,
    write_card,
)
from osteojax.export.programs import (
    PLATFORMS,
    Function,
    arguments,
    attention_function,
    encoder_function,
    flat_weights,
    output_shapes,
    predict_function,
    serialise,
)
from osteojax.files import atomic_path

log = logging.getLogger(__name__)

FORMATS = ("stablehlo", "safetensors")
WEIGHT_CHOICES = ("auto", "averaged", "raw")

INTENDED_USE = (
    "Research on opportunistic screening for low bone density. Not a medical device: no diagnosis "
    "and no treatment may rest on it."
)

NO_ONNX = (
    "--format onnx is not offered: jax2onnx 0.17.1, the maintained converter from JAX, stops at 3D "
    "convolutions (NotImplementedError: Unsupported conv layouts: lhs=(0, 4, 1, 2, 3), ...). "
    "Export with --format safetensors, then run examples/export_onnx.py, which goes through "
    "PyTorch and checks the file with onnxruntime."
)


def export_model(
    workdir: str | Path,
    out: str | Path,
    which: str = "best",
    *,
    formats: Sequence[str] = FORMATS,
    what: str = "model",
    weights: str = "auto",
) -> dict[str, Any]:
    """Writes the exported folder.

    Args:
      workdir: of a training run; of a fine-tuning run for a whole model.
      out: folder to write; files of an earlier export are replaced.
      which: "best" or "last" checkpoint.
      formats: of `FORMATS`. The program takes its weights from weights.safetensors, which is
        written in either case.
      what: "model"; "encoder", the embedding alone; or "features", and the mean of every stage.
      weights: "averaged" (EMA), "raw" (as the optimiser left them), or "auto": averaged where the
        run kept them, which is what `evaluate` evaluates.

    Returns:
      the content of model.json.

    Raises:
      UserError: the workdir has no such checkpoint, or is not a fine-tuning run's and a whole model
        is wanted; ONNX; averaged weights that the run did not keep.
    """
    workdir, out = Path(workdir), Path(out)
    _check_choices(formats, what, weights)
    config, manifest = load_run(workdir)
    known = about(manifest)
    if what == "model" and config.objective.name != "multitask":
        raise UserError(
            f"{workdir} is a {config.objective.name} run: it has no heads to predict with. Export "
            "its encoder with --what encoder, or give the workdir of a fine-tuning run."
        )
    step, variables = load_variables(workdir, which)
    params, averaged = _choose(workdir, variables, weights)
    tensors = _tensors(params, variables["model_state"], what)
    functions = _functions(config, manifest, what)
    out.mkdir(parents=True, exist_ok=True)
    for name in (CARD, *FILES):  # the card first: a folder half written has none
        (out / name).unlink(missing_ok=True)
    with atomic_path(out / WEIGHTS) as temporary:
        save_file(tensors, str(temporary))
    for name, function in functions.items() if "stablehlo" in formats else ():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(serialise(function, tensors, known.size, what == "model"))
    # `evaluate` evaluates what "auto" exports.
    evaluated = averaged == (variables["ema_params"] is not None)
    fitted = _fitted(workdir, out, step, evaluated) if what == "model" else None
    called_with = arguments(tensors, known.size, 1, what == "model")
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "what": what,
        "formats": [name for name in FORMATS if name in formats],
        "code_version": __version__,
        "jax_version": jax.__version__,
        "platforms": list(PLATFORMS),
        "intended_use": INTENDED_USE,
        "simulated_training_data": bool(manifest.settings.get("simulated", False)),
        "checkpoint": {"which": which, "step": step, "averaged_parameters": averaged},
        "inputs": _inputs(manifest, what),
        "outputs": _outputs(manifest, output_shapes(functions[PROGRAM], called_with)),
        "devices": list(known.devices),
        "levels": list(LEVELS),
        "fitted": fitted,
        "config": json.loads(config.to_json()),
        "sha256": {name: _sha256(out / name) for name in FILES if (out / name).is_file()},
    }
    return write_card(out, card)


def load_run(workdir: Path) -> tuple[ConfigDict, Manifest]:
    """Config and manifest that a training run wrote. Raises UserError."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: no config.json. Give the --workdir of a training run.")
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Train into a new workdir.") from error
    return config, load_manifest(workdir)


def _check_choices(formats: Sequence[str], what: str, weights: str) -> None:
    if "onnx" in formats:
        raise UserError(NO_ONNX)
    for name, value, choices in (
        *(("--format", value, FORMATS) for value in formats),
        ("--what", what, WHATS),
        ("--weights", weights, WEIGHT_CHOICES),
    ):
        if value not in choices:
            raise UserError(f"{name} is {value!r}; choose from {', '.join(choices)}.")
    if not formats:
        raise UserError(f"--format is empty; choose from {', '.join(FORMATS)}.")


def _choose(workdir: Path, variables: dict[str, Any], weights: str) -> tuple[Any, bool]:
    """(parameters, whether they are the averaged ones)."""
    kept = variables["ema_params"] is not None
    if weights == "averaged" and not kept:
        raise UserError(
            f"{workdir} kept no averaged weights. Train with --config.optim.ema_decay=0.999, or "
            "export with --weights raw."
        )
    averaged = kept and weights != "raw"
    return variables["ema_params" if averaged else "params"], averaged


def _tensors(params: Any, model_state: Any, what: str) -> dict[str, np.ndarray]:
    """By name; the encoder alone unless the whole model is wanted."""
    # Pre-training normalises by statistics of all maps; the encoder will see images.
    statistics = model_state.get("image_batch_stats", model_state.get("batch_stats", {}))
    if what != "model":
        params = {"backbone": params["backbone"]}
        statistics = {name: statistics[name] for name in statistics if name == "backbone"}
    return flat_weights(params, statistics)


def _functions(config: ConfigDict, manifest: Manifest, what: str) -> dict[str, Function]:
    """The programs of the folder, by file name."""
    if what == "model":
        return {
            PROGRAM: predict_function(config, manifest),
            ATTENTION: attention_function(config, manifest),
        }
    return {PROGRAM: encoder_function(config, manifest, stages=what == "features")}


def _inputs(manifest: Manifest, what: str) -> dict[str, Any]:
    known = about(manifest)
    edge, image = known.size, known.maps[0]
    scale, shift = (float(value) for value in known.map_affine()[0])
    device = {"shape": ["b"], "dtype": "int32", "what": "index into `devices`"}
    return {
        "weights": {"file": WEIGHTS, "what": "all tensors of the file, as a dict by name"},
        "hu": {
            "shape": ["b", edge, edge, edge],
            "dtype": "float32",
            "unit": "HU",
            "window": [HU_MIN, HU_MAX],
            "spacing_mm": known.spacing_mm,
            "outside_ct": -1000.0,
            "outside_vertebra": HU_MIN if known.texture.get("domain") == "vertebra" else None,
            "axes": ["inferior to superior", "anterior to posterior", "right to left"],
            "frame": "centred on the vertebral body, along the vertebra's own axes",
        },
        **({"device": device} if what == "model" else {}),
        "network_input": {
            "what": "made by the program: scale * clip(floor((hu - offset) / step + 0.5), 0, "
            "codes - 1) + shift; the mid-sagittal slice of it for a model of rank 2",
            "offset_hu": image.offset,
            "step_hu": image.step,
            "codes": image.codes,
            "scale": scale,
            "shift": shift,
        },
        "label_scheme_of_training_masks": known.label_scheme,
    }


def _outputs(manifest: Manifest, shapes: dict[str, list[Any]]) -> dict[str, Any]:
    """Shape, dtype and meaning of every output."""
    known = about(manifest)
    grams = {"unit": "g/cm^2", "mean": known.bmd_mean, "std": known.bmd_std}
    meanings: dict[str, dict[str, Any]] = {
        "probability": {
            "what": "of osteoporosis. Positive where it reaches fitted.vertebra.threshold; "
            "calibrated: sigmoid(logit(p) / fitted.vertebra.temperature)",
        },
        "bmd_g_cm2": {
            "what": "areal BMD on the given device: mean + std * the head's output",
            **grams,
        },
        "bmd_by_device_g_cm2": {"what": "the same on each of `devices`", **grams},
        "level_probabilities": {"what": "by `levels`"},
        "gate": {"what": "weights of the experts"},
        "embedding": {"what": "pooled features of the encoder's last stage"},
    }
    return {
        name: {
            "shape": shape,
            "dtype": "float32",
            **meanings.get(name, {"what": f"mean over space of the encoder's {name}"}),
        }
        for name, shape in shapes.items()
    }


def _fitted(workdir: Path, out: Path, step: int, evaluated: bool) -> dict[str, Any] | None:
    """Thresholds and calibration of the evaluation of these very weights, if there was one; the
    statistics of their embeddings are copied to `out`."""
    evaluation = workdir / "evaluation"
    path = evaluation / "metrics.json"
    if not path.is_file():
        log.warning(
            "%s: not evaluated yet; the model carries no fitted threshold, 0.5 is used", workdir
        )
        return None
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        of_step, fitted = metrics["context"].get("checkpoint_step"), metrics["fitted"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Rerun osteojax evaluate.") from error
    if of_step != step or not evaluated:
        which = "of another step" if of_step != step else "of the averaged weights"
        log.warning(
            "%s: what osteojax evaluate found there is %s; the model carries no fitted threshold, "
            "0.5 is used",
            workdir,
            which,
        )
        return None
    if (evaluation / EMBEDDING).is_file() and _step_of(evaluation / EMBEDDING) == str(step):
        with atomic_path(out / EMBEDDING) as temporary:
            shutil.copyfile(evaluation / EMBEDDING, temporary)
    return fitted


def _step_of(path: Path) -> str | None:
    """The checkpoint that statistics of embeddings are of."""
    try:
        with safe_open(str(path), "numpy") as file:
            return (file.metadata() or {}).get("checkpoint_step")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}). Rerun osteojax evaluate.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
