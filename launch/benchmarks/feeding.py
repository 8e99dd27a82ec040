"""Sources of batches for a timed step: one batch repeated, shards, or device memory.

Each returns a call that dispatches steps as training does. Reading a prepared folder needs grain
and array_record; noise needs neither.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from launch.benchmarks.experiment import Experiment, random_codes
from osteojax.data.resident import Layout, gather, place
from osteojax.errors import UserError


@dataclasses.dataclass
class Feed:
    """A call that takes steps, and what it measured.

    Attributes:
      call: dispatches `steps_per_call` steps; returns their metrics, which may not be ready.
      waited_s: seconds that each call waited for its data.
      resident_bytes: of data on each device.
    """

    call: Callable[[], Any]
    steps_per_call: int = 1
    waited_s: list[float] = dataclasses.field(default_factory=list)
    resident_bytes: int = 0

    def wait_seconds(self) -> float:
        """Median wait per step, without the first calls, which fill the queues."""
        return statistics.median(self.waited_s[2:] or self.waited_s or [0.0]) / self.steps_per_call


def same_batch(experiment: Experiment, batch: dict[str, np.ndarray]) -> Feed:
    """One batch on the devices, used in every step, so that input costs nothing."""
    return Feed(experiment.same_batch_again(batch))


def from_folder(experiment: Experiment, *, resident: bool, steps_per_call: int = 1) -> Feed:
    """The training stream of a prepared folder, from its shards or from device memory."""
    from osteojax.train import feed as training

    view, devices, cohort = experiment.objective.view, experiment.devices, experiment.cohort
    rows = experiment.objective.training_rows()
    layout = None
    if resident:
        layout = Layout.of(rows, view, cohort.manifest, devices.num_devices)
    stream = training.Feed(cohort, view, devices, layout)
    stream.start(rows, experiment.config.batch_size, seed=0, first_step=0)
    feed = _fed(experiment, stream.gather, stream.data, lambda: stream.next(steps_per_call)[0])
    return dataclasses.replace(
        feed,
        steps_per_call=steps_per_call,
        resident_bytes=layout.device_bytes if layout else 0,
    )


def from_noise_in_memory(experiment: Experiment, steps_per_call: int, vertebrae: int) -> Feed:
    """Volumes of noise in device memory; for a step the host only draws."""
    view, devices = experiment.objective.view, experiment.devices
    shape, batch_size = experiment.cohort.about.shape, experiment.config.batch_size
    rows, members = np.arange(vertebrae), tuple(view.members)
    layout = Layout.of(rows, view, experiment.cohort.manifest, devices.num_devices)
    assert layout is not None  # boxes of one folder have one shape
    resident = place(lambda row: random_codes(len(members), *shape, seed=row), layout, devices.mesh)
    rng = np.random.default_rng(0)

    def draw() -> Any:
        chosen = rng.choice(rows, steps_per_call * batch_size)
        draws: dict[str, Any] = experiment.draws(chosen, rng)
        draws["slots"] = resident.slots(draws)
        shape = (steps_per_call, batch_size)
        return devices.put_steps(
            {key: value.reshape(*shape, *value.shape[1:]) for key, value in draws.items()}
        )

    feed = _fed(experiment, partial(gather, layout), resident.codes, draw)
    return dataclasses.replace(
        feed, steps_per_call=steps_per_call, resident_bytes=layout.device_bytes
    )


def from_host_memory(experiment: Experiment, vertebrae: int) -> Feed:
    """A new batch from this machine's memory for every step, sent while the step before runs.

    It has the transfer of training from disk without its reading; for whole boxes.
    """
    view, rng = experiment.objective.view, np.random.default_rng(0)
    shape, batch_size = experiment.cohort.about.shape, experiment.config.batch_size
    pool = random_codes(vertebrae, len(view.members), *shape)

    def next_batch() -> Any:
        chosen = rng.choice(vertebrae, batch_size)
        draws = experiment.draws(chosen, rng)
        draws[view.key] = pool[chosen[:, None], draws["map_ids"]]
        return experiment.devices.put_steps({key: value[None] for key, value in draws.items()})

    return _fed(experiment, lambda data, batch: batch, None, next_batch)


def _fed(experiment: Experiment, gather: Callable, data: Any, next_batches: Callable) -> Feed:
    """Takes steps as the training loop does, on data that `next_batches()` puts on the devices."""
    program = experiment.program(gather)
    state, pending = experiment.new_state(experiment.synthetic_batch()), None
    waited: list[float] = []

    def once() -> Any:
        nonlocal state, pending
        before = time.perf_counter()
        batches = next_batches()
        waited.append(time.perf_counter() - before)
        state, metrics = program(state, data, batches, experiment.key)
        jax.block_until_ready(pending)  # training fetches step n - 1's metrics while n runs
        pending = metrics
        return metrics

    return Feed(once, waited_s=waited)


def check_resident(engine: str) -> None:
    """Raises UserError if the engine does not support resident data."""
    if engine == "pmap":
        raise UserError("--data resident is for --engine shard_map: pmap takes batches from disk.")
