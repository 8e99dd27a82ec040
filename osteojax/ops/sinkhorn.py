"""Balanced soft assignment by Sinkhorn iterations, in the log domain, over a sharded batch.

Cuturi 2013; Caron et al. 2020 (SwAV), section 3.1: assignments lie in the transport polytope, which
spreads the batch evenly over the prototypes, and are regularised by an entropic term epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax


def _logsumexp_over_batch(log_qs_BK: Sequence[Array], axis_name: str | None) -> list[Array]:
    """log(sum over the global batch) of each, f32[1, K]."""
    tops_1K = [jnp.max(log_q_BK, axis=0, keepdims=True) for log_q_BK in log_qs_BK]
    if axis_name is not None:
        tops_1K = lax.pmax(tops_1K, axis_name)
    totals_1K = [
        jnp.sum(jnp.exp(log_q_BK - top_1K), axis=0, keepdims=True)
        for log_q_BK, top_1K in zip(log_qs_BK, tops_1K, strict=True)
    ]
    if axis_name is not None:
        totals_1K = lax.psum(totals_1K, axis_name)
    return [jnp.log(total) + top for total, top in zip(totals_1K, tops_1K, strict=True)]


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
    assigned = sinkhorn_of_each(
        [scores_BK], epsilon=epsilon, num_iterations=num_iterations, axis_name=axis_name
    )
    return assigned[0]


def sinkhorn_of_each(
    scores: Sequence[Array],
    *,
    epsilon: float,
    num_iterations: int,
    axis_name: str | None = None,
) -> list[Array]:
    """`sinkhorn` of several batches f[B, K] with one K, independent of one another.

    Their iterations go in step, so that XLA can join the sums that devices exchange. They are not
    stacked, because on a CPU their rounding would depend on the program around them, and a resumed
    run would not be equal to the bit.
    """
    log_qs_BK = [lax.stop_gradient(each).astype(jnp.float32) / epsilon for each in scores]
    for _ in range(num_iterations):
        sums_1K = _logsumexp_over_batch(log_qs_BK, axis_name)
        log_qs_BK = [log_q - total for log_q, total in zip(log_qs_BK, sums_1K, strict=True)]
        log_qs_BK = [log_q - jax.nn.logsumexp(log_q, axis=1, keepdims=True) for log_q in log_qs_BK]
    return [jnp.exp(log_q_BK) for log_q_BK in log_qs_BK]
