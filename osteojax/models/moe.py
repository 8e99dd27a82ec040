"""Mixture of experts at the decoding stage (paper, section 2.2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from osteojax.models.heads import TaskHeads


class MixtureOfExperts(nn.Module):
    """Device-aware gate over N experts: alpha = softmax(f_g(P_I + D_I)), sum_i alpha_i E_i(P_I).

    Eq. 2 and 3. Every output of the experts is mixed: logits, BMD and level logits. With one expert
    this is the plain multi-task head, without a gate.

    Attributes:
      num_scanners: number of DXA scanners of the cohort, with "unknown".
      num_experts: N (paper: 3).
      gate_dim: hidden width of f_g (the paper gives none).
      expert_dim: hidden width of an expert (the paper gives none).
      use_device: False drops D_I from eq. 2 (ablation).
    """

    num_scanners: int
    num_experts: int = 3
    gate_dim: int = 128
    expert_dim: int = 256
    use_device: bool = True

    @nn.compact
    def __call__(self, embedding_BF: Array, device_B: Array) -> dict[str, Array]:
        """f[B, F] embeddings P_I, i32[B] devices -> the outputs of `TaskHeads`, mixed, and
        gate f32[B, N], whose rows sum to 1."""
        embedding_BF = embedding_BF.astype(jnp.float32)
        experts = nn.vmap(
            TaskHeads,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=1,
            axis_size=self.num_experts,
        )(self.expert_dim, name="experts")
        outputs_BN = experts(embedding_BF)
        gate_BN = self._gate(embedding_BF, device_B)
        mixed = jax.tree.map(lambda out: jnp.einsum("bn,bn...->b...", gate_BN, out), outputs_BN)
        return {**mixed, "gate": gate_BN}

    def _gate(self, embedding_BF: Array, device_B: Array) -> Array:
        if self.num_experts == 1:
            return jnp.ones((embedding_BF.shape[0], 1), jnp.float32)
        x = embedding_BF
        if self.use_device:
            x = x + nn.Embed(self.num_scanners, x.shape[-1], name="device_embedding")(device_B)
        x = nn.relu(nn.Dense(self.gate_dim, name="gate_hidden")(x))
        return nn.softmax(nn.Dense(self.num_experts, name="gate_output")(x))
