"""3D convolution: ResNet34 forward + backward, layer by layer and as a whole, against peers.

Example, one line per engine and size, then one per layer:

    osteojax benchmark conv3d --sizes 64x8,96x2,32x16 --peers pytorch --json conv3d.json

Model FLOPs are 2 per multiply-add of the convolutions, without taps on padding; forward, input
gradient and weight gradient each count once, and the stem's input gradient is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks import measure
from osteojax.errors import UserError
from osteojax.models.resnet import resnet34
from osteojax.ops.conv3d import conv

STAGES = (3, 4, 6, 3)
PEERS = ("pytorch",)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A distinct convolution of ResNet34 and how often it occurs."""

    name: str
    size: int  # edge of the input in voxels
    in_features: int
    features: int
    window: int
    stride: int
    padding: int
    count: int

    def flops(self, batch: int) -> int:
        """FLOPs of the forward pass, without taps on padding; each gradient has as many."""
        outputs = (self.size + 2 * self.padding - self.window) // self.stride + 1
        source = self.stride * np.arange(outputs)[:, None] + np.arange(self.window) - self.padding
        taps = int(((source >= 0) & (source < self.size)).sum())
        return 2 * batch * taps**3 * self.in_features * self.features


def layers(size: int, width: int) -> Iterator[Layer]:
    """The convolutions of ResNet34-3D for a size^3 input of one channel."""
    yield Layer("stem", size, 1, width, 7, 2, 3, 1)
    edge, features = math.ceil(math.ceil(size / 2) / 2), width
    for stage, blocks in enumerate(STAGES, 1):
        if stage > 1:
            yield Layer(f"stage{stage} 3^3/2", edge, features, 2 * features, 3, 2, 1, 1)
            yield Layer(f"stage{stage} 1^3/2", edge, features, 2 * features, 1, 2, 0, 1)
            edge, features = -(-edge // 2), 2 * features
        repeats = 2 * blocks - (stage > 1)
        yield Layer(f"stage{stage} 3^3", edge, features, features, 3, 1, 1, repeats)


def model_flops(size: int, batch: int, width: int) -> int:
    """FLOPs of one forward and backward pass of ResNet34-3D."""
    return sum(
        layer.flops(batch) * layer.count * (2 if layer.name == "stem" else 3)
        for layer in layers(size, width)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", default="64x8,96x2,32x16", help="edge x batch, comma-separated (%(default)s)"
    )
    parser.add_argument("--width", type=int, default=64, help="of the first stage (%(default)s)")
    parser.add_argument(
        "--peers", default="", help="comma-separated: pytorch (same network, float32)"
    )
    parser.add_argument("--skip-xla", action="store_true", help="leave out the plain lowering")
    parser.add_argument("--skip-layers", action="store_true", help="leave out the table of layers")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="writes environment and rows")


def run(args: argparse.Namespace) -> int:
    sizes = _parse_sizes(args.sizes)
    peers = [peer for peer in args.peers.split(",") if peer]
    if unknown := set(peers) - set(PEERS):
        raise UserError(f"--peers {', '.join(unknown)}: unknown; choose from {', '.join(PEERS)}.")
    peak = matmul_gflops(args.repeats)
    print(f"matrix product 2048^3 float32: {peak:.0f} GFLOP/s")
    rows: list[dict[str, Any]] = []
    for size, batch in sizes:
        jax_step = functools.partial(_jax_step, size, batch, args.width)
        engines: dict[str, Callable[[], dict[str, float]]] = {
            "osteojax": functools.partial(jax_step, "auto", args.repeats)
        }
        if not args.skip_xla:
            engines["xla"] = functools.partial(jax_step, "xla", 1)
        if "pytorch" in peers:
            engines["pytorch"] = functools.partial(
                _pytorch_step, size, batch, args.width, args.repeats
            )
        for engine, step in engines.items():
            row = _step_row(engine, size, batch, args.width, step(), peak)
            rows.append(row)
            print(_step_line(row), flush=True)
        if not args.skip_layers:
            for row in _layer_rows(size, batch, args.width, peak, args.repeats):
                rows.append(row)
                print(_layer_line(row), flush=True)
    if args.json:
        measure.write_results(args.json, measure.environment("flax", "torch"), rows)
    return 0


def matmul_gflops(repeats: int) -> float:
    """The best rate of float32 matrix products on this machine, in GFLOP/s."""
    matrix = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.dot)
    best = measure.seconds(lambda: product(matrix, matrix), repeats)["min"]
    return 2 * 2048**3 / best / 1e9


def _jax_step(size: int, batch: int, width: int, lowering: str, repeats: int) -> dict[str, float]:
    """Seconds of a forward and backward pass in training mode, and of its compilation."""
    model = resnet34(width=width, lowering=lowering, shortcut="average")  # as shipped
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, *(size,) * 3, 1)), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), dict(shapes))

    def loss(params: Any, batch_stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        features, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.square(features["pooled"]).mean(), updated

    start = time.perf_counter()
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    compiled = step.lower(variables["params"], variables["batch_stats"], x).compile()
    compile_seconds = time.perf_counter() - start
    seconds = measure.seconds(
        lambda: compiled(variables["params"], variables["batch_stats"], x), repeats
    )
    return {**seconds, "compile": compile_seconds}


def _pytorch_step(size: int, batch: int, width: int, repeats: int) -> dict[str, float]:
    """The same network in PyTorch on CPU, float32."""
    try:
        import torch

        from launch.benchmarks.peer_pytorch import resnet
    except ModuleNotFoundError:
        raise UserError(
            "--peers pytorch: PyTorch is not installed. pip install torch, or leave it out."
        ) from None

    model = resnet(STAGES, width, shortcut="average")
    x = torch.randn(batch, 1, size, size, size)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()

    return {**measure.seconds(step, repeats), "compile": 0.0}


def _step_row(
    engine: str, size: int, batch: int, width: int, seconds: dict[str, float], peak: float
) -> dict[str, Any]:
    flops = model_flops(size, batch, width)
    return {
        "measurement": "step",
        "engine": engine,
        "image_size": size,
        "batch_size": batch,
        "width": width,
        "dtype": "float32",
        "step_seconds": seconds["median"],
        "step_seconds_min": seconds["min"],
        "step_seconds_max": seconds["max"],
        "compile_seconds": seconds["compile"],
        "model_gflops_per_second": flops / seconds["median"] / 1e9,
        "matmul_gflops_per_second": peak,
        "model_flops_utilization": flops / seconds["median"] / 1e9 / peak,
    }


def _step_line(row: dict[str, Any]) -> str:
    return (
        f"{row['engine']:10s} {row['image_size']}^3 x {row['batch_size']}, width {row['width']}: "
        f"{row['step_seconds']:.3f} s ({row['step_seconds_min']:.3f}-{row['step_seconds_max']:.3f})"
        f", {row['model_gflops_per_second']:.0f} GFLOP/s"
        f" = {100 * row['model_flops_utilization']:.0f}% of the matrix product"
        f", compiled in {row['compile_seconds']:.1f} s"
    )


def _layer_rows(
    size: int, batch: int, width: int, peak: float, repeats: int
) -> Iterator[dict[str, Any]]:
    """Forward, input-gradient and kernel-gradient rates of every distinct convolution."""
    for layer in layers(size, width):
        rng = np.random.default_rng(0)
        x = jnp.asarray(
            rng.standard_normal((batch, *(layer.size,) * 3, layer.in_features)), jnp.float32
        )
        kernel = jnp.asarray(
            rng.standard_normal((*(layer.window,) * 3, layer.in_features, layer.features)),
            jnp.float32,
        )

        def forward(x: jax.Array, kernel: jax.Array, layer: Layer = layer) -> jax.Array:
            return conv(x, kernel, strides=layer.stride, padding=layer.padding)

        dy = jax.block_until_ready(jax.jit(forward)(x, kernel))
        directions: dict[str, Callable[..., Any]] = {
            "forward": lambda x, kernel, dy, f=forward: f(x, kernel),
            "input_gradient": lambda x, kernel, dy, f=forward: jax.vjp(f, x, kernel)[1](dy)[0],
            "kernel_gradient": lambda x, kernel, dy, f=forward: jax.vjp(f, x, kernel)[1](dy)[1],
        }
        row: dict[str, Any] = {
            "measurement": "layer",
            "engine": "osteojax",
            "image_size": size,
            "batch_size": batch,
            "width": width,
            "layer": layer.name,
            "count": layer.count,
            "input_size": layer.size,
            "in_features": layer.in_features,
            "features": layer.features,
            "gflops": layer.flops(batch) / 1e9,
            "matmul_gflops_per_second": peak,
        }
        for name, function in directions.items():
            compiled = jax.jit(function)
            timing = measure.seconds(functools.partial(compiled, x, kernel, dy), repeats)
            row[f"{name}_seconds"] = timing["median"]
            row[f"{name}_gflops_per_second"] = layer.flops(batch) / timing["median"] / 1e9
        yield row


def _layer_line(row: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{name.replace('_', ' ')} {1e3 * row[f'{name}_seconds']:.1f} ms"
        f" ({row[f'{name}_gflops_per_second']:.0f} GFLOP/s)"
        for name in ("forward", "input_gradient", "kernel_gradient")
    )
    shape = f"{row['input_size']}^3 x {row['in_features']} -> {row['features']}"
    return f"  {row['count']}x {row['layer']:12s} {shape:18s} {rates}"


def _parse_sizes(text: str) -> list[tuple[int, int]]:
    try:
        sizes = [(int(size), int(batch)) for size, batch in (p.split("x") for p in text.split(","))]
    except ValueError:
        raise UserError(f"--sizes {text}: write edge x batch, such as 64x8,96x2.") from None
    if min(min(pair) for pair in sizes) < 1:
        raise UserError(f"--sizes {text}: edge and batch must be at least 1.")
    return sizes
