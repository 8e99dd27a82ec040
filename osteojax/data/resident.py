"""Keeps the volumes of a training run in device memory and gathers batches from them in a step.

Volumes are kept as codes, each device holding an equal part of the items. A step receives draws
(views.py), a few bytes per example. Every device looks up the volumes of the global batch that it
holds, and `psum_scatter` delivers each device's share: every device but the owner adds zeros. The
objective gets the same batch as from disk, so results are the same.

This module does not read shards: the caller of `place` passes a function that reads a volume.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from osteojax.data.schema import Field, Manifest
from osteojax.types import AXIS, Batch

if TYPE_CHECKING:
    from osteojax.data.views import View

READ_THREADS = 16
BLOCK_BYTES = 64 * 2**20
"""Host memory that loading uses for volumes on their way to the devices."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which slot of which device holds each item; every device has the same number of slots.

    Attributes:
      rows: i64[R] cohort rows, by slot.
      members: fields that are kept of each item; they share shape and dtype.
      field: one of them, for shape and dtype.
      pool: names that the map_ids of a draw index (`views.View`).
      num_devices: that the slots are split over, in order.
      num_blocks, block_slots: each device's slots are filled in `num_blocks` blocks of
        `block_slots` slots.
      key: "codes" or "image": what the batch contains (`views.View`).
    """

    rows: np.ndarray
    members: tuple[str, ...]
    field: Field
    pool: tuple[str, ...]
    num_devices: int
    num_blocks: int
    block_slots: int
    key: str

    @classmethod
    def of(
        cls, rows: np.ndarray, view: View, manifest: Manifest, num_devices: int
    ) -> Layout | None:
        """The layout with the fewest empty slots: fewer than one per block and device. None where
        the view's fields differ in shape or dtype and so do not fit into one array."""
        fields = [manifest.field(name) for name in view.members]
        kinds = {(field.dtype, field.shape) for field in fields}
        if len(kinds) != 1 or fields[0].shape is None:
            return None
        slots = -(-len(rows) // num_devices)
        num_blocks = -(-slots * len(fields) * fields[0].array_bytes // BLOCK_BYTES)
        block_slots = -(-slots // num_blocks)
        return cls(
            rows, view.members, fields[0], view.pool, num_devices, num_blocks, block_slots, view.key
        )

    @property
    def device_slots(self) -> int:
        return self.num_blocks * self.block_slots

    @property
    def device_bytes(self) -> int:
        """Memory that the volumes take on each device."""
        return self.device_slots * len(self.members) * self.field.array_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the global array."""
        assert self.field.shape is not None  # see `of`
        return (self.num_devices * self.device_slots, len(self.members), *self.field.shape)

    def block(self, device: int, number: int) -> np.ndarray:
        """i64[at most block_slots] cohort rows of one block of one device; the last slots of a
        block may be empty."""
        start = device * self.device_slots + number * self.block_slots
        return self.rows[start : start + self.block_slots]


@dataclasses.dataclass(frozen=True)
class Resident:
    """Arrays in device memory.

    Attributes:
      layout: where they lie.
      codes: [slots, members, *shape of a field], the slots split over the mesh.
    """

    layout: Layout
    codes: Array

    @functools.cached_property
    def _slot_of(self) -> np.ndarray:
        slots = np.full(self.layout.rows.max() + 1, -1, np.int32)
        slots[self.layout.rows] = np.arange(len(self.layout.rows), dtype=np.int32)
        return slots

    def slots(self, draws: dict[str, Any]) -> np.ndarray:
        """i32[..., V or 1] the slots of the items that draws show, computed on the host.

        Raises:
          ValueError: a draw shows an item that is not in memory, from outside the training rows.
        """
        rows = np.asarray(draws["rows"] if "rows" in draws else draws["index"][..., None])
        known = rows < len(self._slot_of)
        slots = np.where(known, self._slot_of[np.where(known, rows, 0)], -1)
        if (absent := rows[slots < 0]).size:
            raise ValueError(f"rows {absent[:5]} were drawn and are not among the training rows")
        return slots


def place(
    read: Callable[[int], np.ndarray],
    layout: Layout,
    mesh: Mesh,
    on_placed: Callable[[int], object] = lambda count: None,
) -> Resident:
    """Reads volumes into device memory, a block at a time; each process reads for its devices.

    Args:
      read: cohort row -> [members, *shape]; called in threads.
      layout: for the number of devices of the mesh.
      mesh: over the axis `AXIS`; the devices of a process are adjacent.
      on_placed: called with the number of items that have just been placed, for progress.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    here = [
        position
        for position, device in enumerate(mesh.devices.flat)
        if device.process_index == jax.process_index()
    ]
    blank = functools.partial(jnp.zeros, layout.shape, layout.field.dtype)
    codes = jax.jit(blank, out_shardings=sharding)()

    def put_block(share: Array, block: Array, start: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(share, block, start, axis=0)

    # Puts one block of every device at once, so that one program serves any number of devices.
    put = jax.jit(
        jax.shard_map(
            put_block,
            mesh=mesh,
            in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS),
        ),
        donate_argnums=0,
    )
    with ThreadPoolExecutor(READ_THREADS) as threads:
        for number in range(layout.num_blocks):
            rows = [layout.block(device, number) for device in here]
            block = _read_block(read, rows, layout, threads.map)
            start = np.int32(number * layout.block_slots)
            codes = put(codes, jax.make_array_from_process_local_data(sharding, block), start)
            codes.block_until_ready()
            on_placed(sum(map(len, rows)))
    return Resident(layout, codes)


def _read_block(
    read: Callable[[int], np.ndarray],
    rows: list[np.ndarray],
    layout: Layout,
    map_function: Callable[..., Iterable[None]],
) -> np.ndarray:
    """[local devices * block_slots, members, *shape]; zeros where a slot has no item."""
    block = np.zeros((len(rows), layout.block_slots, *layout.shape[1:]), layout.field.dtype)

    def fill(place: tuple[int, int]) -> None:
        device, slot = place
        block[device, slot] = read(int(rows[device][slot]))

    list(map_function(fill, [(d, s) for d, chosen in enumerate(rows) for s in range(len(chosen))]))
    return block.reshape(-1, *layout.shape[1:])


def gather(layout: Layout, codes: Array, draws: Batch) -> Batch:
    """This device's share of a batch, from its share of the draws. Call inside a mapped step.

    Args:
      codes: [device_slots, members, *shape], the part on this device.
      draws: this device's share, with slots i32[B, V or 1] (`Resident.slots`).

    Returns:
      the draws without slots, with "codes" [B, V, *shape] or "image" [B, *shape].
    """
    batch = {key: value for key, value in draws.items() if key != "slots"}
    if layout.key == "image":
        member_BV = jnp.zeros_like(draws["slots"])
    else:
        kept = [layout.members.index(name) if name in layout.members else 0 for name in layout.pool]
        member_BV = jnp.array(kept, jnp.int32)[draws["map_ids"]]
    slot_BV = jnp.broadcast_to(draws["slots"], member_BV.shape)
    volumes = _take(codes, slot_BV, member_BV)
    batch[layout.key] = volumes[:, 0] if layout.key == "image" else volumes
    # The barrier makes XLA compile the rest as for a batch from disk: results are equal to the bit.
    return lax.optimization_barrier(batch)


def _take(codes: Array, slot_BV: Array, member_BV: Array) -> Array:
    """[B, V, *shape]: the volumes of this device's share, from the devices that hold them."""
    if lax.axis_size(AXIS) == 1:
        return codes.at[slot_BV, member_BV].get(mode="promise_in_bounds")
    slot_GV, member_GV = lax.all_gather((slot_BV, member_BV), AXIS, tiled=True)
    slot_GV = slot_GV - lax.axis_index(AXIS) * codes.shape[0]
    mine_GV = (slot_GV >= 0) & (slot_GV < codes.shape[0])
    held = codes.at[jnp.where(mine_GV, slot_GV, 0), member_GV].get(mode="promise_in_bounds")
    mine = mine_GV.reshape(mine_GV.shape + (1,) * (held.ndim - mine_GV.ndim))
    held = jnp.where(mine, held, jnp.zeros((), held.dtype))
    return lax.psum_scatter(held, AXIS, scatter_dimension=0, tiled=True)
