"""Balanced soft assignment by Sinkhorn iterations, in the log domain, over a sharded batch.

Cuturi 2013; Caron et al. 2020 (SwAV), section 3.1: assignments lie in the transport polytope, which
spreads the batch evenly over the prototypes, and are regularised by an entropic term epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

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


def sinkhorn_of_each(
    scores: Sequence[Array],
    *,
    epsilon: float,
    num_iterations: int,
    axis_name: str | None = None,
) -> tuple[Array, ...]:
    """`sinkhorn` of several batches f[B, K] with one K, independent of one another.

    On accelerators their iterations go in step, and devices exchange the sums of all batches in one
    message instead of one for each. On a CPU each batch goes by itself: the rounding of a stacked
    sum would depend on the program around it, and a resumed run would not be equal to the bit.
    """
    alone = partial(sinkhorn, epsilon=epsilon, num_iterations=num_iterations, axis_name=axis_name)
    in_step = partial(_in_step, epsilon=epsilon, num_iterations=num_iterations, axis_name=axis_name)

    def each_alone(*scores: Array) -> tuple[Array, ...]:
        return tuple(alone(each) for each in scores)

    scores = [lax.stop_gradient(each) for each in scores]
    assigned: tuple[Array, ...] = lax.platform_dependent(*scores, cpu=each_alone, default=in_step)
    return assigned


def _in_step(
    *scores: Array, epsilon: float, num_iterations: int, axis_name: str | None
) -> tuple[Array, ...]:
    log_qs_BK = [each.astype(jnp.float32) / epsilon for each in scores]
    for _ in range(num_iterations):
        tops_N1K = jnp.stack([log_q.max(0, keepdims=True) for log_q in log_qs_BK])
        if axis_name is not None:
            tops_N1K = lax.pmax(tops_N1K, axis_name)
        scaled = [jnp.exp(log_q - top) for log_q, top in zip(log_qs_BK, tops_N1K, strict=True)]
        totals_N1K = jnp.stack([each.sum(0, keepdims=True) for each in scaled])
        if axis_name is not None:
            totals_N1K = lax.psum(totals_N1K, axis_name)
        sums_N1K = jnp.log(totals_N1K) + tops_N1K
        log_qs_BK = [log_q - each for log_q, each in zip(log_qs_BK, sums_N1K, strict=True)]
        log_qs_BK = [log_q - jax.nn.logsumexp(log_q, axis=1, keepdims=True) for log_q in log_qs_BK]
    return tuple(jnp.exp(log_q) for log_q in log_qs_BK)
