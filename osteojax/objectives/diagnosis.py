"""The fine-tuned model, and its programs for export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from osteojax.data.vertebrae import about
from osteojax.models import build_backbone
from osteojax.models.device_heads import build_decoder
from osteojax.models.gradcam import gradcam
from osteojax.objectives.encoder import (
    POOLED,
    describe_inputs,
    facts_of,
    image_statistics,
    network_input_of,
)
from osteojax.types import Export

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.schema import Manifest


class DiagnosisModel(nn.Module):
    """Backbone -> mixture of experts."""

    backbone: nn.Module
    experts: nn.Module

    def __call__(self, x: Array, device_B: Array, *, train: bool) -> dict[str, Array]:
        """f32[B, *space, 1], i32[B] -> logits f32[B, 2], bmd f32[B] (z-scored), level_logits
        f32[B, 18], gate f32[B, N], embedding f32[B, F]."""
        image_maps = jnp.zeros(x.shape[0], jnp.int32)
        embedding = self.backbone(x, train=train, map_id=image_maps)["pooled"]
        return {**self.experts(embedding, device_B), "embedding": embedding}


def build_model(config: ConfigDict, num_scanners: int, axis_name: str | None) -> DiagnosisModel:
    """The model that `config` describes, for `num_scanners` DXA scanners (with "unknown")."""
    return DiagnosisModel(
        backbone=build_backbone(config.model, axis_name),
        experts=build_decoder(config.moe, num_scanners),
    )


def model_export(config: ConfigDict, manifest: Manifest) -> Export:
    """Export of the whole model, with a program for predictions and one for attention.

    program: (variables, hu f32[B, D, H, W], device i32[B]) -> probability f32[B], bmd_g_cm2 f32[B],
    bmd_by_device_g_cm2 f32[B, devices], level_probabilities f32[B, 18], gate f32[B, N], embedding
    f32[B, F].

    attention: the same inputs -> attention f32[B, D, H, W] >= 0, Grad-CAM of the log odds of
    osteoporosis (`osteojax.models.gradcam`); f32[B, D, H], the mid-sagittal plane, for a model of
    rank 2. Left out where the backbone has no `attention_layers`.
    """
    outputs = _describe_outputs(manifest)
    programs = {"program": predict_program(config, manifest)}
    if hasattr(build_backbone(config.model, None), "attention_layers"):
        programs["attention"] = attention_program(config, manifest)
    return Export(
        programs=programs,
        variables=lambda params, state: {"params": params, "batch_stats": image_statistics(state)},
        inputs=describe_inputs(manifest, with_device=True),
        describe=outputs.__getitem__,
        facts=facts_of(manifest),
        decides=True,
    )


def predict_program(config: ConfigDict, manifest: Manifest) -> Callable[..., dict[str, Array]]:
    """See `model_export`."""
    known = about(manifest)
    scanners = len(known.devices)
    model = build_model(config, scanners, axis_name=None)
    see = network_input_of(config, manifest)

    def experts(bound: Any, embedding: Array, device: Array) -> Any:
        return bound.experts(embedding, device)

    def predict(variables: Any, hu: Array, device: Array) -> dict[str, Array]:
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
            "bmd_by_device_g_cm2": grams(jax.vmap(bmd_on)(jnp.arange(scanners)).T),
            "level_probabilities": jax.nn.softmax(outputs["level_logits"]),
            "gate": outputs["gate"],
            "embedding": outputs["embedding"],
        }

    return predict


def attention_program(config: ConfigDict, manifest: Manifest) -> Callable[..., dict[str, Array]]:
    """See `model_export`."""
    model = build_model(config, len(about(manifest).devices), axis_name=None)
    see = network_input_of(config, manifest)

    def attention(variables: Any, hu: Array, device: Array) -> dict[str, Array]:
        return {"attention": gradcam(model, variables, see(hu), device)}

    return attention


def in_units(outputs: Mapping[str, np.ndarray], manifest: Manifest) -> dict[str, np.ndarray]:
    """Converts outputs of `DiagnosisModel` [N, ...] to those of the exported program: probability
    f64[N] of osteoporosis, bmd_g_cm2 f[N], level_probabilities f64[N, 18], gate, embedding."""
    from scipy.special import softmax

    known = about(manifest)
    return {
        "probability": softmax(outputs["logits"].astype(np.float64), axis=1)[:, 1],
        "bmd_g_cm2": outputs["bmd"] * known.bmd_std + known.bmd_mean,
        "level_probabilities": softmax(outputs["level_logits"].astype(np.float64), axis=1),
        "gate": outputs["gate"],
        "embedding": outputs["embedding"],
    }


def _describe_outputs(manifest: Manifest) -> dict[str, dict[str, Any]]:
    known = about(manifest)
    grams = {"unit": "g/cm^2", "mean": known.bmd_mean, "std": known.bmd_std}
    return {
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
        "embedding": POOLED,
    }
