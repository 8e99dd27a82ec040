"""Ways of feeding a step: the same batch again, from the shards, from device memory.

Each gives a call that dispatches steps as training does. Reading from shards needs grain and
array_record; the other two need neither.
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
from osteojax.data.resident import Layout, Resident, gather, place
from osteojax.errors import UserError
from osteojax.train.step import make_steps


@dataclasses.dataclass
class Feed:
    """A way of taking steps.

    Attributes:
      call: dispatches `steps_per_call` steps; returns their metrics, which may not be ready.
      waited_s: seconds that each call spent on getting its data, one entry a call.
      resident_bytes: of data on each device.
    """

    call: Callable[[], Any]
    steps_per_call: int = 1
    waited_s: list[float] = dataclasses.field(default_factory=list)
    resident_bytes: int = 0

    def wait_seconds(self) -> float:
        """Median a step, without the first calls, which fill the queues."""
        return statistics.median(self.waited_s[2:] or self.waited_s or [0.0]) / self.steps_per_call


def same_batch(experiment: Experiment, batch: dict[str, np.ndarray]) -> Feed:
    """One batch that lies on the devices: compute alone."""
    return Feed(experiment.same_batch_again(batch))


def from_disk(experiment: Experiment) -> Feed:
    """The training stream of a prepared folder."""
    from osteojax.data.pipeline import training_batches

    batches = training_batches(
        experiment.cohort,
        experiment.objective.training_rows(),
        experiment.objective.view,
        batch_size=experiment.config.batch_size,
        seed=0,
    )
    step = experiment.step()
    state = experiment.new_state(next(batches))
    pending: Any = None
    feed = Feed(lambda: once())

    def once() -> Any:
        nonlocal state, pending
        asked = time.perf_counter()
        batch = experiment.devices.put(next(batches))
        feed.waited_s.append(time.perf_counter() - asked)
        state, metrics = step(state, batch, experiment.key)
        jax.block_until_ready(pending)  # training looks at step n - 1 while step n runs
        pending = metrics
        return metrics

    return feed


def from_device_memory(experiment: Experiment, steps_per_call: int, vertebrae: int) -> Feed:
    """Volumes placed in device memory: those of a prepared folder, or for a stand-in `vertebrae`
    of noise. What the host does for a step is to draw which ones it shows."""
    if experiment.devices.engine == "pmap":
        raise UserError("--data resident is for --engine shard_map: pmap takes batches from disk.")
    resident = _placed(experiment, vertebrae)
    rows, batch_size = resident.layout.rows, experiment.config.batch_size
    steps = make_steps(
        experiment.objective.loss,
        experiment.optimizer,
        experiment.devices,
        experiment.config.optim.ema_decay,
        partial(gather, resident.layout),
    )
    state = experiment.new_state(experiment.synthetic_batch())
    rng = np.random.default_rng(0)
    feed = Feed(lambda: once(), steps_per_call, resident_bytes=resident.layout.device_bytes)

    def once() -> Any:
        nonlocal state
        asked = time.perf_counter()
        chosen = rng.choice(rows, steps_per_call * batch_size)
        draws: dict[str, Any] = experiment.draws(chosen, rng)
        draws["slots"] = resident.slots(draws)
        shape = (steps_per_call, batch_size)
        draws = {key: value.reshape(*shape, *value.shape[1:]) for key, value in draws.items()}
        placed = experiment.devices.put_steps(draws)
        feed.waited_s.append(time.perf_counter() - asked)
        state, metrics = steps(state, resident.codes, placed, experiment.key)
        return metrics

    return feed


def _placed(experiment: Experiment, vertebrae: int) -> Resident:
    cohort, view = experiment.cohort, experiment.objective.view
    size = cohort.manifest.size
    members = list(view.members)
    if hasattr(cohort, "members"):
        rows = experiment.objective.training_rows()

        def read(row: int) -> np.ndarray:
            return cohort.members(row, members)
    else:
        rows = np.arange(vertebrae)

        def read(row: int) -> np.ndarray:
            return random_codes(len(members), size, size, size, seed=row)

    layout = Layout.of(rows, tuple(members), size, experiment.devices.num_devices, view.key)
    return place(read, layout, experiment.devices.mesh)
