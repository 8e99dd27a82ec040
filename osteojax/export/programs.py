"""What an exported folder computes: functions of (weights, HU), serialised as StableHLO.

The weights are the first argument of every program, by name (`flat_weights`), so that programs stay
small and weights readable. HU are quantised as the shards quantise them: a model sees what it was
trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from ml_collections import ConfigDict

from osteojax.data.augment import network_input
from osteojax.data.schema import Manifest
from osteojax.data.vertebrae import about
from osteojax.models import build_backbone
from osteojax.models.gradcam import gradcam

# GC
from osteojax.objectives.multitask import build_model

PLATFORMS = ("cpu", "cuda", "tpu")

Weights = dict[str, Any]
Function = Callable[..., Any]


def flat_weights(params: Any, batch_stats: Any) -> dict[str, np.ndarray]:
    """{"params.backbone.stem.kernel": array, ...}: parameters and running statistics by name."""
    tree = {"params": params, "batch_stats": batch_stats}
    return {name: np.ascontiguousarray(leaf) for name, leaf in flatten_dict(tree, sep=".").items()}


def tree_weights(weights: Weights) -> dict[str, Any]:
    """Inverse of `flat_weights`: {"params": ..., "batch_stats": ...}, Flax's variables."""
    return unflatten_dict(weights, sep=".")


def predict_function(config: ConfigDict, manifest: Manifest) -> Function:
    """The whole fine-tuned model.

    (weights, hu f32[B, D, H, W], device i32[B]) -> probability f32[B], bmd_g_cm2 f32[B],
    bmd_by_device_g_cm2 f32[B, devices], level_probabilities f32[B, 18], gate f32[B, N], embedding
    f32[B, F].
    """
    known = about(manifest)
    devices = len(known.devices)
    model = build_model(config, devices, axis_name=None)
    see = _seen(config, manifest)

    def experts(bound: Any, embedding: Array, device: Array) -> Any:
        return bound.experts(embedding, device)

    def predict(weights: Weights, hu: Array, device: Array) -> dict[str, Array]:
        variables = tree_weights(weights)
        outputs: Any = model.apply(variables, see(hu), device, train=False)

        def bmd_on(index: Array) -> Array:
            on = jnp.full_like(device, index)
            found: Any = model.apply(variables, outputs["embedding"], on, method=experts)
            return found["bmd"]

        def grams(z_scored: Array) -> Array:
            return z_scored * known.bmd_std + known.bmd_mean

        return {
            "probability": jax.nn.softmax(outputs["logits"])[:, 1],
            "bmd_g_cm2": grams(outputs["bmd"]),
            "bmd_by_device_g_cm2": grams(jax.vmap(bmd_on)(jnp.arange(devices)).T),
            "level_probabilities": jax.nn.softmax(outputs["level_logits"]),
            "gate": outputs["gate"],
            "embedding": outputs["embedding"],
        }

    return predict


def attention_function(config: ConfigDict, manifest: Manifest) -> Function:
    """Grad-CAM of the fine-tuned model (`osteojax.models.gradcam`).

    (weights, hu f32[B, D, H, W], device i32[B]) -> attention f32[B, D, H, W] >= 0, a share of the
    log odds of osteoporosis; f32[B, D, H], the mid-sagittal plane, for a model of rank 2.
    """
    model = build_model(config, len(about(manifest).devices), axis_name=None)
    see = _seen(config, manifest)

    def attention(weights: Weights, hu: Array, device: Array) -> dict[str, Array]:
        return {"attention": gradcam(model, tree_weights(weights), see(hu), device)}

    return attention


def encoder_function(config: ConfigDict, manifest: Manifest, stages: bool) -> Function:
    """The encoder of any run, as linear probes need it.

    (weights, hu f32[B, D, H, W]) -> embedding f32[B, F]; with `stages` the mean over space of every
    stage as well, stage1 f32[B, C1], ... (the last one is the embedding).
    """
    backbone = build_backbone(config.model, axis_name=None)
    see = _seen(config, manifest)

    def encode(weights: Weights, hu: Array) -> dict[str, Array]:
        variables = tree_weights(weights)
        inner = {kind: variables[kind]["backbone"] for kind in variables}
        image_maps = jnp.zeros(hu.shape[0], jnp.int32)
        features: Any = backbone.apply(inner, see(hu), train=False, map_id=image_maps)
        means = {
            name: jnp.mean(value, axis=tuple(range(1, value.ndim - 1)), dtype=jnp.float32)
            for name, value in features.items()
            if stages and name != "pooled"
        }
        return {"embedding": features["pooled"], **means}

    return encode


def _seen(config: ConfigDict, manifest: Manifest) -> Callable[[Array], Array]:
    """f32[B, D, H, W] HU -> the network's input."""
    known = about(manifest)
    image = known.maps[0]
    map_affine = jnp.asarray(known.map_affine())

    def see(hu: Array) -> Array:
        codes = jnp.floor((hu - image.offset) / image.step + 0.5)
        codes = jnp.clip(codes, 0, image.codes - 1)
        image_maps = jnp.zeros(hu.shape[0], jnp.int32)
        return network_input(codes, image_maps, map_affine, config.model.rank)

    return see


def arguments(weights: Weights, edge: int, batch: Any, with_device: bool) -> tuple[Any, ...]:
    """Shapes and dtypes that a program is called with; `batch` is a number or a symbol."""
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    hu = jax.ShapeDtypeStruct((batch, edge, edge, edge), jnp.float32)
    device = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return (shapes, hu, device) if with_device else (shapes, hu)


def output_shapes(function: Function, called_with: tuple[Any, ...]) -> dict[str, list[Any]]:
    """Shape of every output with "b" for the batch; nothing is computed."""
    outputs = jax.eval_shape(function, *called_with)
    return {name: ["b", *out.shape[1:]] for name, out in outputs.items()}


def serialise(function: Function, weights: Weights, edge: int, with_device: bool) -> bytes:
    """One program for CPU, CUDA and TPU and any batch.

    Products are float32 throughout: left to themselves, GPUs round their inputs to TF32 and TPUs
    to bfloat16, and the exported model would not give what was evaluated.
    """
    (batch,) = jax.export.symbolic_shape("b")
    called_with = arguments(weights, edge, batch, with_device)
    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*called_with)
    return bytes(exported.serialize())
