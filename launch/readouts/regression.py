"""Regression of numbers of a vertebra from its body crops: the objective of the rows "texture
regression" and "supervised network".

`configs/studies/regression.py` names it. Crops, network, optimiser and probes are those of methods
on pairs (`osteojax.objectives.pairs`); every view predicts the numbers of its vertebra by one
linear layer on the embedding. Only numbers of training patients are known to it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from launch.readouts.vertebrae import map_statistics, truth_of
from launch.studies.cohorts import read_truth
from osteojax.data.vertebrae import POOL
from osteojax.errors import UserError
from osteojax.objectives.pairs import Method, Outputs, PairObjective
from osteojax.types import AXIS, Metrics, Params

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort

COUNTS = {"maps": 2 * (len(POOL) - 1), "spacing": 1}
"""Choices of `objective.targets` -> how many numbers are predicted."""


class _Regressor(nn.Module):
    """Backbone, and a linear layer of T outputs."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, x: Array, map_ids: Array, *, train: bool) -> Outputs:
        """f32[N, *space, 1], i32[N] -> embedding f32[N, F], predicted f32[N, T]."""
        embedding = self.backbone(x, train=train, map_id=map_ids)["pooled"]
        return {"embedding": embedding, "predicted": self.head(embedding.astype(jnp.float32))}


def squared_error(predicted_BVT: Array, targets_BT: Array) -> Array:
    """Mean over vertebrae, views and targets, f[], of the squared error; on one device.

    Args:
      predicted_BVT: f[B, V, T] of every view.
      targets_BT: f[B, T] of the vertebra.
    """
    return jnp.mean(jnp.square(predicted_BVT - targets_BT[:, None]))


def training_targets(settings: ConfigDict, cohort: PreparedCohort) -> np.ndarray:
    """Targets with mean 0 and SD 1 over the training split, NaN in all other rows.

    Args:
      settings: `config.objective`: targets is "maps" (mean and SD over the body of each texture
        map) or "spacing" (log of the true trabecular spacing); truth is the path of the
        simulator's truth.csv, for "spacing".

    Returns:
      f32[N, T], T as in `COUNTS`.
    """
    rows = cohort.rows("train")
    if settings.targets == "maps":
        values = map_statistics(cohort, rows)
    else:
        truth = truth_of(cohort, read_truth(settings.truth))
        values = truth.log_spacing[rows, None]
    targets = np.full((len(cohort), values.shape[1]), np.nan, np.float32)
    targets[rows] = (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)
    return targets


def build(config: ConfigDict, cohort: PreparedCohort) -> PairObjective:
    """The objective of `config`; see `osteojax.objectives`.

    Raises:
      UserError: `objective.targets` is none of `COUNTS`, or `objective.truth` is missing.
    """
    settings: Any = config.objective
    if settings.targets not in COUNTS:
        raise UserError(
            f"objective.targets is {settings.targets!r}; choose one of {', '.join(COUNTS)}."
        )
    if settings.targets == "spacing" and not settings.truth:
        raise UserError(
            "objective.targets=spacing needs --config.objective.truth, the simulator's truth.csv."
        )
    # Read when a step is first traced: an embedding or an export needs no targets.
    targets = functools.cache(lambda: training_targets(settings, cohort))

    def model(backbone: nn.Module, axis_name: str | None) -> nn.Module:
        return _Regressor(backbone, nn.Dense(COUNTS[settings.targets]))

    def loss(params: Params, carried: Outputs, outputs: Outputs) -> tuple[Array, Outputs, Metrics]:
        targets_BT = jnp.asarray(targets())[outputs["index"]]
        error = lax.pmean(squared_error(outputs["predicted"], targets_BT), AXIS)
        return error, {}, {"squared_error": error}

    return PairObjective(config, cohort, Method(model, loss, lambda num_devices: {"losses": 4}))
