"""Where in a vertebra the diagnosis comes from: Grad-CAM (Selvaraju et al., ICCV 2017) in 3D."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

MIN_VOXELS = 4
"""The map is taken at the deepest stage that still has this many voxels an edge: 24 mm or finer
for a field of view of 96 mm. The last stage of 64^3 has 2, which points at nothing."""

STEM_STRIDE = 4
"""Of stage 1 to the input; each later stage doubles it."""


def chosen_stage(size: int, num_stages: int) -> int:
    """Number (from 1) of the stage that `gradcam` looks at for inputs of `size` voxels an edge.

    96^3 and 64^3: stage 3 (6 and 4 voxels an edge); 32^3: stage 2.
    """
    stage = 1
    while stage < num_stages and -(-size // (STEM_STRIDE * 2**stage)) >= MIN_VOXELS:
        stage += 1
    return stage


def gradcam(model: Any, variables: Any, x: Array, device_B: Array) -> Array:
    """Grad-CAM of the log odds of osteoporosis, logit[1] - logit[0].

    With A_c the channels of the chosen stage and y the log odds, the map is
    relu(sum_c mean(dy / dA_c) A_c), interpolated linearly to the input's grid at the true centres
    of the stage's voxels. It says where channels are active that raise the log odds, and no more:
    it explains neither bone nor a single case's error.

    Args:
      model: `osteojax.objectives.diagnosis.DiagnosisModel`, without an axis name.
      variables: {"params", "batch_stats"}.
      x: f[B, *space, 1] network input.
      device_B: i32[B].

    Returns:
      f32[B, *space] >= 0, not normalised: divide by a vertebra's maximum to draw it. Zero
      everywhere where nothing raises the log odds.
    """
    blocks = model.backbone.stage_sizes
    stage = chosen_stage(min(x.shape[1:-1]), len(blocks))
    model = model.clone(backbone=model.backbone.clone(remat=False))
    last_block = f"stage{stage}_block{blocks[stage - 1]}"

    def log_odds(shift: Array) -> tuple[Array, Array]:
        """Sum of the log odds with `shift` added to the stage's output, and that output."""
        seen = []

        def interceptor(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = next_function(*args, **kwargs)
            if context.module.name == last_block and context.method_name == "__call__":
                seen.append(output)
                output = output + shift
            return output

        with nn.intercept_methods(interceptor):
            outputs = model.apply(variables, x, device_B, train=False)
        logits = outputs["logits"]
        # No vertebra's output depends on another's, so the sum has each one's own gradient.
        return jnp.sum(logits[:, 1] - logits[:, 0]), seen[0]

    # One shift per vertebra and channel, the same everywhere: its gradient is the sum over space.
    channels = model.backbone.width * 2 ** (stage - 1)
    space = x.ndim - 2
    shift = jnp.zeros((x.shape[0], *[1] * space, channels), model.backbone.dtype)
    gradient, activation = jax.grad(log_odds, has_aux=True)(shift)
    weights = gradient.astype(jnp.float32) / np.prod(activation.shape[1:-1])
    heat = nn.relu(jnp.sum(weights * activation.astype(jnp.float32), axis=-1))
    for axis, size in enumerate(x.shape[1:-1], start=1):
        matrix = _interpolation(heat.shape[axis], size, STEM_STRIDE * 2 ** (stage - 1))
        heat = jnp.moveaxis(jnp.tensordot(heat, matrix, axes=(axis, 1)), -1, axis)
    return heat


def _interpolation(coarse: int, fine: int, stride: int) -> np.ndarray:
    """f32[fine, coarse]: linear interpolation, constant beyond the last centre.

    Voxel i of a stage is centred on input voxel stride * i: every stride-2 layer pads evenly.
    """
    position = np.minimum(np.arange(fine) / stride, coarse - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(coarse))).astype(np.float32)
