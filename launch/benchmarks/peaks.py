"""Peak rates of matrix products and copies on these devices, measured in the same run.

Utilisation is relative to a peak. CPUs have no published peak and GPUs do not reach theirs, so it
is measured with a large matrix product in the dtype of the computation, on all devices at once
(fake devices share one machine). Copies are measured likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch.benchmarks import measure
from osteojax.types import AXIS

MATRIX_EDGE = {"cpu": 2048}
MATRIX_EDGE_ACCELERATOR = 8192
COPY_BYTES = {"cpu": 2**27}
COPY_BYTES_ACCELERATOR = 2**30


def matrix_flops_per_second(mesh: Mesh, dtype: str, repeats: int) -> float:
    """The best rate of a square matrix product on all devices of a mesh, in a dtype."""
    edge = MATRIX_EDGE.get(_platform(mesh), MATRIX_EDGE_ACCELERATOR)
    # Random values, because multiplying ones takes less power and lets a GPU clock higher.
    values = np.random.default_rng(0).standard_normal((edge, edge), np.float32)
    matrices = _one_on_each(mesh, jnp.asarray(values, dtype))
    product = _mapped(mesh, lambda m: m[0] @ m[0])
    best = measure.seconds_per_call(lambda: product(matrices), repeats)["min"]
    return 2 * edge**3 * mesh.size / best


def copy_bytes_per_second(mesh: Mesh, repeats: int) -> float:
    """The best rate of reading and writing large arrays on all devices of a mesh, both counted.

    Copies are in place; writing to a new array on a CPU is an eighth as fast, due to page faults.
    """
    size = COPY_BYTES.get(_platform(mesh), COPY_BYTES_ACCELERATOR)
    state = [_one_on_each(mesh, jnp.zeros(size // 4, jnp.float32))]
    add = _mapped(mesh, lambda x: x + 1.0, donate=True)

    def once() -> jax.Array:
        state[0] = add(state[0])
        return state[0]

    best = measure.seconds_per_call(once, repeats)["min"]
    return 2 * size * mesh.size / best


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _one_on_each(mesh: Mesh, array: jax.Array) -> jax.Array:
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    shape = (mesh.size, *array.shape)
    return jax.make_array_from_callback(shape, sharding, lambda _: np.asarray(array)[None])


def _mapped(
    mesh: Mesh, function: Callable[[jax.Array], jax.Array], donate: bool = False
) -> Callable[..., Any]:
    spec = PartitionSpec(AXIS)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)
    return jax.jit(mapped, donate_argnums=0 if donate else ())
