"""Training objectives. `objective.name = "swav"` in a config loads `osteojax/objectives/swav.py`.

An objective module has `build(config, cohort) -> Objective`; a module here without `build` contains
code that several objectives share. An objective defines everything about its method; the training
loop and the step know no method, and a new one needs no edit elsewhere.

These modules must be importable with only jax, flax and optax (`osteojax benchmark train` on
machines with little installed). Import packages that only validation needs where it uses them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from osteojax.choices import chosen_module

if TYPE_CHECKING:
    import numpy as np
    import optax
    from jax import Array
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort
    from osteojax.data.schema import Manifest
    from osteojax.data.views import View
    from osteojax.types import Batch, Export, Metrics, ModelState, Params, TrainState


class Objective(Protocol):
    """The interface of a method for training, benchmarks, export and evaluation.

    All but `training_rows` and `validate` must work with a cohort that is only `Described`.
    """

    @property
    def view(self) -> View:
        """The view that draws and reads examples (`osteojax.data.views`)."""

    def training_rows(self) -> np.ndarray:
        """i64[N] rows of the table to train on, all from the split "train"."""

    def check_devices(self, num_devices: int) -> None:
        """Raises UserError if the method does not support so many accelerators."""

    def init(self, key: Array, batch: Mapping[str, Any]) -> tuple[Params, ModelState]:
        """Parameters and state for batches shaped like `batch`; its values are not used."""

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, tuple[ModelState, Metrics]]:
        """(loss f32[], (new state, metrics)) of one device's share of a batch.

        Called inside a step that is mapped over the axis `osteojax.types.AXIS`: loss, state and
        metrics must be equal on all devices, so sums over the batch are sums over that axis.
        """

    def optimizer(
        self, direction: optax.GradientTransformation, schedule: optax.Schedule
    ) -> optax.GradientTransformation:
        """The optimiser, from the config's `direction` (AdamW) and learning-rate schedule."""

    def validate(self, state: TrainState, devices: Devices) -> tuple[ModelState, dict[str, float]]:
        """Validates on the split "valid": (state with new running statistics, metrics by name)."""

    def exchanged_bytes(self, num_devices: int) -> dict[str, int]:
        """Purpose -> operand bytes, on each of `num_devices`, of the method's own collectives in a
        step; `train/collectives.py` adds gradients and batch statistics."""

    def diverges_above(self, reference_loss: float) -> float:
        """The smoothed loss above which a run has diverged, from the mean loss of its first steps
        (`osteojax.train.health`)."""

    def exports(self) -> Mapping[str, Export]:
        """Name for `osteojax export --what` -> description of what it writes."""


class Devices(Protocol):
    """The part of `osteojax.train.parallel.DataParallel` that objectives use in validation."""

    @property
    def num_devices(self) -> int:
        """Number of accelerators of all processes together."""

    def map_forward(self, function: Callable) -> Callable:
        """Maps a function (variables, share of batch) -> outputs per example. The mapped function
        returns NumPy arrays [B, ...] of the whole batch."""

    def map_reduce(self, function: Callable) -> Callable:
        """Maps a function (variables, share of batch) -> values that are equal on all devices."""

    def put_whole(self, batch: dict[str, np.ndarray]) -> Any:
        """A global batch on the host -> the same, spread over the devices."""

    def replicate(self, tree: Any) -> Any:
        """Arrays -> the same values on every device, in new buffers."""


@dataclasses.dataclass(frozen=True)
class Described:
    """A cohort without shards, for `build` where only the manifest is known (export, costs).

    Attributes:
      manifest: of the prepared folder.
      directory: named in messages.
    """

    manifest: Manifest
    directory: Path


def load(config: ConfigDict, cohort: PreparedCohort | Described) -> Objective:
    """The objective that `config.objective.name` names. A typo lists the choices."""
    module = chosen_module("objective.name", config.objective.name, __name__)
    return module.build(config, cohort)


def ten_times(reference_loss: float) -> float:
    """`Objective.diverges_above` for losses that start at chance level, well above zero. A bad
    batch or an unlucky restart stays far below ten times that."""
    return 10.0 * abs(reference_loss)
