"""Accelerators that a step can be compiled for: their rates, their memory, their topologies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from osteojax.errors import UserError

if TYPE_CHECKING:
    import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, by its maker's data sheet.

    Attributes:
      platform: of XLA, "cuda" or "tpu".
      kind: how the compiler names it (`jax.Device.device_kind`).
      flops_per_second: of dense matrix products by dtype of the operands. float32 products run as
        TF32 on an NVIDIA GPU and in passes of bfloat16 on a TPU, which is JAX's default.
      bytes_per_second: of the main memory.
      room_bytes: of the memory that a program can have.
      clock_hz: of the cycles in which a TPU's compiler estimates; None where it does not.
      source: of these figures.
      target: description of the GPU, which stands in for its driver; empty for a TPU.
    """

    platform: str
    kind: str
    flops_per_second: dict[str, float]
    bytes_per_second: float
    room_bytes: int
    clock_hz: float | None
    source: str
    target: str = ""


def _hopper(name: str, bandwidth: int, memory: int) -> Chip:
    """H100 and H200 in the SXM form; they differ in their memory."""
    target = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32
          shared_memory_per_block: 49152 shared_memory_per_core: 233472
          shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
          core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {bandwidth} l2_cache_size: 52428800 device_memory_size: {memory}
          cuda_compute_capability {{ major: 9 }}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
        }}
        platform_name: "CUDA" device_description_str: "{name}"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 9 patch: 0 }}"""
    return Chip(
        platform="cuda",
        kind=name,
        flops_per_second={"bfloat16": 989e12, "float32": 494e12},
        bytes_per_second=bandwidth,
        room_bytes=memory,
        clock_hz=None,
        source=f"data sheet of the {name} (SXM), without sparsity",
        target=target,
    )


def _tpu(kind: str, teraflops: float, gigabytes: float, room_gib: float, ghz: float) -> Chip:
    return Chip(
        platform="tpu",
        kind=kind,
        flops_per_second=dict.fromkeys(("bfloat16", "float32"), teraflops * 1e12),
        bytes_per_second=gigabytes * 1e9,
        room_bytes=int(room_gib * GIB),
        clock_hz=ghz * 1e9,
        source="Google Cloud's page of this version; room as the compiler states it",
    )


CHIPS = {
    "h100": _hopper("NVIDIA H100", 3_350_000_000_000, 84_978_434_048),
    "h200": _hopper("NVIDIA H200", 4_800_000_000_000, 150_754_820_096),
    "v5e": _tpu("TPU v5 lite", 197, 819, 15.75, 1.5),
    "v5p": _tpu("TPU v5", 459, 2765, 95.74, 1.75),
    "v6e": _tpu("TPU v6 lite", 918, 1640, 31.25, 1.75),
}
EXAMPLES = "h200:1x1x1, h100:1x1x8, v5e:2x2, v5p:2x2x1, v6e:2x2"


def chip_of(topology: str) -> Chip:
    """The chip of a topology's name, "h200:1x1x8".

    Raises:
      UserError: of no known chip, or without a shape.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not all(part.isdigit() for part in shape.split("x")):
        raise UserError(f"--topology {topology}: unknown. Choose as {EXAMPLES}.")
    return CHIPS[name]


def devices_of(topology: str, count: int | None = None) -> list[jax.Device]:
    """The devices of a topology, in the order in which training takes them. None is attached.

    Args:
      count: the first so many; None takes all.

    Raises:
      UserError: the compiler knows no such topology, or it has fewer devices.
    """
    from jax.experimental import topologies

    chip = chip_of(topology)
    if chip.platform == "cuda":  # slices x hosts x GPUs of a host
        shape = topology.partition(":")[2]
        named: dict[str, Any] = {"platform": "cuda", "topology": shape}
        named["target_config"] = chip.target
    else:
        named = {"platform": "tpu", "topology_name": topology}
    try:
        found: list[Any] = topologies.get_topology_desc(**named).devices
    except Exception as error:  # compilers raise errors of many kinds
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"--topology {topology}: its compiler refuses it ({reason}). NVIDIA topologies are "
            f"slices x hosts x GPUs, those of TPUs whole hosts of 4 chips: {EXAMPLES}."
        ) from error
    if count and count > len(found):
        raise UserError(f"--devices {count}: {topology} has {len(found)}.")
    return sorted(found, key=lambda device: (device.process_index, device.id))[:count]
