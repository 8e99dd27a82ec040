"""What a TPU computes of pairs of voxels, on the CPU, beside the same of voxels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from osteojax.models.normalisation import Norm
from osteojax.ops.conv3d import conv
from osteojax.ops.normalised import moments, normalised, relu_of_sum
from osteojax.ops.pairs import fill_registers, paired, unpaired
from tests.platform_forms import traced_as_on

CHANNELS = 64


def _drawn(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _both(function, *inputs):
    """(value, gradients of its sum of squares), of voxels and as a TPU computes it of pairs."""

    def loss(*inputs):
        y = function(*inputs)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(y)), y

    found = []
    for platform in ("cuda", "tpu"):
        with traced_as_on(platform):
            one = jax.jit(
                jax.value_and_grad(
                    lambda *a: loss(*a), argnums=tuple(range(len(inputs))), has_aux=True
                )
            )
            (_, y), gradients = one(*inputs)
            found.append((y, gradients))
    return found


def _close(a, b):
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * scale)


def test_pairs_of_voxels():
    x = _drawn((2, 3, 4, 16, CHANNELS))
    assert fill_registers(x)
    assert not fill_registers(x[..., :-1, :])
    assert not fill_registers(x[..., :32])
    pairs = paired(x)
    np.testing.assert_array_equal(pairs[:, :, :, 5, CHANNELS + 3], x[:, :, :, 11, 3])
    np.testing.assert_array_equal(unpaired(pairs), x)


@pytest.mark.parametrize(
    ("space", "channels", "window", "strides", "padding"),
    [
        ((2, 3, 16), CHANNELS, 3, 1, 1),
        ((2, 3, 32), 1, 7, 2, 3),  # the stem, whose blocks become channels first
        ((2, 3, 32), 2, 5, 2, 2),
        ((3, 4, 20), CHANNELS, 1, 1, 0),
        ((3, 4, 19), 3, 4, 1, ((0, 1), (2, 1), (1, 1))),  # an odd axis, an even window
        ((3, 4, 20), 3, 4, 1, ((0, 1), (2, 1), (1, 2))),
        ((3, 4, 20), 3, 5, 1, ((0, 4), (2, 2), (0, 2))),
        ((3, 4, 18), CHANNELS, 2, 1, ((0, 0), (0, 0), (3, 2))),
    ],
)
def test_a_convolution(space, channels, window, strides, padding):
    x, kernel = _drawn((2, *space, channels)), _drawn((window,) * 3 + (channels, CHANNELS), 1)
    voxels, pairs = _both(
        lambda x, kernel: conv(x, kernel, strides=strides, padding=padding), x, kernel
    )
    _close(pairs, voxels)
    plain = jax.lax.conv_general_dilated(
        x, kernel, (strides,) * 3, padding if isinstance(padding, tuple) else [(padding,) * 2] * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )  # fmt: skip
    _close(pairs[0], plain)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_norm_with_its_statistics(samples):
    x = _drawn((2, 3, 4, 16, CHANNELS))
    mean, mul = (_drawn((samples, 1, 1, 1, CHANNELS), seed) for seed in (1, 2))
    bias = _drawn((1, 1, 1, 1, CHANNELS), 3)

    def norm(x, mean, mul, bias):
        first, second = moments(x)
        y = normalised(x, mean + first, mul * second, bias, jnp.float32, relu=True)
        return relu_of_sum(x, y), first, second

    voxels, pairs = _both(norm, x, mean, mul, bias)
    _close(pairs, voxels)
    wide = np.asarray(x, float)
    np.testing.assert_allclose(pairs[0][1], wide.mean((0, 1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(pairs[0][2], np.square(wide).mean((0, 1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("then", ["relu", "max_pool"])
def test_eight_devices_equal_one(then):
    x, target = _drawn((8, 2, 3, 16, CHANNELS)), _drawn((8, 1), 1)

    def loss(params, x, target, axis_name):
        norm = Norm("batch", axis_name)
        variables = {"params": params, "batch_stats": start["batch_stats"]}
        y, _ = norm.apply(variables, x, train=True, then=then, mutable=["batch_stats"])
        value = (y.mean((1, 2, 3)) * target).mean()
        return jax.lax.pmean(value, axis_name) if axis_name else value

    start = Norm("batch").init(jax.random.key(0), x, train=False)
    params = jax.tree.map(lambda p: p + 0.5 * _drawn(p.shape, 2), start["params"])
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    with traced_as_on("tpu"):
        one = jax.jit(jax.value_and_grad(lambda *a: loss(*a, None)))(params, x, target)
        many = jax.jit(
            jax.shard_map(
                jax.value_and_grad(lambda *a: loss(*a, "data")), mesh=mesh,
                in_specs=(P(), P("data"), P("data")), out_specs=P(),
            )
        )(params, x, target)  # fmt: skip
    _close(many, one)
