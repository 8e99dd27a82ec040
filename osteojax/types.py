"""Types that several packages share: batches, metrics, the training state, exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
from jax import Array

AXIS = "data"
"""Name of the mesh axis that every batch is sharded over."""

Batch = dict[str, Array]
"""One batch, leading axis B (this device's share inside a step, the global batch outside).

  index: i32[B] row of `vertebrae.csv`; all randomness of an example is keyed by it.
  codes: uint8[B, V, D, H, W] stored codes of V members of the pool, one per view.
  image: uint8[B, D, H, W], instead of codes where the members are made on the device.
  map_ids: i32[B, V] which member each view shows, as a position in `vertebrae.POOL`.
  corners: i32[B, N, 3] for views inside the body: first voxel of each crop in the shown window.

For supervision also:

  label: i32[B] osteoporosis 1 / 0, -1 where missing.
  bmd: f32[B] g/cm^2, NaN where missing.
  level: i32[B] class 0-17.
  device: i32[B] index into the manifest's devices.
"""

Metrics = dict[str, Array]
"""Name -> scalar, already averaged or summed over all devices."""

Params = Any
ModelState = Any
"""State of a model that has no gradient: running statistics, queues."""


@flax.struct.dataclass
class TrainState:
    """The state of a run, saved and restored as one.

    Attributes:
      step: i32[] number of updates done.
      params: float32 parameters.
      model_state: running statistics and queues, as the objective defines them.
      opt_state: state of the optimiser.
      ema_params: exponential moving average of params, or None.
    """

    step: Array
    params: Params
    model_state: ModelState
    opt_state: Any
    ema_params: Params | None = None


@dataclasses.dataclass(frozen=True)
class Export:
    """One thing that `osteojax export --what` writes of a run, as its objective describes it.

    Attributes:
      programs: role -> function (variables, *inputs) -> outputs by name. "program" predicts;
        others ("attention") take the same inputs. Variables are what `variables` gives.
      variables: (params, model_state) -> the variables that are written, {"params": ..., ...}.
      inputs: name -> description for model.json; objects with a "shape" (["b", 96, 96, 96]) and a
        "dtype" are the programs' inputs, in this order.
      describe: name of an output -> its description for model.json, without shape and dtype.
      facts: further fields of model.json; `kind` among them, the kind of data.
      decides: whether it carries what `osteojax evaluate` fitted on validation (thresholds).
    """

    programs: Mapping[str, Callable[..., dict[str, Array]]]
    variables: Callable[[Params, ModelState], dict[str, Any]]
    inputs: Mapping[str, Any]
    describe: Callable[[str], dict[str, Any]]
    facts: Mapping[str, Any]
    decides: bool = False
