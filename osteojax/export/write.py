"""Exports a checkpoint to a folder that predicts without this repository.

    model.json             inputs, outputs, fitted values, hashes of all files (`card.py`)
    program.jaxexport      StableHLO for CPU, CUDA and TPU, symbolic batch (`programs.py`)
    attention.jaxexport    the same for Grad-CAM, with a whole model only
    weights.safetensors    every parameter and running statistic, float32, by dotted name
    embedding.safetensors  statistics of the training embeddings, if `evaluate` wrote them

`osteojax.export.load` loads the folder, and so can any script with jax (examples/).
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
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from osteojax import __version__, objectives
from osteojax.backend import check_devices
from osteojax.checkpoints import load_variables
from osteojax.data.manifest import load_manifest
from osteojax.data.schema import Manifest
from osteojax.errors import UserError
from osteojax.export.card import (
    CARD,
    EMBEDDING,
    FORMAT,
    PROGRAM_SUFFIX,
    WEIGHTS,
    format_version,
    write_card,
)
from osteojax.export.programs import PLATFORMS, arguments, flat_weights, output_shapes, serialise
from osteojax.files import atomic_path
from osteojax.types import Export

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
      formats: of `FORMATS`. weights.safetensors is always written, because the program needs it.
      what: a name of the objective's `exports()`: "model"; "encoder", the embedding alone; or
        "features", and the mean of every stage.
      weights: "averaged" (EMA), "raw" (not averaged), or "auto": averaged if the run kept them,
        the same that `evaluate` uses.

    Returns:
      the content of model.json.

    Raises:
      UserError: the workdir has no such checkpoint; the run has no such `what`; ONNX; averaged
        weights that the run did not keep.
    """
    workdir, out = Path(workdir), Path(out)
    _check_choices(formats, weights)
    config, manifest = load_run(workdir)
    export = _export(workdir, config, manifest, what)
    step, variables = load_variables(workdir, which)
    params, averaged = _choose(workdir, variables, weights)
    tensors = flat_weights(export.variables(params, variables["model_state"]))
    out.mkdir(parents=True, exist_ok=True)
    (out / CARD).unlink(missing_ok=True)  # an incomplete folder has no card
    for path in [*out.glob(f"*{PROGRAM_SUFFIX}"), out / WEIGHTS, out / EMBEDDING]:
        path.unlink(missing_ok=True)
    with atomic_path(out / WEIGHTS) as temporary:
        save_file(tensors, str(temporary))
    files = [WEIGHTS]
    for role, function in export.programs.items() if "stablehlo" in formats else ():
        files.append(f"{role}{PROGRAM_SUFFIX}")
        with atomic_path(out / files[-1]) as temporary:
            temporary.write_bytes(serialise(function, tensors, export.inputs))
    # `evaluate` uses the weights that "auto" exports.
    evaluated = averaged == (variables["ema_params"] is not None)
    fitted = _fitted(workdir, out, step, evaluated) if export.decides else None
    files += [EMBEDDING] if (out / EMBEDDING).is_file() else []
    shapes = output_shapes(export.programs["program"], arguments(tensors, export.inputs, 1))
    card = {
        "format": FORMAT,
        "format_version": format_version(export.inputs),
        "what": what,
        "formats": [name for name in FORMATS if name in formats],
        "code_version": __version__,
        "jax_version": jax.__version__,
        "platforms": list(PLATFORMS),
        "intended_use": INTENDED_USE,
        "simulated_training_data": bool(manifest.settings.get("simulated", False)),
        "checkpoint": {"which": which, "step": step, "averaged_parameters": averaged},
        "inputs": {
            "weights": {"file": WEIGHTS, "what": "all tensors of the file, as a dict by name"},
            **export.inputs,
        },
        "outputs": {name: {**shape, **export.describe(name)} for name, shape in shapes.items()},
        **export.facts,
        "fitted": fitted,
        "config": json.loads(config.to_json()),
        "sha256": {name: _sha256(out / name) for name in files},
    }
    return write_card(out, card)


def _export(workdir: Path, config: ConfigDict, manifest: Manifest, what: str) -> Export:
    """The objective's description of the export `what`. Raises UserError if it has none."""
    exports = objectives.load(config, objectives.Described(manifest, workdir)).exports()
    if what in exports:
        return exports[what]
    if what == "model" and "encoder" in exports:
        raise UserError(
            f"{workdir} is a {config.objective.name} run: it has no heads to predict with. Export "
            "its encoder with --what encoder, or give the workdir of a fine-tuning run."
        )
    raise UserError(
        f"--what is {what!r}; {workdir} is a {config.objective.name} run and has "
        f"{', '.join(exports)}."
    )


def load_run(workdir: Path) -> tuple[ConfigDict, Manifest]:
    """Config and manifest that a training run wrote. Raises UserError."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: no config.json. Give the --workdir of a training run.")
    check_devices()
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Train into a new workdir.") from error
    return config, load_manifest(workdir)


def _check_choices(formats: Sequence[str], weights: str) -> None:
    if "onnx" in formats:
        raise UserError(NO_ONNX)
    for name, value, choices in (
        *(("--format", value, FORMATS) for value in formats),
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


def _fitted(workdir: Path, out: Path, step: int, evaluated: bool) -> dict[str, Any] | None:
    """Thresholds and calibration if exactly these weights were evaluated, else None. Statistics of
    their embeddings are copied to `out`."""
    evaluation = workdir / "evaluation"
    path = evaluation / "metrics.json"
    if not path.is_file():
        log.warning(
            "%s: not evaluated yet; the model has no fitted threshold, 0.5 is used", workdir
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
            "%s: its evaluation is %s; the model has no fitted threshold, 0.5 is used",
            workdir,
            which,
        )
        return None
    if (evaluation / EMBEDDING).is_file() and _step_of(evaluation / EMBEDDING) == str(step):
        with atomic_path(out / EMBEDDING) as temporary:
            shutil.copyfile(evaluation / EMBEDDING, temporary)
    return fitted


def _step_of(path: Path) -> str | None:
    """The checkpoint of which a file has the statistics of embeddings."""
    try:
        with safe_open(str(path), "numpy") as file:
            return (file.metadata() or {}).get("checkpoint_step")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}). Rerun osteojax evaluate.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
