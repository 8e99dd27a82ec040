"""Heads on the encoder: projector and prototypes for pre-training, task heads for fine-tuning."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from osteojax.data.vertebrae import LEVELS


def l2_normalise(x: Array, epsilon: float = 1e-12) -> Array:
    """x / |x| along the last axis, f32. The epsilon keeps the gradient finite at zero. Without this
    normalisation SwAV's scores overflow (docs/method.md, traps)."""
    x = x.astype(jnp.float32)
    return x * jnp.reciprocal(jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + epsilon))


class Projector(nn.Module):
    """MLP from embedding to the unit sphere of the prototypes (Caron et al. 2020, section 4).

    512-512-128 by default; the paper gives no sizes. [B, F] -> f32[B, output_dim].

    Attributes:
      hidden_dim, output_dim: of its two layers.
      axis_name: mapped axis that the batch is spread over, for the statistics.
      unit: rows of length 1. If not, the output has no bias: losses that are not of unit rows
        centre it, and a bias would have no gradient.
    """

    hidden_dim: int = 512
    output_dim: int = 128
    axis_name: str | None = None
    unit: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        # No bias, because batch normalisation would subtract it.
        x = nn.Dense(self.hidden_dim, use_bias=False, name="hidden")(x.astype(jnp.float32))
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, axis_name=self.axis_name, name="norm"
        )(x)
        x = nn.Dense(self.output_dim, use_bias=self.unit, name="output")(nn.relu(x))
        return l2_normalise(x) if self.unit else x


class Prototypes(nn.Module):
    """K learnable unit vectors C_k. f32[B, D] unit rows -> f32[B, K] cosines P^T C."""

    num_prototypes: int = 128
    dim: int = 128

    @nn.compact
    def __call__(self, projections_BD: Array) -> Array:
        vectors_KD = self.param(
            "vectors", nn.initializers.normal(1.0), (self.num_prototypes, self.dim), jnp.float32
        )
        return projections_BD @ l2_normalise(vectors_KD).T


class TaskHeads(nn.Module):
    """One expert E_i: a two-layer MLP with the three outputs of section 2.3.

    [B, F] -> dict of logits f32[B, 2] (no osteoporosis, osteoporosis), bmd f32[B] (z-scored g/cm^2)
    and level_logits f32[B, 18] (T1-T12, L1-L6).
    """

    hidden_dim: int = 256

    @nn.compact
    def __call__(self, embedding_BF: Array) -> dict[str, Array]:
        x = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(embedding_BF.astype(jnp.float32)))
        return {
            "logits": nn.Dense(2, name="diagnosis")(x),
            "bmd": nn.Dense(1, name="bmd")(x)[..., 0],
            "level_logits": nn.Dense(len(LEVELS), name="position")(x),
        }
