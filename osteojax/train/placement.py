"""Decides whether volumes are read from disk or kept in device memory, and the steps per dispatch.

Neither affects results, so a run may be resumed with another choice.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils

from osteojax.data.resident import Layout
from osteojax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PLACEMENTS = ("auto", "resident", "disk")

AUTO_SHARE = 0.5
"""Share of the device memory still free after the state was placed that "auto" may use for volumes.
The step needs the rest; at 96^3 and batch 32 its activations are several times the state."""

AUTO_STEPS = 8
"""Steps per dispatch on an accelerator. On one CPU core, dispatching 300 arrays took 3 ms and
drawing 32 examples 3 to 5 ms, together more than the 7 ms that a step at 64^3 should take."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """The choice.

    Attributes:
      layout: of the volumes in device memory; None if they stay on disk.
      steps_per_dispatch: 1 or more; 1 on disk.
      reason: one line for the user, with the budget.
    """

    layout: Layout | None
    steps_per_dispatch: int
    reason: str


def choose_placement(config: ConfigDict, layout: Layout | None, engine: str) -> Placement:
    """Chooses by `config.data.placement` and `config.steps_per_dispatch`; all processes agree.

    Args:
      layout: that the volumes would have in device memory; None if they cannot be one array.
      engine: of `DataParallel`; pmap reads from disk.

    Raises:
      UserError: resident data that do not fit or that the engine does not support, several steps
        per dispatch without resident data, or an invalid value.
    """
    wanted = config.data.placement
    if wanted not in PLACEMENTS:
        raise UserError(f"data.placement is {wanted!r}; choose one of {', '.join(PLACEMENTS)}.")
    if config.steps_per_dispatch < 0:
        raise UserError(
            f"steps_per_dispatch is {config.steps_per_dispatch}; give a number of steps, or 0 to "
            "have it chosen."
        )
    free = free_bytes() if wanted != "disk" else None
    resident, reason = _decide(wanted, layout, engine, free)
    steps = config.steps_per_dispatch
    if steps > 1 and not resident:
        raise UserError(
            f"steps_per_dispatch is {steps}, and the {reason}. Several steps a dispatch need "
            "data in device memory: set data.placement=resident, or steps_per_dispatch=0."
        )
    if steps == 0:
        steps = AUTO_STEPS if resident and jax.default_backend() != "cpu" else 1
    if resident:
        reason += f", {steps} step{'s' if steps > 1 else ''} a dispatch"
    return Placement(layout if resident else None, steps, reason)


def _decide(wanted: str, layout: Layout | None, engine: str, free: int | None) -> tuple[bool, str]:
    """(whether resident, why)."""
    if wanted == "disk":
        return False, "data stay on disk (data.placement=disk)"
    if engine == "pmap":
        if wanted == "resident":
            raise UserError(
                "data.placement=resident needs engine=shard_map; with engine=pmap use "
                "data.placement=disk."
            )
        return False, "data stay on disk (engine=pmap)"
    if layout is None:
        if wanted == "resident":
            raise UserError(
                "data.placement=resident: the folder's records do not have one shape. Use "
                "data.placement=disk."
            )
        return False, "data stay on disk (records do not have one shape)"
    needed = layout.device_bytes
    room = "unknown memory" if free is None else f"{free / 2**30:.2f} GiB free"
    budget = f"{needed / 2**30:.2f} GiB on each of {layout.num_devices} device(s), {room}"
    if wanted == "resident":
        if free is not None and needed > free:
            raise UserError(
                f"data.placement=resident: the volumes take {budget}. Use more devices, "
                "data.textures=online (the image alone is kept), or data.placement=disk."
            )
        return True, f"data are resident: {budget}"
    if jax.default_backend() == "cpu":
        # Reading takes under 1% of a step on CPU, and the system caches the files in memory.
        return False, f"data stay on disk (a CPU's steps hide reading): {budget}"
    if jax.process_count() > 1:
        # Gathering sends the global batch round all devices: 3% of a step within a host of 8 GPUs,
        # more than a step between hosts (docs/scaling.md).
        return False, f"data stay on disk (gathering would cross processes): {budget}"
    if free is None or needed > AUTO_SHARE * free:
        return False, f"data stay on disk: {budget}, of which they may take {AUTO_SHARE:.0%}"
    return True, f"data are resident: {budget}"


def free_bytes() -> int | None:
    """Least free memory of a device, over all processes; None where a platform does not report it.

    A CPU's devices share the free memory of the host.
    """
    free = _local_free_bytes()
    if jax.process_count() == 1:
        return free
    mib = np.int32(-1 if free is None else free >> 20)
    fullest = int(np.min(multihost_utils.process_allgather(mib)))
    return None if fullest < 0 else fullest << 20


def _local_free_bytes() -> int | None:
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):  # not every system counts them
            return None
        return free // len(devices)
    statistics = [device.memory_stats() or {} for device in devices]
    if not all({"bytes_limit", "bytes_in_use"} <= set(found) for found in statistics):
        return None
    return min(found["bytes_limit"] - found["bytes_in_use"] for found in statistics)
