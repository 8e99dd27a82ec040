"""Input of each dispatch: batches read from disk, or draws that refer to data on the devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import training_batches
from osteojax.data.resident import Layout, Resident, gather, place
from osteojax.data.views import View
from osteojax.train.parallel import DataParallel
from osteojax.types import Batch


class Feed:
    """The endless stream of a run's examples, the same from disk and from device memory.

    Attributes:
      resident: the volumes if they are in device memory, else None.
    """

    def __init__(
        self, cohort: PreparedCohort, view: View, devices: DataParallel, layout: Layout | None
    ) -> None:
        """Loads the volumes of `layout` into device memory; with None they stay on disk."""
        self._cohort, self._view, self._devices = cohort, view, devices
        self.resident: Resident | None = None
        if layout is not None:
            self.resident = _load(cohort, devices, layout)

    @property
    def data(self) -> Any:
        """Data that the devices hold, an argument of the step."""
        return None if self.resident is None else self.resident.codes

    def gather(self, data: Any, batch: Batch) -> Batch:
        """Inside the step: (a device's share of `data`, its share of one step's draws) -> batch."""
        return batch if self.resident is None else gather(self.resident.layout, data, batch)

    def start(self, rows: np.ndarray, batch_size: int, seed: int, first_step: int) -> None:
        """Opens the stream; see `training_batches`."""
        view = self._view if self.resident is None else self._view.draw
        self._stream = training_batches(
            self._cohort, rows, view, batch_size=batch_size, seed=seed, first_step=first_step
        )

    def next(self, count: int) -> tuple[Batch, np.ndarray]:
        """Data of the next `count` steps.

        Returns:
          (batches, or draws, of these steps on the devices, i32[count, b] rows of this process's
          share of each batch).
        """
        local = [next(self._stream) for _ in range(count)]
        rows = np.stack([batch["index"] for batch in local])
        if self._devices.engine == "pmap":  # always one step, without a leading axis
            return self._devices.put(local[0]), rows
        if count == 1:  # a view instead of a copy, because volumes are large
            steps = {key: np.asarray(value)[None] for key, value in local[0].items()}
        else:
            steps = {key: np.stack([batch[key] for batch in local]) for key in local[0]}
        if self.resident is not None:
            steps["slots"] = self.resident.slots(steps)
        return self._devices.put_steps(steps), rows


def _load(cohort: PreparedCohort, devices: DataParallel, layout: Layout) -> Resident:
    names = list(layout.members)
    own = sum(device.process_index == jax.process_index() for device in devices.mesh.devices.flat)
    with tqdm(
        total=len(layout.rows) * own // devices.num_devices,
        desc="to device memory",
        unit=f" {cohort.kind.ITEMS}",
        leave=False,
        delay=2,
        disable=jax.process_index() != 0,
    ) as bar:
        return place(lambda row: cohort.members(row, names), layout, devices.mesh, bar.update)


def dispatches(
    first_step: int, total_steps: int, per_dispatch: int, every: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    """(last step, how many steps) of each dispatch after `first_step`.

    A dispatch has `per_dispatch` steps, or one step where a full dispatch would pass the end of the
    run or a multiple of a number in `every`. So logs, validations and saves happen after the same
    steps for every `per_dispatch`, and at most two programs are compiled.
    """
    step = first_step
    while step < total_steps:
        boundary = min([total_steps, *(step + period - step % period for period in every)])
        count = per_dispatch if step + per_dispatch <= boundary else 1
        step += count
        yield step, count
