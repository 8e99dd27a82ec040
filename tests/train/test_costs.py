"""FLOPs and bytes of a step, against counting with ones, known values and XLA's own count."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from launch.benchmarks import conv3d as conv3d_benchmark
from osteojax.models.resnet import ResNet, resnet34
from osteojax.train import costs

CONVOLUTIONS = [
    # input space, kernel window, strides, padding, in, out, groups
    ((5, 4, 3), (3, 3, 3), (1, 1, 1), ((1, 1),) * 3, 2, 3, 1),
    ((6, 6, 6), (3, 3, 3), (2, 2, 2), ((1, 1),) * 3, 2, 3, 1),
    ((7, 6, 5), (7, 7, 7), (2, 2, 2), ((3, 3),) * 3, 1, 2, 1),
    ((4, 4, 4), (1, 1, 1), (2, 2, 2), ((0, 0),) * 3, 3, 2, 1),
    ((6, 5), (3, 4), (1, 2), ((0, 2), (2, 1)), 4, 6, 2),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions_are_counted_as_ones_count_them(case) -> None:
    """A convolution of ones sums to its multiply-adds: padding adds nothing. So do its gradients,
    for a cotangent of ones."""
    space, window, strides, padding, features, out_features, groups = case
    spec = ("NDHWC", "DHWIO", "NDHWC") if len(space) == 3 else ("NHWC", "HWIO", "NHWC")
    x = np.ones((2, *space, features), np.float32)
    kernel = np.ones((*window, features // groups, out_features), np.float32)

    def forward(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=spec, feature_group_count=groups
        )

    def passes(x, kernel):
        y, pull = jax.vjp(forward, x, kernel)
        return (y, *pull(jnp.ones_like(y)))

    arrays = map(np.asarray, jax.jit(passes)(x, kernel))
    sums = [2 * float(array.sum(dtype=np.float64)) for array in arrays]
    found = {p.part: p for p in costs.products(passes, x, kernel)}
    assert [found[part].flops for part in costs.PASSES] == sums
    assert len(set(sums)) == 1
    outputs = math.prod(jax.eval_shape(forward, x, kernel).shape)
    dense = 2 * outputs * math.prod(window) * features // groups
    assert found["forward"].padded_flops == dense


def test_matrix_products_loops_and_branches() -> None:
    """jnp.dot of ones, three times in a scan; of two branches the dearer; a while is refused."""
    x, kernel = jnp.ones((3, 4)), jnp.ones((4, 4))

    def program(x, kernel):
        x, _ = lax.scan(lambda x, _: (x @ kernel, None), x, None, length=3)
        return lax.cond(x.sum() > 0, lambda x: x, lambda x: x @ kernel @ kernel, x)

    found = costs.products(program, x, kernel)
    assert sum(p.flops for p in found) == 2 * (3 + 2) * 3 * 4 * 4
    assert sum(p.bytes for p in found) == 4 * (3 + 2) * (12 + 16 + 12)

    def endless(x, kernel):
        return lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ kernel, x)

    with pytest.raises(ValueError, match="while loop"):
        costs.products(endless, x, kernel)


def network_gradient(model: ResNet, shape: tuple[int, ...]) -> tuple[Any, tuple]:
    """The gradient of a network in training mode, and shapes of its arguments."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)

    def loss(params, batch_stats, x):
        variables = {"params": params, "batch_stats": batch_stats}
        features, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return features["pooled"].sum()

    return jax.grad(loss), (variables["params"], variables["batch_stats"], x)


def network_products(size: int, batch: int, width: int = 64, **fields: Any) -> list[costs.Product]:
    """Of forward and backward of ResNet34-3D alone, from one channel."""
    model = resnet34(width=width, lowering="xla", **fields)
    gradient, arguments = network_gradient(model, (batch, size, size, size, 1))
    return costs.products(gradient, *arguments)


@pytest.mark.parametrize("shortcut", ["strided", "average"])
@pytest.mark.parametrize(("size", "gflops", "padded"), [(64, 30, 39), (96, 111, 132)])
def test_resnet34_is_what_is_known_of_it(
    size: int, gflops: int, padded: int, shortcut: str
) -> None:
    """Known per view: 30 (39 with padding) and 111 (132); the benchmark's formula to the FLOP. The
    projection of a mean has as many outputs as a strided one."""
    found = network_products(size, 1, shortcut=shortcut)
    assert round(sum(p.flops for p in found) / 1e9) == gflops
    assert round(sum(p.padded_flops for p in found) / 1e9) == padded
    assert sum(p.flops for p in found) == conv3d_benchmark.model_flops(size, 1, 64)
    # 36 convolutions; the first has no gradient for its input.
    parts = [p.part for p in found]
    assert [parts.count(part) for part in costs.PASSES] == [36, 35, 36]
    assert {p.part for p in found if p.layer == "stem"} == {"forward", "kernel_gradient"}


def test_xlas_own_count_is_a_little_above() -> None:
    """`cost_analysis` counts element by element work too: 3-5% in a narrow network."""
    model = resnet34(width=16, lowering="xla", stage_sizes=(1, 1))
    gradient, arguments = network_gradient(model, (2, 16, 16, 16, 1))
    counted = sum(p.flops for p in costs.products(gradient, *arguments))
    xla = jax.jit(gradient).lower(*arguments).cost_analysis()
    assert isinstance(xla, dict)
    assert 1.0 < xla["flops"] / counted < 1.1


def test_bytes_are_those_of_the_arrays_in_the_compute_dtype() -> None:
    single = network_products(16, 2, width=4, stage_sizes=(1,))
    half = network_products(16, 2, width=4, stage_sizes=(1,), dtype=jnp.bfloat16)
    assert [p.flops for p in half] == [p.flops for p in single]
    assert [2 * p.bytes for p in half] == [p.bytes for p in single]
    conv1 = next(p for p in half if p.layer == "stage1_block1/conv1" and p.part == "forward")
    assert conv1.dtype == "bfloat16"
    assert conv1.bytes == 2 * (2 * 2 * 4**3 * 4 + 27 * 4 * 4)
