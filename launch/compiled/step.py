"""The training step of a config, lowered for devices that are not attached."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from launch.benchmarks.experiment import Experiment, stand_in_cohort
from launch.compiled.chips import Chip
from launch.compiled.figures import Figures, compiled_figures
from osteojax.train.costs import StepCost, step_cost
from osteojax.train.parallel import DataParallel
from osteojax.types import AXIS


def compiler(
    config: Any, size: int, chip: Chip, found: list[jax.Device]
) -> Callable[[int], tuple[Figures, str]]:
    """A function: global batch -> figures and text of the step on one device (`compiled_figures`).

    Args:
      config: of configs/*.py.
      size: edge of a box in voxels.
      chip, found: the kind of the devices, and the devices of the step.
    """
    cohort = stand_in_cohort(size)

    def compile_one(batch: int) -> tuple[Figures, str]:
        own = copy.deepcopy(config)
        with own.unlocked():
            own.batch_size = batch
        cost = cost_of_one_device(own, cohort, len(found))
        lower = functools.partial(lowered_step, own, cohort, found)
        return compiled_figures(lower, chip, cost, own.model.dtype)

    return compile_one


def lowered_step(config: Any, cohort: Any, found: list[jax.Device]) -> Any:
    """The program that training dispatches for one step, for some devices.

    Args:
      config: of configs/*.py; its `batch_size` is global.
      cohort: a stand-in (`launch.benchmarks.experiment.stand_in_cohort`).
      found: the devices of the step, all of them.

    Returns:
      a `jax.stages.Lowered`.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    mesh = Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,))
    experiment = Experiment(config, cohort, devices=DataParallel(mesh, config.engine))
    batch, count = experiment.batch_shapes(), len(found)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda: experiment.initial_state(batch))
    if config.engine == "pmap":
        shares = {
            name: jax.ShapeDtypeStruct((count, x.shape[0] // count, *x.shape[1:]), x.dtype)
            for name, x in batch.items()
        }
        return experiment.single_step().lower(state, shares, key)
    draws = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in batch.items()}
    step = experiment.program(lambda data, draws: draws)
    return step.lower(_at(mesh, state), None, _at(mesh, draws, None, AXIS), _at(mesh, key))


def cost_of_one_device(config: Any, cohort: Any, devices: int) -> StepCost:
    """Our own count of the step on one of some devices, that share the batch."""
    share = copy.deepcopy(config)
    with share.unlocked():
        share.batch_size = config.batch_size // devices
    return step_cost(share, cohort, Experiment(share, cohort, 1).batch_shapes())


def _at(mesh: Mesh, tree: Any, *spec: str | None) -> Any:
    """Shapes and dtypes -> the same, spread over the mesh by the spec."""
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
