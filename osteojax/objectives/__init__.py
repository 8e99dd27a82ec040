"""What is minimised. `objective.name = "swav"` in a config loads `osteojax/objectives/swav.py`.

An objective module has `build(config, cohort) -> objective`; an objective has

  view                      callable (cohort, row, rng) -> example            (data/views.py)
  training_rows() -> i64[N]
  init(key, batch) -> (params, model_state)
  loss(params, model_state, batch, key, step) -> (loss, (model_state, metrics))
      per device, inside a step mapped over the axis `types.AXIS`; the loss and the metrics it
      returns are already reduced over it
  optimizer(direction, schedule) -> optax.GradientTransformation
  validate(state, devices, progress) -> (model_state, metrics)

and owns everything about its method. The loop and the step know none of it.

A module here is imported where there is nothing but jax, flax and optax (`osteojax benchmark train`
on a machine without a registry): what only validation needs is imported where it validates.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from osteojax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort

_SUPPORT = {"embedding", "diagnostics"}


def load(config: ConfigDict, cohort: PreparedCohort):
    """The objective that `config.objective.name` names. A typo lists the choices."""
    name = config.objective.name
    choices = {module.name for module in pkgutil.iter_modules(__path__)} - _SUPPORT
    if name not in choices:
        raise UserError(f"objective.name is {name!r}; choose one of {', '.join(sorted(choices))}.")
    return importlib.import_module(f"osteojax.objectives.{name}").build(config, cohort)
