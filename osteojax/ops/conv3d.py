"""Convolution of images and volumes: one function, with a fast lowering for each platform.

On GPU and TPU it is a channels-last `lax.conv_general_dilated`. A strided convolution of few
channels (the stem) is first rewritten with stride 1 and more channels (`space_to_depth`), because
matrix units multiply 8 or more channels at a time. On CPU it is `conv3d_cpu`, because XLA's own 3D
convolutions run there at 1-60 GFLOP/s where its matrix products reach 200; every strided
convolution is first rewritten with stride 1 there.

The platform is chosen when the program is lowered (`lax.platform_dependent`), not when it is
traced: one `jax.export` for cpu, cuda and tpu holds the lowering of each, and a computation placed
on the CPU of a GPU machine gets that of the CPU. A program for one platform compiles that
platform's branch only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from osteojax.ops.conv3d_cpu import Pads, conv3d_cpu
from osteojax.ops.pairs import fill_registers, pair_kernel, paired, unpaired
from osteojax.ops.varying import same_varying_axes

Strides = tuple[int, ...]
Padding = str | int | Sequence[int | tuple[int, int]]

DIMENSION_NUMBERS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
DEPTH_TO_CHANNELS_MAX_CHANNELS = 8
"""On CPU, convolutions of at most this many channels (the stem's 8) move the kernel's depth taps
into the channels."""
FEW_CHANNELS = 8
"""On GPU and TPU, strided convolutions of fewer channels go through `space_to_depth`."""
LOWERINGS = ("auto", "xla", "cpu", "accelerator")


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    lowering: str = "auto",
) -> jax.Array:
    """`lax.conv_general_dilated` of channels-last input, in the platform's fast lowering.

    Args:
      x: f[N, H, W, C] or f[N, D, H, W, C].
      kernel: f[*window, C, O], as `nn.Conv` keeps it; cast to the dtype of `x`.
      strides: one number for all axes, or one for each axis.
      padding: "SAME", "VALID", or the number of zeros at both ends: one for all axes (3), one for
        each axis ((3, 3, 3)), or (low, high) for each axis.
      lowering: "auto" is "cpu" on CPU and "accelerator" elsewhere. For tests and benchmarks,
        either can be asked for on any platform, or "xla", the plain `lax.conv_general_dilated`.

    Returns:
      f[N, *space, O] in the dtype of `x`. Equal to `lax.conv_general_dilated` to rounding,
      gradients included (reverse mode; partial sums in float32).
    """
    rank = x.ndim - 2
    if rank not in DIMENSION_NUMBERS:
        raise ValueError(f"x has shape {x.shape}; expected [N, H, W, C] or [N, D, H, W, C]")
    if kernel.ndim != x.ndim or kernel.shape[-2] != x.shape[-1]:
        raise ValueError(f"kernel has shape {kernel.shape} for x of shape {x.shape}")
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering is {lowering!r}; choose from {', '.join(LOWERINGS)}")
    strides = (strides,) * rank if isinstance(strides, int) else tuple(strides)
    pads = _explicit_pads(x.shape[1:-1], kernel.shape[:rank], strides, padding)
    kernel = kernel.astype(x.dtype)
    reach = zip(x.shape[1:-1], kernel.shape, pads, strict=False)
    empty = 0 in x.shape or any(size + sum(pad) < taps for size, taps, pad in reach)
    if lowering == "xla" or empty:
        return _conv_xla(x, kernel, strides, pads)
    x, kernel = same_varying_axes(x, kernel)
    if lowering == "cpu":
        return _conv_cpu(x, kernel, strides, pads)
    if lowering == "accelerator":
        return _conv_accelerator(x, kernel, strides, pads)
    return _conv_platform(x, kernel, strides, pads)


class Conv(nn.Module):
    """`nn.Conv` (same parameters: names, shapes, initialisation) computed by `conv`.

    Attributes:
      features: output channels.
      kernel_size: window, one entry per spatial axis.
      strides, padding: as in `conv`.
      use_bias: adds a learned "bias" of shape [features].
      dtype: of the computation; None keeps the promoted dtype of input and parameters.
      param_dtype: of the parameters.
      kernel_init, bias_init: initialisers, the defaults of `nn.Conv`.
      lowering: as in `conv`.
    """

    features: int
    kernel_size: Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros_init()
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, *space, C] -> f[N, *space', features]."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        # This precedes the cast, so that gradients are summed over the devices in the parameter's
        # dtype.
        x, kernel = same_varying_axes(x, kernel)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv(x, kernel, strides=self.strides, padding=self.padding, lowering=self.lowering)
        return y if bias is None else y + bias


def space_to_depth(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads
) -> tuple[jax.Array, jax.Array, Pads]:
    """The same convolution with stride 1: blocks of `strides` voxels become channels.

    A 7^3 stride-2 convolution of 1 channel becomes a 4^3 stride-1 convolution of 8, which fills
    vector and matrix units. With k' = k + low % stride the tap reads x[stride * o + k' - low'],
    low' a multiple of the stride, so that k' = stride * a + phase is tap a of channel block phase.

    Returns: x: [N, *blocks, prod(strides) * C], kernel: [*taps, prod(strides) * C, O], pads.
    """
    rank = len(strides)
    x_pads, kernel_pads, new_pads, blocks, taps = [(0, 0)], [], [], [], []
    for axis in range(rank):
        size, window, stride = x.shape[1 + axis], kernel.shape[axis], strides[axis]
        low, high = pads[axis]
        count = (size + low + high - window) // stride + 1
        front = -low % stride
        blocks.append(-(-size // stride))
        taps.append(-(-(window + front) // stride))
        x_pads.append((0, blocks[-1] * stride - size))
        kernel_pads.append((front, taps[-1] * stride - window - front))
        before = (low + front) // stride
        new_pads.append((before, count + taps[-1] - 1 - before - blocks[-1]))
    x = jnp.pad(x, [*x_pads, (0, 0)])
    kernel = jnp.pad(kernel, [*kernel_pads, (0, 0), (0, 0)])
    x = _blocks_to_channels(x[..., None], 1, blocks, strides)[..., 0]
    kernel = _blocks_to_channels(kernel, 0, taps, strides)
    return x, kernel, tuple(new_pads)


def _blocks_to_channels(
    x: jax.Array, first: int, blocks: Sequence[int], strides: Strides
) -> jax.Array:
    """[..., *space, C, O] -> [..., *blocks, prod(strides) * C, O]; space begins at `first`."""
    rank = len(strides)
    split = [part for pair in zip(blocks, strides, strict=True) for part in pair]
    x = x.reshape(*x.shape[:first], *split, *x.shape[-2:])
    block_axes = [first + 2 * axis for axis in range(rank)]
    order = [*range(first), *block_axes, *(axis + 1 for axis in block_axes), x.ndim - 2, x.ndim - 1]
    x = x.transpose(order)
    return x.reshape(*x.shape[:first], *blocks, math.prod(strides) * x.shape[-2], x.shape[-1])


def _conv_xla(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=DIMENSION_NUMBERS[len(strides)]
    )


def _conv_accelerator(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    return _conv_xla(*_without_few_channels(x, kernel, strides, pads))


def _conv_tpu(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    if _has_few_channels(x, kernel, strides):
        # Else blocks become channels in the dtype and the layout of what x is computed from: the
        # augmented codes, with the batch last, which took a fifth of the step (docs/compile.md).
        x = lax.optimization_barrier(x)
    x, kernel, strides, pads = _without_few_channels(x, kernel, strides, pads)
    shape = jax.eval_shape(lambda x, kernel: _conv_xla(x, kernel, strides, pads), x, kernel)
    if max(strides) > 1 or x.shape[-2] % 2 or not fill_registers(shape):
        return _conv_xla(x, kernel, strides, pads)
    kernel, pads = pair_kernel(kernel, x.shape[-2], pads)
    return unpaired(_conv_xla(paired(x), kernel, strides, pads))


def _without_few_channels(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads
) -> tuple[jax.Array, jax.Array, Strides, Pads]:
    """The same convolution by `space_to_depth` where it is strided and has few channels."""
    if not _has_few_channels(x, kernel, strides):
        return x, kernel, strides, pads
    x, kernel, pads = space_to_depth(x, kernel, strides, pads)
    return x, kernel, (1,) * len(strides), pads


def _has_few_channels(x: jax.Array, kernel: jax.Array, strides: Strides) -> bool:
    return max(strides) > 1 and max(kernel.shape[:-2]) > 1 and x.shape[-1] < FEW_CHANNELS


def _conv_cpu(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    if max(kernel.shape[:-2]) == 1 and not any(map(any, pads)):
        x = x[(slice(None), *(slice(None, None, stride) for stride in strides))]
    elif max(strides) > 1:
        x, kernel, pads = space_to_depth(x, kernel, strides, pads)
    kernel, pads = _without_dead_taps(kernel, x.shape[1:-1], pads)
    if len(strides) == 2:
        return conv3d_cpu(x[:, None], kernel[None], ((0, 0), *pads))[:, 0]
    if x.shape[-1] <= DEPTH_TO_CHANNELS_MAX_CHANNELS:
        x, kernel, pads = _depth_to_channels(x, kernel, pads)
    return conv3d_cpu(x, kernel, pads)


def _depth_to_channels(
    x: jax.Array, kernel: jax.Array, pads: Pads
) -> tuple[jax.Array, jax.Array, Pads]:
    """The same convolution with one depth tap: each plane takes its neighbours as channels.

    The time of a layer of few channels (the stem) is that of writing its output, and a sum over
    depth taps would write it once for each tap.
    """
    taps, depth = kernel.shape[0], x.shape[1] + sum(pads[0]) - kernel.shape[0] + 1
    config = [(0, 0, 0)] * x.ndim
    config[1] = (*pads[0], 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    x = jnp.concatenate([x[:, tap : tap + depth] for tap in range(taps)], axis=-1)
    kernel = jnp.moveaxis(kernel, 0, 2)
    return x, kernel.reshape(1, *kernel.shape[:2], -1, kernel.shape[-1]), ((0, 0), *pads[1:])


def _without_dead_taps(
    kernel: jax.Array, space: Sequence[int], pads: Pads
) -> tuple[jax.Array, Pads]:
    """Cuts off taps that read nothing but padding (26 of 27 for a 3^3 window on one voxel)."""
    keep, kept_pads = [], []
    for size, taps, (low, high) in zip(space, kernel.shape, pads, strict=False):
        first = max(0, min(low - (size + low + high - taps), taps - 1))
        last = min(taps - 1, max(first, low + size - 1))
        keep.append(slice(first, last + 1))
        kept_pads.append((low - first, high - (taps - 1 - last)))
    return kernel[tuple(keep)], tuple(kept_pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_platform(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    """The lowering of the platform that the program is compiled for."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _conv_cpu(x, kernel, strides, pads),
        tpu=lambda x, kernel: _conv_tpu(x, kernel, strides, pads),
        default=lambda x, kernel: _conv_accelerator(x, kernel, strides, pads),
    )


def _conv_platform_fwd(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads):
    return _conv_platform(x, kernel, strides, pads), (x, kernel)


def _conv_platform_bwd(strides: Strides, pads: Pads, residuals, dy: jax.Array):
    # Differentiating through platform_dependent instead would keep the residuals of both branches.
    def gradients(lower, x, kernel, dy):
        return jax.vjp(lambda x, kernel: lower(x, kernel, strides, pads), x, kernel)[1](dy)

    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(gradients, _conv_cpu),
        tpu=functools.partial(gradients, _conv_tpu),
        default=functools.partial(gradients, _conv_accelerator),
    )


_conv_platform.defvjp(_conv_platform_fwd, _conv_platform_bwd)


def _explicit_pads(
    space: Sequence[int], window: Sequence[int], strides: Strides, padding: Padding
) -> Pads:
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(space, window, strides, padding))
    each = (padding,) * len(window) if isinstance(padding, int) else tuple(padding)
    if len(each) != len(window):
        raise ValueError(f"padding {padding!r} for {len(window)} spatial axes")
    return tuple((pad, pad) if isinstance(pad, int) else (pad[0], pad[1]) for pad in each)
