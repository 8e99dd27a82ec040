"""Grad-CAM in 3D (Selvaraju et al., ICCV 2017): regions that raise the predicted risk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from osteojax.models import AttentionLayer

MIN_VOXELS = 4
"""The map is taken at the deepest layer that still has this many voxels per edge (24 mm or finer
for a field of view of 96 mm). The last stage of a ResNet has 2 for 64^3, which is too coarse."""


def chosen_layer(layers: Sequence[AttentionLayer], size: int) -> AttentionLayer:
    """The layer that `gradcam` uses for inputs of `size` voxels per edge: the last one with
    `MIN_VOXELS` per edge, or the first one if none has. `layers` are in order of stride.

    For ResNet34, 96^3 and 64^3: stage 3 (6 and 4 voxels an edge); 32^3: stage 2.
    """
    large = [layer for layer in layers if -(-size // layer.stride) >= MIN_VOXELS]
    return large[-1] if large else layers[0]


def gradcam(
    model: Any,
    variables: Any,
    x: Array | None,
    device_B: Array,
    *,
    crops: Array | None = None,
    numbers: Array | None = None,
) -> Array:
    """Grad-CAM of the log odds of osteoporosis, logit[1] - logit[0].

    With A_c the channels of the chosen layer and y the log odds, the map is
    relu(sum_c mean(dy / dA_c) A_c), interpolated linearly to the input's grid at the true centres
    of the layer's voxels. It shows only where channels are active that raise the log odds; it does
    not explain a single case's error.

    Args:
      model: `osteojax.objectives.diagnosis.DiagnosisModel`, without an axis name; its encoders have
        `attention_layers` (`osteojax.models`).
      variables: {"params", "batch_stats"}.
      x, device_B, crops, numbers: as the model takes them.

    Returns:
      f32 >= 0, not normalised (divide by a vertebra's maximum to draw it): [B, *space] of the
      encoder that sees the box `x`; if none does, [B, N, *space] of the crops. It is zero
      everywhere if no channel raises the log odds.
    """
    image = crops if x is None else x
    if image is None:
        raise ValueError("the model sees neither a box nor crops")
    name = "backbone" if x is None or crops is None else "whole"
    encoder = getattr(model, name)
    fine = image.shape[2:-1] if x is None else image.shape[1:-1]
    layer = chosen_layer(encoder.attention_layers, min(fine))
    if getattr(encoder, "remat", False):  # outputs inside such a layer cannot be kept
        model = model.clone(**{name: encoder.clone(remat=False)})
    path = (name, *layer.name.split("/"))

    def log_odds(shift: Array) -> tuple[Array, Array]:
        """Sum of the log odds with `shift` added to the layer's output, and that output."""
        seen = []

        def interceptor(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = next_function(*args, **kwargs)
            if context.module.path == path and context.method_name == "__call__":
                seen.append(output)
                output = output + shift
            return output

        with nn.intercept_methods(interceptor):
            outputs = model.apply(variables, x, device_B, train=False, crops=crops, numbers=numbers)
        logits = outputs["logits"]
        # Outputs of vertebrae are independent, so the sum's gradient has that of each vertebra.
        return jnp.sum(logits[:, 1] - logits[:, 0]), seen[0]

    # One shift per image and channel is added everywhere; its gradient is a sum over space.
    _, output = jax.eval_shape(log_odds, jnp.float32(0))
    coarse = output.shape[1:-1]
    shift = jnp.zeros((output.shape[0], *[1] * len(coarse), output.shape[-1]), output.dtype)
    gradient, activation = jax.grad(log_odds, has_aux=True)(shift)
    weights = gradient.astype(jnp.float32) / math.prod(coarse)
    heat = nn.relu(jnp.sum(weights * activation.astype(jnp.float32), axis=-1))
    for axis, size in enumerate(fine, start=1):
        matrix = _interpolation(heat.shape[axis], size, layer)
        heat = jnp.moveaxis(jnp.tensordot(heat, matrix, axes=(axis, 1)), -1, axis)
    return heat.reshape(image.shape[:-1])


def put_back(heat_BNDHW: Array, corners_BN3: Array, shape: tuple[int, int, int]) -> Array:
    """Puts maps of crops back in their places; where crops overlap, their mean.

    Args:
      heat_BNDHW: f32[B, N, e, e, e].
      corners_BN3: i32[B, N, 3] first voxels of the crops.
      shape: of the volume.

    Returns:
      f32[B, *shape], zero where no crop lies.
    """
    edges = heat_BNDHW.shape[2:]

    def one(heat_NDHW: Array, corners_N3: Array) -> Array:
        along = [corners_N3[:, a, None] + jnp.arange(edges[a]) for a in range(3)]
        z, y, x = along[0][:, :, None, None], along[1][:, None, :, None], along[2][:, None, None]
        total = jnp.zeros(shape, jnp.float32).at[z, y, x].add(heat_NDHW)
        crops = jnp.zeros(shape, jnp.float32).at[z, y, x].add(1.0)
        return total / jnp.maximum(crops, 1.0)

    return jax.vmap(one)(heat_BNDHW, corners_BN3)


def _interpolation(coarse: int, fine: int, layer: AttentionLayer) -> np.ndarray:
    """f32[fine, coarse]: linear interpolation between centres, constant beyond the outer ones."""
    position = (np.arange(fine) - layer.first_centre) / layer.stride
    position = np.clip(position, 0, coarse - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(coarse))).astype(np.float32)
