"""Decoders that use the DXA scanner without experts: controls for `MixtureOfExperts`.

They show how much the experts gain beyond their number of parameters and beyond the knowledge of
the scanner. Both return the outputs of `TaskHeads` and a gate of one expert, as the mixture does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from osteojax.data.vertebrae import LEVELS
from osteojax.errors import UserError
from osteojax.models.heads import TaskHeads
from osteojax.models.moe import MixtureOfExperts

if TYPE_CHECKING:
    from ml_collections import ConfigDict

OUTPUT_UNITS = 2 + 1 + len(LEVELS)
"""Number of outputs of `TaskHeads`: two logits, BMD, level logits."""


class ConcatenatedDevice(nn.Module):
    """One head on [P_I, one-hot D_I], with as many parameters as a mixture of experts (to within
    the weights of one hidden unit).

    Attributes:
      num_scanners: number of DXA scanners of the cohort, with "unknown".
      num_experts, gate_dim, expert_dim: of the mixture whose number of parameters is matched.
    """

    num_scanners: int
    num_experts: int
    gate_dim: int
    expert_dim: int

    @nn.compact
    def __call__(self, embedding_BF: Array, device_B: Array) -> dict[str, Array]:
        """f[B, F], i32[B] -> the outputs of `TaskHeads`, and gate f32[B, 1] of ones."""
        one_hot = jax.nn.one_hot(device_B, self.num_scanners, dtype=jnp.float32)
        x = jnp.concatenate([embedding_BF.astype(jnp.float32), one_hot], axis=-1)
        outputs = TaskHeads(self.hidden_dim(embedding_BF.shape[-1]), name="head")(x)
        return {**outputs, "gate": jnp.ones((x.shape[0], 1), jnp.float32)}

    def hidden_dim(self, features: int) -> int:
        """Hidden units that match the mixture's parameters for an embedding of F features."""
        per_expert = (features + 1 + OUTPUT_UNITS) * self.expert_dim + OUTPUT_UNITS
        gate = (features + 1 + self.num_experts) * self.gate_dim + self.num_experts
        table = self.num_scanners * features
        mixture = self.num_experts * per_expert + gate + table
        return round((mixture - OUTPUT_UNITS) / (features + self.num_scanners + 1 + OUTPUT_UNITS))


class DeviceAffine(nn.Module):
    """One head whose diagnosis logits and BMD go through an affine function per scanner, as in
    published cross-calibrations of DXA scanners.

    Attributes:
      num_scanners: number of DXA scanners of the cohort, with "unknown".
      hidden_dim: of the head.
    """

    num_scanners: int
    hidden_dim: int

    @nn.compact
    def __call__(self, embedding_BF: Array, device_B: Array) -> dict[str, Array]:
        """f[B, F], i32[B] -> the outputs of `TaskHeads`, and gate f32[B, 1] of ones."""
        outputs = TaskHeads(self.hidden_dim, name="head")(embedding_BF)
        answers_B3 = jnp.concatenate([outputs["logits"], outputs["bmd"][:, None]], axis=-1)
        shape = (self.num_scanners, answers_B3.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        offset = self.param("offset", nn.initializers.zeros, shape, jnp.float32)
        answers_B3 = answers_B3 * scale[device_B] + offset[device_B]
        gate = jnp.ones((embedding_BF.shape[0], 1), jnp.float32)
        return {**outputs, "logits": answers_B3[:, :2], "bmd": answers_B3[:, 2], "gate": gate}


def build_decoder(config: ConfigDict, num_scanners: int) -> nn.Module:
    """The decoder that `config.moe` describes. `config.moe.decoder` is "experts" (the paper's, and
    the default for older workdirs without the field), "concatenated" or "affine"."""
    fields = config.to_dict()
    decoder = fields.pop("decoder", "experts")
    if decoder == "experts":
        return MixtureOfExperts(num_scanners, **fields)
    if decoder == "concatenated":
        sizes = {name: fields[name] for name in ("num_experts", "gate_dim", "expert_dim")}
        return ConcatenatedDevice(num_scanners, **sizes)
    if decoder == "affine":
        return DeviceAffine(num_scanners, fields["expert_dim"])
    raise UserError(f"moe.decoder is {decoder!r}; choose experts, concatenated or affine.")
