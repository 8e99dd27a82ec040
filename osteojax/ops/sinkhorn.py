"""Balanced soft assignment by Sinkhorn iterations, in the log domain, over a sharded batch.

Cuturi 2013; Caron et al. 2020 (SwAV), section 3.1: assignments lie in the transport polytope, which
spreads the batch evenly over the prototypes, and are regularised by an entropic term epsilon.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


def _logsumexp_over_batch(log_q_BK: Array, axis_name: str | None) -> Array:
    """log(sum over the global batch), f32[1, K]."""
    top_1K = jnp.max(log_q_BK, axis=0, keepdims=True)
    if axis_name is not None:
        top_1K = lax.pmax(top_1K, axis_name)
    total_1K = jnp.sum(jnp.exp(log_q_BK - top_1K), axis=0, keepdims=True)
    if axis_name is not None:
        total_1K = lax.psum(total_1K, axis_name)
    return jnp.log(total_1K) + top_1K


def sinkhorn(
    scores_BK: Array,
    *,
    epsilon: float = 0.05,
    num_iterations: int = 3,
    axis_name: str | None = None,
) -> Array:
    """Soft assignments of samples to prototypes with equal prototype shares.

    Args:
      scores_BK: f[B, K] similarities (cosines in [-1, 1]); B is this device's share of the batch.
      epsilon: entropic regularisation; smaller is harder. exp(1 / 0.05) overflows float16, hence
        float32 and the log domain whatever the input's dtype.
      num_iterations: alternations of prototype and sample normalisation. The last one normalises
        samples, so with few iterations prototype shares are only approximately equal.
      axis_name: mesh axis the batch is sharded over; prototype sums run over the global batch.

    Returns:
      f32[B, K]; each row sums to 1. No gradient flows through it.
    """
    scores_BK = lax.stop_gradient(scores_BK).astype(jnp.float32)
    log_q_BK = scores_BK / epsilon
    for _ in range(num_iterations):
        log_q_BK = log_q_BK - _logsumexp_over_batch(log_q_BK, axis_name)
        log_q_BK = log_q_BK - jax.nn.logsumexp(log_q_BK, axis=1, keepdims=True)
    return jnp.exp(log_q_BK)
