"""3D convolution on CPU: two-dimensional convolutions over depth planes, and matrix products.

XLA's CPU backend has good matrix products and good two-dimensional convolutions, and shapes of
three-dimensional convolution that run at a hundredth of either. So a 3D convolution is written here
as one of

  planes    a sum over depth taps of 2D convolutions; where the stride is 1 and depth allows, the
            depth axis goes through Winograd's minimal filtering F(m, r) (m outputs of an r-tap
            filter from m + r - 1 products instead of m * r), which halves the arithmetic;
  columns   the patches as a matrix (im2col), where few positions would leave 2D convolutions idle.

The gradients are written out (`jax.custom_vjp`), because autodiff of a strided convolution is a
dilated one, the slowest shape of all: the input gradient of stride s is one stride-1 convolution
for each of the s^3 phases of the input, and the weight gradient is a matrix product.

All arithmetic is float32 whatever the input's dtype; results are rounded to it once.

References: Lavin & Gray 2016 (Winograd's F(m, r) for convolutions); Cook-Toom construction with the
points 0, +-3/4, +-3/2, infinity, whose rounding error (1.0e-6 r.m.s. at 64 channels, direct sum
4e-7) is half that of the integer points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], ...]
Strides = tuple[int, ...]

COLUMNS_MAX_POSITIONS = 8
"""Output positions per sample up to which `columns` beats `planes` (measured: 2^3, not 3^3)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3d_cpu(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    """Correlation of x: [N, D, H, W, C] with kernel: [kd, kh, kw, C, O] -> [N, D', H', W', O].

    `pads` are (low, high) zeros before and after each spatial axis. Float32 inside; the result has
    the dtype of `x`.
    """
    return _forward(x, kernel, strides, pads).astype(x.dtype)


def _conv3d_fwd(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads):
    return conv3d_cpu(x, kernel, strides, pads), (x, kernel)


def _conv3d_bwd(strides: Strides, pads: Pads, residuals, dy: jax.Array):
    x, kernel = residuals
    dy = dy.astype(jnp.float32)
    dx = _input_gradient(dy, kernel.astype(jnp.float32), x.shape[1:4], strides, pads)
    dkernel = _kernel_gradient(x.astype(jnp.float32), dy, kernel.shape, strides, pads)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


conv3d_cpu.defvjp(_conv3d_fwd, _conv3d_bwd)


def _forward(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    window, space = kernel.shape[:3], _output_space(x.shape[1:4], kernel.shape[:3], strides, pads)
    if min(space) == 0:
        return jnp.zeros((x.shape[0], *space, kernel.shape[4]), jnp.float32)
    x, kernel, pads = _drop_dead_taps(x, kernel, strides, pads, space)
    window = kernel.shape[:3]
    if max(window) == 1 or math.prod(space) <= COLUMNS_MAX_POSITIONS:
        columns = _columns(_pad(x, pads), window, strides, space)
        return jnp.dot(columns, kernel.reshape(-1, kernel.shape[4])).reshape(
            x.shape[0], *space, kernel.shape[4]
        )
    if strides[0] == 1:
        return _winograd(x, kernel, strides, pads, space, _tile(space[0], window[0]))
    return _planes(x, kernel, strides, pads, space)


def _planes(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, space: Sequence[int]
) -> jax.Array:
    """The sum over depth taps of 2D convolutions of depth planes."""
    x = _pad(x, (pads[0], (0, 0), (0, 0)))
    y = None
    for tap in range(kernel.shape[0]):
        term = _conv2d(_every(x, 1, tap, strides[0], space[0]), kernel[tap], strides, pads)
        y = term if y is None else y + term
    return y


def _winograd(
    x: jax.Array,
    kernel: jax.Array,
    strides: Strides,
    pads: Pads,
    space: Sequence[int],
    tile: int,
) -> jax.Array:
    """As `_planes`, with depth through F(tile, taps): tile + taps - 1 2D convolutions per tile."""
    taps, tiles = kernel.shape[0], -(-space[0] // tile)
    to_output, to_kernel, to_input = _cook_toom(tile, taps)
    planes = _input_planes(x, pads[0], tile, taps, tiles)
    products = [
        _conv2d(
            _combine(to_input[i], planes),
            _combine(to_kernel[i], list(kernel)),
            strides,
            pads,
        )
        for i in range(tile + taps - 1)
    ]
    outputs = [_combine(row, products) for row in to_output]
    y = jnp.stack(outputs, axis=2)  # [N, tiles, tile, H', W', O]
    return y.reshape(y.shape[0], tiles * tile, *y.shape[3:])[:, : space[0]]


def _input_gradient(
    dy: jax.Array, kernel: jax.Array, space: Sequence[int], strides: Strides, pads: Pads
) -> jax.Array:
    """f32[N, *space, C]. One stride-1 convolution of dy for each phase of the input.

    Per axis, dx[i] = sum_k dy[(i + low - k) / stride] w[k] over the k that divide. For i = stride *
    m + phase these are k = first + stride * j, which is a correlation of dy with the reversed taps.
    """
    mirrored = kernel.swapaxes(3, 4)
    lengths = [-(-size // stride) for size, stride in zip(space, strides, strict=True)]
    phases = []
    for phase in np.ndindex(*strides):
        taps, phase_pads = [], []
        for axis in range(3):
            stride, low, window = strides[axis], pads[axis][0], kernel.shape[axis]
            first = (phase[axis] + low) % stride
            count = max(0, -(-(window - first) // stride))
            taps.append(slice(first, None, stride))
            shift = (phase[axis] + low - first) // stride
            before = count - 1 - shift
            after = lengths[axis] - dy.shape[1 + axis] - before + count - 1
            phase_pads.append((before, after))
        part = mirrored[tuple(taps)][::-1, ::-1, ::-1]
        if 0 in part.shape:
            phases.append(jnp.zeros((dy.shape[0], *lengths, kernel.shape[3]), jnp.float32))
        else:
            phases.append(_forward(dy, part, (1, 1, 1), tuple(phase_pads)))
    if len(phases) == 1:
        return phases[0]
    return _interleave(phases, strides)[:, : space[0], : space[1], : space[2]]


def _interleave(phases: list[jax.Array], strides: Strides) -> jax.Array:
    """Phases in C order, each [N, d, h, w, C] -> [N, d * sd, h * sh, w * sw, C]."""
    batch, depth, height, width, channels = phases[0].shape
    sd, sh, sw = strides
    x = jnp.stack(phases, axis=1).reshape(batch, sd, sh, sw, depth, height, width, channels)
    x = x.transpose(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(batch, depth * sd, height * sh, width * sw, channels)


def _kernel_gradient(
    x: jax.Array, dy: jax.Array, shape: Sequence[int], strides: Strides, pads: Pads
) -> jax.Array:
    """f32[kd, kh, kw, C, O] = sum over positions of x[stride * o + k - low] dy[o]."""
    *window, in_features, features = shape
    space = dy.shape[1:4]
    if min(space) == 0:
        return jnp.zeros(shape, jnp.float32)
    if max(strides) > 1 or max(window) == 1 or math.prod(space) <= COLUMNS_MAX_POSITIONS:
        columns = _columns(_pad(x, pads), window, strides, space)
        return jnp.dot(columns.T, dy.reshape(-1, features)).reshape(shape)
    tile = _tile(space[0], window[0])
    taps, tiles = window[0], -(-space[0] // tile)
    dy = jnp.pad(dy, ((0, 0), (0, tiles * tile - space[0]), (0, 0), (0, 0), (0, 0)))
    outputs = [dy[:, i::tile] for i in range(tile)]
    to_output, to_kernel, to_input = _cook_toom(tile, taps)
    planes = _input_planes(x, pads[0], tile, taps, tiles)
    products = [
        _kernel_gradient_2d(
            _combine(to_input[i], planes), _combine(to_output[:, i], outputs), window[1:], pads[1:]
        )
        for i in range(tile + taps - 1)
    ]
    return jnp.stack([_combine(to_kernel[:, tap], products) for tap in range(taps)])


def _kernel_gradient_2d(
    x: jax.Array, dy: jax.Array, window: Sequence[int], pads: Pads
) -> jax.Array:
    """f32[kh, kw, C, O] of a stride-1 2D convolution of planes, as one matrix product.

    sum_hw x[h + i, w + j] dy[h, w] = sum_hw x[h, w + j] dy[h - i, w]: the kw shifts go to the
    columns of x and the kh shifts to those of dy, so that kh + kw copies are made, not kh * kw.
    """
    kernel_height, kernel_width = window
    in_features, features = x.shape[-1], dy.shape[-1]
    width, height = dy.shape[3], x.shape[2] + sum(pads[0])
    x = _pad(x, ((0, 0), *pads))
    dy = _pad(dy, ((0, 0), (kernel_height - 1, kernel_height - 1), (0, 0)))
    x_columns = jnp.concatenate([_every(x, 3, j, 1, width) for j in range(kernel_width)], -1)
    dy_columns = jnp.concatenate(
        [_every(dy, 2, kernel_height - 1 - i, 1, height) for i in range(kernel_height)], -1
    )
    product = jnp.dot(
        x_columns.reshape(-1, kernel_width * in_features).T,
        dy_columns.reshape(-1, kernel_height * features),
    )
    product = product.reshape(kernel_width, in_features, kernel_height, features)
    return product.transpose(2, 0, 1, 3)


def _conv2d(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    """[N, P, H, W, C] planes and [kh, kw, C, O] -> [N, P, H', W', O]."""
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        strides[1:],
        pads[1:],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _columns(
    x: jax.Array, window: Sequence[int], strides: Strides, space: Sequence[int]
) -> jax.Array:
    """Padded x -> f32[N * positions, taps * C], taps in C order."""
    taps = []
    for offset in np.ndindex(*window):
        tap = x
        for axis in range(3):
            tap = _every(tap, 1 + axis, offset[axis], strides[axis], space[axis])
        taps.append(tap)
    return jnp.concatenate(taps, -1).reshape(-1, len(taps) * x.shape[-1])


def _input_planes(
    x: jax.Array, depth_pads: tuple[int, int], tile: int, taps: int, tiles: int
) -> list[jax.Array]:
    """The tile + taps - 1 depth planes that each tile of outputs sees, each [N, tiles, H, W, C]."""
    low = depth_pads[0]
    high = tiles * tile + taps - 1 - low - x.shape[1]
    x = _pad(x, ((low, high), (0, 0), (0, 0)))
    return [_every(x, 1, i, tile, tiles) for i in range(tile + taps - 1)]


def _drop_dead_taps(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, space: Sequence[int]
) -> tuple[jax.Array, jax.Array, Pads]:
    """Drops the kernel taps that meet nothing but padding at every output position."""
    new_pads, keep = [], []
    for axis in range(3):
        low, size, window = pads[axis][0], x.shape[1 + axis], kernel.shape[axis]
        last = strides[axis] * (space[axis] - 1)
        alive = [k for k in range(window) if k + last >= low and k < low + size] or [0]
        keep.append(slice(alive[0], alive[-1] + 1))
        dropped = alive[-1] + 1 - alive[0]
        new_low = low - alive[0]
        new_pads.append((new_low, last + dropped - new_low - size))
    return x, kernel[tuple(keep)], tuple(new_pads)


def _every(x: jax.Array, axis: int, start: int, stride: int, count: int) -> jax.Array:
    return lax.slice_in_dim(x, start, start + stride * (count - 1) + 1, stride, axis)


def _pad(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Zero padding of the spatial axes; negative amounts crop."""
    if not any(any(pair) for pair in pads):
        return x
    config = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _output_space(
    space: Sequence[int], window: Sequence[int], strides: Strides, pads: Pads
) -> tuple[int, ...]:
    return tuple(
        max(0, (size + low + high - taps) // stride + 1)
        for size, taps, stride, (low, high) in zip(space, window, strides, pads, strict=True)
    )


def _tile(depth: int, taps: int) -> int:
    """The m of F(m, taps) that needs the fewest products for `depth` outputs; 1 for none."""
    if taps != 3:
        return 1
    return min((1, 2, 3, 4), key=lambda m: (-(-depth // m) * (m + taps - 1), m))


@functools.cache
def _cook_toom(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices (A, G, B) of F(outputs, taps): y = A @ ((G @ kernel) * (B @ x)).

    Cook-Toom: V evaluates a polynomial at n - 1 points and infinity, n = outputs + taps - 1; then
    A = V[:, :outputs].T, G = V[:, :taps], B = inv(V).T. Powers of two move from B to G. F(1, taps) is the direct sum.
    """
    if outputs == 1:
        return np.ones((1, taps)), np.eye(taps), np.eye(taps)
    size = outputs + taps - 1
    points = (0.0, 1.0, -1.0) if size <= 4 else (0.0, 0.75, -0.75, 1.5, -1.5)
    finite = np.vander(points[: size - 1], size, increasing=True)

    def evaluate(terms: int) -> np.ndarray:
        return np.vstack([finite[:, :terms], np.eye(terms)[-1]])

    inverse = np.linalg.inv(evaluate(size)).T
    scale = 2.0 ** np.round(np.log2(np.abs(inverse).max(axis=1, keepdims=True)))
    return evaluate(outputs).T, evaluate(taps) * scale, inverse / scale


def _combine(weights: Sequence[float], terms: Sequence[jax.Array]) -> jax.Array:
    """sum_i weights[i] * terms[i], zeros skipped."""
    total = None
    for weight, term in zip(weights, terms, strict=True):
        if weight == 0:
            continue
        product = term if weight == 1 else -term if weight == -1 else float(weight) * term
        total = product if total is None else total + product
    if total is None:
        raise ValueError("a row of zeros")
    return total
