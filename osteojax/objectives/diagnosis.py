"""The fine-tuned model, and its programs for export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from osteojax.data.vertebrae import about
from osteojax.models import build_backbone
from osteojax.models.device_heads import build_decoder
from osteojax.models.gradcam import gradcam, put_back
from osteojax.objectives.encoder import (
    POOLED,
    describe_inputs,
    facts_of,
    image_statistics,
    mean_over_crops,
)
from osteojax.objectives.sight import Sight
from osteojax.types import Export, ModelState, Params

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.schema import Manifest


class DiagnosisModel(nn.Module):
    """Encoders -> mixture of experts.

    Attributes:
      backbone: sees the crops of the body, or the box in a model that takes no crops.
      experts: decoder of the joined embeddings (`osteojax.models.device_heads`).
      whole: sees the box in a model that takes crops as well; else None.
    """

    backbone: nn.Module
    experts: nn.Module
    whole: nn.Module | None = None

    def __call__(
        self,
        x: Array | None,
        device_B: Array,
        *,
        train: bool,
        crops: Array | None = None,
        numbers: Array | None = None,
    ) -> dict[str, Array]:
        """The model's answers; which inputs it takes depends on the config (`sight.py`).

        Args:
          x: f32[B, *space, 1], the z-scored shown box; None for a model that sees only the body.
          device_B: i32[B] DXA scanners.
          train: batch statistics (True) or running averages (False).
          crops: f32[B, N, *space, 1], z-scored crops of the body, in any order.
          numbers: f32[B, 11], z-scored numbers of the body.

        Returns:
          logits f32[B, 2], bmd f32[B] (z-scored), level_logits f32[B, 18], gate f32[B, N],
          embedding f32[B, F]: the mean embedding of the crops, then the box's, then the numbers.
        """
        parts = []
        if crops is not None:
            encode = partial(_pooled, self.backbone, train)
            parts.append(mean_over_crops(encode, crops))
        if x is not None:
            encoder = self.backbone if self.whole is None else self.whole
            parts.append(_pooled(encoder, train, x))
        if numbers is not None:
            parts.append(numbers)
        embedding = jnp.concatenate(parts, axis=-1)
        return {**self.experts(embedding, device_B), "embedding": embedding}


def _pooled(encoder: nn.Module, train: bool, x: Array) -> Array:
    """f32[B, F] of images f32[B, *space, 1]."""
    features: Any = encoder(x, train=train, map_id=jnp.zeros(x.shape[0], jnp.int32))
    return features["pooled"]


def build_model(config: ConfigDict, num_scanners: int, axis_name: str | None) -> DiagnosisModel:
    """The model that `config` describes, for `num_scanners` DXA scanners (with "unknown")."""
    both = config.data.get("sees") == "both"
    return DiagnosisModel(
        backbone=build_backbone(config.model, axis_name),
        experts=build_decoder(config.moe, num_scanners),
        whole=build_backbone(config.model, axis_name) if both else None,
    )


def model_variables(params: Params, model_state: ModelState) -> dict[str, Any]:
    """Variables of the programs: params, batch_stats, and the numbers' mean and SD where the model
    takes numbers."""
    scale = {"numbers": model_state["numbers"]} if "numbers" in model_state else {}
    return {"params": params, "batch_stats": image_statistics(model_state), **scale}


def model_export(config: ConfigDict, manifest: Manifest) -> Export:
    """Export of the whole model, with a program for predictions and one for attention.

    program: (variables, hu f32[B, D, H, W], device i32[B]) -> probability f32[B], bmd_g_cm2 f32[B],
    bmd_by_device_g_cm2 f32[B, devices], level_probabilities f32[B, 18], gate f32[B, N], embedding
    f32[B, F]. A model that sees the body takes body bool[B, D, H, W] after hu, and cuts its crops.

    attention: the same inputs -> attention f32[B, D, H, W] >= 0, Grad-CAM of the log odds of
    osteoporosis (`osteojax.models.gradcam`): of the encoder that sees the box; without one, of the
    crops, put back in their places. f32[B, D, H], the mid-sagittal plane, for a model of rank 2
    that sees the box. Left out where the backbone has no `attention_layers`.
    """
    outputs = _describe_outputs(manifest)
    programs = {"program": predict_program(config, manifest)}
    if hasattr(build_backbone(config.model, None), "attention_layers"):
        programs["attention"] = attention_program(config, manifest)
    return Export(
        programs=programs,
        variables=model_variables,
        inputs=describe_inputs(Sight.of(config, manifest), with_device=True),
        describe=outputs.__getitem__,
        facts=facts_of(manifest),
        decides=True,
    )


def predict_program(config: ConfigDict, manifest: Manifest) -> Callable[..., dict[str, Array]]:
    """See `model_export`."""
    known = about(manifest)
    scanners = len(known.devices)
    model = build_model(config, scanners, axis_name=None)
    sight = Sight.of(config, manifest)

    def experts(bound: Any, embedding: Array, device: Array) -> Any:
        return bound.experts(embedding, device)

    def predict(variables: Any, hu: Array, *rest: Array) -> dict[str, Array]:
        *body, device = rest
        variables, scale = parted(variables)
        seen = sight.of_hu(hu, *body, scale=scale)
        outputs: Any = model.apply(variables, device_B=device, train=False, **seen)

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
    sight = Sight.of(config, manifest)

    def attention(variables: Any, hu: Array, *rest: Array) -> dict[str, Array]:
        *body, device = rest
        variables, scale = parted(variables)
        seen = sight.of_hu(hu, *body, scale=scale)
        heat = gradcam(model, variables, device_B=device, **seen)
        if sight.box:
            return {"attention": heat}
        if sight.rank == 2:  # a crop's middle plane stands for the whole crop
            heat = jnp.broadcast_to(heat[..., None], (*heat.shape, sight.edge))
        return {"attention": put_back(heat, sight.corners(*body), sight.known.shown)}

    return attention


def parted(variables: Any) -> tuple[dict[str, Any], Any]:
    """(Flax's variables, mean and SD of the numbers or None) of `model_variables`."""
    flax = {name: tree for name, tree in variables.items() if name != "numbers"}
    return flax, variables.get("numbers")


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
