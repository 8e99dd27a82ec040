"""A norm's statistics and parameters applied, and ReLU: gradients in few passes over memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from osteojax.ops.pairs import fill_registers, in_pairs, paired, unpaired
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


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and mean square of every channel, f32[C] or wider, of f[B, *space, C]."""
    return _moments_by_platform(x) if fill_registers(x) else _moments(x)


def _moments(x: Array) -> tuple[Array, Array]:
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.square(wide)  # first, as in flax: the gradient's terms keep their order
    return wide.mean(axes), squares.mean(axes)


def _moments_of_pairs(x: Array) -> tuple[Array, Array]:
    mean, square = (both.reshape(2, -1).mean(0) for both in _moments(paired(x)))
    return mean, square


@jax.custom_vjp
def _moments_by_platform(x: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(x, tpu=_moments_of_pairs, default=_moments)


def _moments_backward(x: Array, of_both: tuple[Array, Array]) -> tuple[Array]:
    def gradient(form: Callable[[Array], Any], x: Array, *of_both: Array) -> Array:
        return jax.vjp(form, x)[1](of_both)[0]

    tpu, default = (functools.partial(gradient, form) for form in (_moments_of_pairs, _moments))
    return (lax.platform_dependent(x, *of_both, tpu=tpu, default=default),)


_moments_by_platform.defvjp(lambda x: (_moments_by_platform(x), x), _moments_backward)


@jax.custom_vjp
def relu_of_sum(x: Array, y: Array) -> Array:
    """max(x + y, 0) of f[B, *space, C]. On an NVIDIA GPU its gradient reads the result, which the
    next layer keeps anyway, instead of all that x and y were computed from."""

    def of_pairs(x: Array, y: Array) -> Array:
        return unpaired(jax.nn.relu(paired(x) + paired(y)))

    def of_voxels(x: Array, y: Array) -> Array:
        return jax.nn.relu(x + y)

    tpu = of_pairs if fill_registers(x) else of_voxels
    return lax.platform_dependent(x, y, tpu=tpu, default=of_voxels)


def _relu_backward(y: Array, dy: Array) -> tuple[Array, Array]:
    def masked(y: Array, dy: Array) -> Array:
        return jnp.where(y > 0, dy, jnp.zeros((), dy.dtype))

    def of_pairs(y: Array, dy: Array) -> Array:
        return unpaired(masked(paired(y), paired(dy)))

    # Without the barrier XLA knows that max(x, 0) > 0 is x > 0, and computes x once more.
    kept = lambda y, dy: masked(lax.optimization_barrier(y), dy)  # noqa: E731
    tpu = of_pairs if fill_registers(y) else masked
    dx = lax.platform_dependent(y, dy, cuda=kept, tpu=tpu, default=masked)
    return dx, dx


relu_of_sum.defvjp(lambda x, y: (relu_of_sum(x, y),) * 2, _relu_backward)


def plain(*inputs: Array, dtype: Any, relu: bool = False) -> Array:
    """`normalised` of x, mean, mul and bias, differentiated by JAX."""
    x, mean, mul, bias = inputs
    y = ((x - mean) * mul + bias).astype(dtype)
    return jax.nn.relu(y) if relu else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalised(dtype: Any, relu: bool, *inputs: Array) -> Array:
    voxels, pairs = _forms(dtype, relu, inputs[0])
    return lax.platform_dependent(*inputs, tpu=pairs, default=voxels)


def _forward(dtype: Any, relu: bool, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _normalised(dtype, relu, *inputs), inputs


def _backward(dtype: Any, relu: bool, inputs: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    def of(form: Callable[..., Array], *arguments: Array) -> tuple[Array, ...]:
        *inputs, dy = arguments
        return jax.vjp(form, *inputs)[1](dy)

    few_passes = functools.partial(gradients_in_few_passes, dtype, relu)
    voxels, pairs = (functools.partial(of, form) for form in _forms(dtype, relu, inputs[0]))
    return lax.platform_dependent(*inputs, dy, cuda=few_passes, tpu=pairs, default=voxels)


def _forms(dtype: Any, relu: bool, x: Array) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """`plain` of voxels, and of pairs of them where these fill a TPU's registers."""
    voxels = functools.partial(plain, dtype=dtype, relu=relu)
    return voxels, in_pairs(voxels) if fill_registers(x) else voxels


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
