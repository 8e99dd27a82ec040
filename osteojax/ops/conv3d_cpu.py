"""3D convolution of stride 1 on CPU: two-dimensional convolutions of depth planes.

XLA's CPU backend is fast at matrix products and two-dimensional convolutions, and runs some shapes
of three-dimensional convolution at a hundredth of their speed. So a 3D convolution is computed here
in one of two ways.

  planes    The depth axis goes through Winograd's minimal filtering F(m, r): m outputs of an r-tap
            filter from m + r - 1 products instead of m * r. Each product is a 2D convolution of
            combined depth planes. For 3 taps and m = 4 this halves the arithmetic.
  columns   im2col: patches as the rows of a matrix. Used for windows of one voxel and for outputs
            of so few positions that 2D convolutions are slow.

Every rearrangement (padding and combining planes, gathering patches) is a matrix product with a
small constant matrix, and the products of a layer are one loop: XLA compiles a handful of kernels
for a layer, not hundreds.

The gradients are written out (`jax.custom_vjp`): the input gradient is this same convolution with
the kernel mirrored, and the kernel gradient of `planes` has its own algorithm. Arithmetic is
float32 whatever the dtype of the input, and results are rounded to that dtype once.

References: Lavin & Gray 2016 (minimal filtering for convolutions); Toom-Cook construction with the
points 0, +-3/4, +-3/2, infinity, whose rounding error (1.0e-6 r.m.s. with 64 channels, where a
direct sum has 4e-7) is two thirds of that of the points 0, +-1, +-2.
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

COLUMNS_MAX_POSITIONS = 27
"""Output positions of a sample up to which `columns` beats `planes` (measured: 3^3, not 4^3)."""
POSITIONS_AT_ONCE = 2048
"""Output positions whose columns the kernel gradient of planes builds at a time (measured)."""
MAX_PRODUCTS = 6
"""Products of a Winograd tile; with more, rounding errors grow faster than arithmetic falls."""
POINTS = {
    3: (0.0, 1.0),
    4: (0.0, 1.0, -1.0),
    5: (0.0, 0.75, -0.75, 1.5),
    6: (0.0, 0.75, -0.75, 1.5, -1.5),
}
"""Number of products of a tile -> its finite evaluation points; the last point is infinity."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3d_cpu(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Correlation of x: [N, D, H, W, C] with kernel: [kd, kh, kw, C, O] -> [N, D', H', W', O].

    `pads` are (low, high) zeros at the ends of each spatial axis; negative amounts crop. The result
    has the dtype of `x`.
    """
    return _convolve(x.astype(jnp.float32), kernel.astype(jnp.float32), pads).astype(x.dtype)


def _conv3d_fwd(x: jax.Array, kernel: jax.Array, pads: Pads):
    return conv3d_cpu(x, kernel, pads), (x, kernel)


def _conv3d_bwd(pads: Pads, residuals, dy: jax.Array):
    x, kernel = residuals
    dy = dy.astype(jnp.float32)
    kernel32 = kernel.astype(jnp.float32)
    dx = _input_gradient(dy, kernel32, x.shape, pads)
    dkernel = _kernel_gradient(x.astype(jnp.float32), dy, kernel32, pads)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


conv3d_cpu.defvjp(_conv3d_fwd, _conv3d_bwd)


def _convolve(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    window, features = kernel.shape[:3], kernel.shape[4]
    space = tuple(
        size + low + high - taps + 1
        for size, taps, (low, high) in zip(x.shape[1:4], window, pads, strict=True)
    )
    if _as_columns(window, space):
        columns = _columns(x, window, pads, space)
        y = jnp.dot(columns, kernel.reshape(-1, features))
        return y.reshape(x.shape[0], *space, features)
    if window[0] == 1:
        return _conv2d(_pad(x, (pads[0], (0, 0), (0, 0))), kernel[0], pads[1:])
    to_planes, to_taps, to_depth = _depth_matrices(x.shape[1], space[0], window[0], pads[0][0])
    planes = jnp.einsum("atd,ndhwc->anthwc", to_planes, x)
    taps = jnp.einsum("ak,khwco->ahwco", to_taps, kernel)
    products = lax.map(lambda pair: _conv2d(pair[0], pair[1], pads[1:]), (planes, taps))
    return jnp.einsum("dat,anthwo->ndhwo", to_depth, products)


def _input_gradient(
    dy: jax.Array, kernel: jax.Array, shape: Sequence[int], pads: Pads
) -> jax.Array:
    """f32[*shape]: the transpose of `_convolve`."""
    window, space = kernel.shape[:3], dy.shape[1:4]
    if max(window) > 1 and _as_columns(window, space):
        # For few positions, writing out the mirrored kernel would cost more than all of this.
        features = kernel.shape[4]
        dcolumns = jnp.dot(dy.reshape(-1, features), kernel.reshape(-1, features).T)
        dcolumns = dcolumns.reshape(shape[0], math.prod(space), math.prod(window), shape[4])
        gather = _gather(shape[1:4], window, pads, space)
        return jnp.einsum("ptv,nptc->nvc", gather, dcolumns).reshape(shape)
    mirrored_pads = tuple(
        (taps - 1 - low, taps - 1 - high) for taps, (low, high) in zip(window, pads, strict=True)
    )
    return _convolve(dy, kernel[::-1, ::-1, ::-1].swapaxes(3, 4), mirrored_pads)


def _kernel_gradient(x: jax.Array, dy: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """f32[kd, kh, kw, C, O] = sum over positions p of x[p + k - low] dy[p]."""
    window, space, features = kernel.shape[:3], dy.shape[1:4], kernel.shape[4]
    if _as_columns(window, space):
        columns = _columns(x, window, pads, space)
        return jnp.dot(columns.T, dy.reshape(-1, features)).reshape(kernel.shape)
    if window[0] == 1:
        planes = _pad(x, (pads[0], (0, 0), (0, 0)))
        return _kernel_gradient_of_planes(planes, dy, window[1:], pads[1:])[None]
    to_planes, to_taps, to_depth = _depth_matrices(x.shape[1], space[0], window[0], pads[0][0])
    planes = jnp.einsum("atd,ndhwc->anthwc", to_planes, x)
    dproducts = jnp.einsum("dat,ndhwo->anthwo", to_depth, dy)
    dtaps = lax.map(
        lambda pair: _kernel_gradient_2d(pair[0], pair[1], window[1:], pads[1:]),
        (planes, dproducts),
    )
    return jnp.einsum("ak,ahwco->khwco", to_taps, dtaps)


def _conv2d(planes: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """[N, T, H, W, C] planes and [kh, kw, C, O] -> [N, T, H', W', O]."""
    y = lax.conv_general_dilated(
        planes.reshape(-1, *planes.shape[2:]),
        kernel,
        (1, 1),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*planes.shape[:2], *y.shape[1:])


def _kernel_gradient_2d(
    planes: jax.Array, dy: jax.Array, window: Sequence[int], pads: Pads
) -> jax.Array:
    """f32[kh, kw, C, O] of `_conv2d`, as one matrix product.

    sum_hw x[h + i, w + j] dy[h, w] = sum_hw x[h, w + j] dy[h - i, w]: the kw shifts go to the
    columns of x and the kh shifts to those of dy, so that kh + kw copies are made, not kh * kw.
    """
    rows, columns = window
    width, height = dy.shape[3], planes.shape[2] + sum(pads[0])
    planes = _pad(planes, ((0, 0), *pads))
    dy = _pad(dy, ((0, 0), (rows - 1, rows - 1), (0, 0)))
    x_columns = jnp.concatenate([planes[:, :, :, j : j + width] for j in range(columns)], -1)
    dy_columns = jnp.concatenate([dy[:, :, i : i + height] for i in reversed(range(rows))], -1)
    product = jnp.dot(
        x_columns.reshape(-1, x_columns.shape[-1]).T, dy_columns.reshape(-1, dy_columns.shape[-1])
    )
    return product.reshape(columns, planes.shape[-1], rows, dy.shape[-1]).transpose(2, 0, 1, 3)


def _kernel_gradient_of_planes(
    planes: jax.Array, dy: jax.Array, window: Sequence[int], pads: Pads
) -> jax.Array:
    """f32[kh, kw, C, O]: `_kernel_gradient_2d`, a few planes at a time.

    The stem's columns of all planes are hundreds of megabytes, those of one plane stay in cache,
    which is 1.7 times as fast. The gradient of XLA's convolution would be slower still, and 20
    times slower inside a loop (training dispatches several steps as one loop).
    """
    count = planes.shape[0] * planes.shape[1]
    if not isinstance(count, int):  # an exported program's batch has no number to divide
        return _kernel_gradient_2d(planes, dy, window, pads)
    wanted = max(1, POSITIONS_AT_ONCE // (dy.shape[2] * dy.shape[3]))
    at_once = max(size for size in range(1, min(wanted, count) + 1) if count % size == 0)
    parts = [a.reshape(-1, at_once, 1, *a.shape[2:]) for a in (planes, dy)]

    def add(total: jax.Array, part: list[jax.Array]) -> tuple[jax.Array, None]:
        return total + _kernel_gradient_2d(part[0], part[1], window, pads), None

    # The scan starts from the first part, because inside shard_map its carry must vary over the
    # same axes as the terms, and zeros would not.
    first = _kernel_gradient_2d(parts[0][0], parts[1][0], window, pads)
    return lax.scan(add, first, [part[1:] for part in parts])[0]


def _as_columns(window: Sequence[int], space: Sequence[int]) -> bool:
    return max(window) == 1 or math.prod(space) <= COLUMNS_MAX_POSITIONS


def _columns(x: jax.Array, window: Sequence[int], pads: Pads, space: Sequence[int]) -> jax.Array:
    """f32[N * positions, taps * C]: the patch under the window at every output position."""
    if max(window) == 1:
        return _pad(x, pads).reshape(-1, x.shape[-1])
    voxels = x.reshape(x.shape[0], -1, x.shape[-1])
    columns = jnp.einsum("ptv,nvc->nptc", _gather(x.shape[1:4], window, pads, space), voxels)
    return columns.reshape(-1, math.prod(window) * x.shape[-1])


def _gather(
    source: Sequence[int], window: Sequence[int], pads: Pads, space: Sequence[int]
) -> np.ndarray:
    """f32[positions, taps, voxels]: 1 where an output position's tap reads a voxel of the input."""
    gather = np.ones((1, 1, 1), np.float32)
    for axis in range(3):
        reads = np.arange(space[axis])[:, None] + np.arange(window[axis]) - pads[axis][0]
        gather = np.kron(gather, (reads[..., None] == np.arange(source[axis])).astype(np.float32))
    return gather


def _pad(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Zero padding of the spatial axes; negative amounts crop."""
    config = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


@functools.cache
def _depth_matrices(
    depth: int, outputs: int, taps: int, low: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution along depth as y = to_depth @ ((to_taps @ kernel) * (to_planes @ x)).

    Returns:
      to_planes: f32[products, tiles, depth], zero padding of `low` included.
      to_taps: f32[products, taps].
      to_depth: f32[outputs, products, tiles].
    """
    candidates = range(1, MAX_PRODUCTS - taps + 2) if taps > 1 else [1]
    tile = min(candidates or [1], key=lambda m: (-(-outputs // m) * (m + taps - 1), m))
    tiles = -(-outputs // tile)
    to_outputs, to_taps, to_inputs = _toom_cook(tile, taps)
    to_planes = np.zeros((len(to_inputs), tiles, depth))
    to_depth = np.zeros((tiles * tile, len(to_inputs), tiles))
    for t in range(tiles):
        to_depth[t * tile : (t + 1) * tile, :, t] = to_outputs
        for column in range(to_inputs.shape[1]):
            source = t * tile + column - low
            if 0 <= source < depth:
                to_planes[:, t, source] = to_inputs[:, column]
    return (
        to_planes.astype(np.float32),
        to_taps.astype(np.float32),
        to_depth[:outputs].astype(np.float32),
    )


def _toom_cook(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices (A, G, B) of F(outputs, taps): y = A @ ((G @ kernel) * (B @ x)).

    V evaluates a polynomial at the points; A = V[:, :outputs].T, G = V[:, :taps], B = inv(V).T,
    with powers of two moved from B to G. F(1, taps) is the direct sum.
    """
    if outputs == 1 or taps == 1:
        size = max(outputs, taps)
        return np.ones((outputs, size)), np.eye(size)[:, :taps], np.eye(size)
    size = outputs + taps - 1
    finite = np.vander(POINTS[size], size, increasing=True)

    def evaluate(terms: int) -> np.ndarray:
        return np.vstack([finite[:, :terms], np.eye(terms)[-1]])

    inverse = np.linalg.inv(evaluate(size)).T
    scale = 2.0 ** np.round(np.log2(np.abs(inverse).max(axis=1, keepdims=True)))
    return evaluate(outputs).T, evaluate(taps) * scale, inverse / scale
