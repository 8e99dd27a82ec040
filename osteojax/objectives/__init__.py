"""What is minimised. `objective.name = "swav"` in a config loads `osteojax/objectives/swav.py`.

An objective module has `build(config, cohort) -> Objective`; a module here without `build` holds
what several of them share. An objective owns everything about its method: the loop and the step
know none of it, and a new one needs no edit elsewhere.

A module here is imported where there is nothing but jax, flax and optax (`osteojax benchmark train`
on a machine without a registry): what only validation needs is imported where it validates.
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
    """What training, benchmarks, export and evaluation ask of a method.

    All but `training_rows` and `validate` must work on a cohort that is only `Described`.
    """

    @property
    def view(self) -> View:
        """What an example shows: draws it and reads it (`osteojax.data.views`)."""

    def training_rows(self) -> np.ndarray:
        """i64[N] rows of the table that are trained on, all of the split "train"."""

    def check_devices(self, num_devices: int) -> None:
        """Raises UserError where the method cannot spread over so many accelerators."""

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
        """Gradient -> update, of the config's `direction` (AdamW) and learning rates."""

    def validate(self, state: TrainState, devices: Devices) -> tuple[ModelState, dict[str, float]]:
        """(the state with fresh running statistics, metrics by name) on the split "valid"."""

    def exchanged_bytes(self, num_devices: int) -> dict[str, int]:
        """Bytes that each of `num_devices` gives to the method's own collectives in a step, by
        purpose; gradients and batch statistics are not among them (`train/collectives.py`)."""

    def diverges_above(self, reference_loss: float) -> float:
        """The smoothed loss above which a run has diverged, from the mean loss of its first steps
        (`osteojax.train.health`)."""

    def exports(self) -> Mapping[str, Export]:
        """What `osteojax export --what` can write of a run, by that name."""


class Devices(Protocol):
    """What an objective uses of the devices that it validates on
    (`osteojax.train.parallel.DataParallel`)."""

    @property
    def num_devices(self) -> int:
        """Accelerators, of all processes together."""

    def map_forward(self, function: Callable) -> Callable:
        """(variables, share of batch) -> outputs by example; gives NumPy arrays [B, ...]."""

    def map_reduce(self, function: Callable) -> Callable:
        """(variables, share of batch) -> values that are equal on all devices."""

    def put_whole(self, batch: dict[str, np.ndarray]) -> Any:
        """A global batch on the host -> the same, spread over the devices."""

    def replicate(self, tree: Any) -> Any:
        """Arrays -> the same values on every device, in buffers of their own."""


@dataclasses.dataclass(frozen=True)
class Described:
    """What `build` may be given where the shards of a cohort are not at hand (export, costs).

    Attributes:
      manifest: of the prepared folder.
      directory: that messages name.
    """

    manifest: Manifest
    directory: Path


def load(config: ConfigDict, cohort: PreparedCohort | Described) -> Objective:
    """The objective that `config.objective.name` names. A typo lists the choices."""
    module = chosen_module("objective.name", config.objective.name, __name__)
    return module.build(config, cohort)


def ten_times(reference_loss: float) -> float:
    """`Objective.diverges_above` where losses start at chance, well above zero: a bad batch or an
    unlucky restart never gets near ten times that."""
    return 10.0 * abs(reference_loss)
