"""A norm's statistics and parameters applied, and ReLU: gradients in few passes over memory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from osteojax.ops.varying import same_varying_axes


def normalised(
    x: Array, mean: Array, mul: Array, bias: Array, dtype: Any, relu: bool = False
) -> Array:
    """(x - mean) * mul + bias, computed in the widest dtype of these, as `nn.BatchNorm` does.

    The platform of the gradient is chosen when the program is lowered. On an NVIDIA GPU the ReLU's
    gradient is not rounded to `dtype` between ReLU and norm, and both sums over it are one
    reduction; else XLA writes it to memory and reads it once for each sum (docs/compile.md).

    Args:
      x: f[B, *space, C].
      mean, mul, bias: f32[1 or B, 1, .., C].
      dtype: of the result.
      relu: whether a ReLU follows.
    """
    return _normalised(dtype, relu, *same_varying_axes(x, mean, mul, bias))


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0). On an NVIDIA GPU its gradient reads the result, which the next layer keeps anyway,
    instead of all that x was computed from."""
    return jax.nn.relu(x)


def _relu_backward(y: Array, dy: Array) -> tuple[Array]:
    def masked(y: Array, dy: Array) -> Array:
        return jnp.where(y > 0, dy, jnp.zeros((), dy.dtype))

    # Without the barrier XLA knows that max(x, 0) > 0 is x > 0, and computes x once more.
    kept = lambda y, dy: masked(lax.optimization_barrier(y), dy)  # noqa: E731
    return (lax.platform_dependent(y, dy, cuda=kept, default=masked),)


relu.defvjp(lambda x: (jax.nn.relu(x),) * 2, _relu_backward)


def plain(*inputs: Array, dtype: Any, relu: bool = False) -> Array:
    """`normalised` of x, mean, mul and bias, differentiated by JAX."""
    x, mean, mul, bias = inputs
    y = ((x - mean) * mul + bias).astype(dtype)
    return jax.nn.relu(y) if relu else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalised(dtype: Any, relu: bool, *inputs: Array) -> Array:
    return plain(*inputs, dtype=dtype, relu=relu)


def _forward(dtype: Any, relu: bool, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return plain(*inputs, dtype=dtype, relu=relu), inputs


def _backward(dtype: Any, relu: bool, inputs: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    def of_plain(*arguments: Array) -> tuple[Array, ...]:
        *inputs, dy = arguments
        return jax.vjp(functools.partial(plain, dtype=dtype, relu=relu), *inputs)[1](dy)

    few_passes = functools.partial(gradients_in_few_passes, dtype, relu)
    return lax.platform_dependent(*inputs, dy, cuda=few_passes, default=of_plain)


_normalised.defvjp(_forward, _backward)


def gradients_in_few_passes(
    dtype: Any, relu: bool, x: Array, mean: Array, mul: Array, bias: Array, dy: Array
) -> tuple[Array, ...]:
    """Gradients of x, mean, mul and bias."""
    wide = jnp.result_type(x, mean)
    dy = dy.astype(wide)
    if relu:
        dy = jnp.where(plain(x, mean, mul, bias, dtype=dtype) > 0, dy, jnp.zeros((), wide))
    axes = tuple(range(1 if mean.shape[0] > 1 else 0, x.ndim - 1))
    zero = jnp.zeros_like(dy, shape=())
    both = (dy, dy * (x.astype(wide) - mean))
    of_dy, of_product = lax.reduce(both, (zero, zero), _add_both, axes)
    of_dy, of_product = (jnp.expand_dims(total, axes) for total in (of_dy, of_product))
    d_bias = of_dy.sum(0, keepdims=True) if bias.shape[0] < of_dy.shape[0] else of_dy
    return (dy * mul).astype(x.dtype), -of_dy * mul, of_product, d_bias


def _add_both(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] + b[0], a[1] + b[1]
