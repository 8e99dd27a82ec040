"""One per-device function, mapped over all devices.

The step is written for one device's share of the batch, with collectives over a named axis. It is
mapped by `jax.shard_map` over a mesh, or by `jax.pmap`, with the same results as one device.

The loss must be averaged over the axis *inside* the function that is differentiated. With shard_map
differentiation then gives the gradient of that average; with pmap it gives each device's part, and
`mean_gradients` combines the parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from osteojax.errors import UserError
from osteojax.types import AXIS

ENGINES = ("shard_map", "pmap")


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """All devices along one axis, each with an equal share of every batch.

    Attributes:
      mesh: one axis, `AXIS`.
      engine: "shard_map" or "pmap".
    """

    mesh: Mesh
    engine: str = "shard_map"

    @classmethod
    def create(cls, engine: str = "shard_map", num_devices: int | None = None) -> DataParallel:
        """Over the first `num_devices` devices, all by default."""
        if engine not in ENGINES:
            raise UserError(f"engine is {engine!r}; choose one of {', '.join(ENGINES)}.")
        if engine == "pmap" and jax.process_count() > 1:
            # With pmap each process has its own results, which a checkpoint cannot hold.
            raise UserError("engine=pmap is for one process; with several, use engine=shard_map.")
        # The devices of a process are adjacent, so that its share of a batch is one piece.
        # jax.make_mesh would order devices by their interconnect instead.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(devices[:num_devices]), (AXIS,), axis_types=(AxisType.Auto,))
        return cls(mesh, engine)

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def _devices(self) -> list[jax.Device]:
        return list(self.mesh.devices.flat)

    def check_batch(self, batch_size: int) -> None:
        """Raises UserError if a global batch does not divide over the devices."""
        if batch_size % self.num_devices:
            raise UserError(
                f"batch_size {batch_size} does not divide by {self.num_devices} devices. "
                f"Choose a multiple of {self.num_devices}."
            )

    def put(self, local_batch: dict[str, np.ndarray]) -> Any:
        """This process's share of a batch -> the global batch, spread over the devices."""
        if self.engine == "pmap":
            return {
                key: value.reshape(self.num_devices, -1, *value.shape[1:])
                for key, value in local_batch.items()
            }
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.make_array_from_process_local_data(sharding, local_batch)

    def put_steps(self, local_batches: dict[str, np.ndarray]) -> Any:
        """This process's share of the batches (or draws) of K steps, [K, B, ...] -> the global
        ones, spread over the devices."""
        sharding = NamedSharding(self.mesh, PartitionSpec(None, AXIS))
        return jax.make_array_from_process_local_data(sharding, local_batches)

    def put_whole(self, batch: dict[str, np.ndarray]) -> Any:
        """A global batch, of which every process has a copy -> spread over the devices."""
        share = len(next(iter(batch.values()))) // jax.process_count()
        start = jax.process_index() * share
        return self.put({key: value[start : start + share] for key, value in batch.items()})

    def replicate(self, tree: Any) -> Any:
        """Host or single-device arrays -> the same values on every device, in new buffers.

        New buffers are needed because a step donates its state: if an array appeared twice in it or
        were used elsewhere, the other use would find it deleted. With several processes the values
        are those of process 0.
        """
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        if jax.process_count() > 1:
            # device_put would first check that all processes have equal values; NaN fails that.
            host = multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))
            return jax.make_array_from_process_local_data(everywhere, host)
        return jax.device_put(jax.tree.map(jnp.copy, tree), everywhere)

    def replicated_like(self, shapes: Any) -> Any:
        """Shapes and dtypes -> the same with replicated sharding, to restore a checkpoint into."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes
        )

    def map_step(self, step: Callable) -> Callable:
        """Maps a step (state, share of batch, key) -> (state, metrics), both equal on all devices.
        With shard_map the state passed in is donated."""
        if self.engine == "pmap":
            return jax.pmap(
                step, AXIS, in_axes=(None, 0, None), out_axes=None, devices=self._devices
            )
        mapped = jax.shard_map(
            step,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
        )
        return jax.jit(mapped, donate_argnums=0)

    def map_steps(self, steps: Callable) -> Callable:
        """Maps K steps (state, share of the resident data, share of the draws of K steps, key) ->
        (state, metrics [K]), both equal on all devices. The state passed in is donated."""
        assert self.engine == "shard_map"  # `placement` refuses resident data with pmap
        mapped = jax.shard_map(
            steps,
            mesh=self.mesh,
            in_specs=(
                PartitionSpec(),
                PartitionSpec(AXIS),
                PartitionSpec(None, AXIS),
                PartitionSpec(),
            ),
            out_specs=PartitionSpec(),
        )
        return jax.jit(mapped, donate_argnums=0)

    def map_reduce(self, function: Callable) -> Callable:
        """Maps a function (variables, share of batch) -> values that are equal on all devices."""
        if self.engine == "pmap":
            return jax.pmap(function, AXIS, in_axes=(None, 0), out_axes=None, devices=self._devices)
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
        )
        return jax.jit(mapped)

    def map_forward(self, function: Callable) -> Callable:
        """Maps a function (variables, share of batch) -> outputs per example. The mapped function
        returns them as NumPy arrays of the whole batch."""
        if self.engine == "pmap":
            mapped = jax.pmap(function, AXIS, in_axes=(None, 0), devices=self._devices)
            return lambda variables, batch: jax.tree.map(
                lambda out: np.asarray(out).reshape(-1, *out.shape[2:]), mapped(variables, batch)
            )
        mapped = jax.jit(
            jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
                out_specs=PartitionSpec(AXIS),
            )
        )
        return lambda variables, batch: _fetch(mapped(variables, batch))

    def mean_gradients(self, gradients: Any) -> Any:
        """Gradients of the averaged loss, from the gradients that each device computed."""
        return lax.pmean(gradients, AXIS) if self.engine == "pmap" else gradients


def _fetch(tree: Any) -> Any:
    """Sharded arrays -> complete NumPy arrays on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, tree)
