"""SimCLR (Chen et al. 2020): members of one vertebra's pool are positives, others negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from osteojax.models.heads import Projector
from osteojax.objectives.pairs import Method, Outputs, PairObjective, ProjectedModel, count_views
from osteojax.types import AXIS, Metrics, Params

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort


def nt_xent(projection_BVD: Array, temperature: float, axis_name: str | None) -> Array:
    """NT-Xent (eq. 1) of this device's B V views against those of the global batch of G, f[].

    A view's positives are the other views of its vertebra; with more than two views, the loss is
    averaged over them. Its negatives are all views of other vertebrae. The loss is ln(G V - 1) if
    nothing is learnt.

    Args:
      projection_BVD: f[B, V, D] unit rows; B is this device's share of the global batch.
      temperature: of the cosines.
      axis_name: mapped axis that the batch is spread over; None on one device.
    """
    num_local, num_views, dim = projection_BVD.shape
    everyone_GVD, first = projection_BVD, jnp.int32(0)
    if axis_name is not None:
        everyone_GVD = lax.all_gather(projection_BVD, axis_name, tiled=True)
        first = lax.axis_index(axis_name) * num_local
    everyone_MD = everyone_GVD.reshape(-1, dim)  # the V views of a vertebra are adjacent
    scores_NM = projection_BVD.reshape(-1, dim) @ everyone_MD.T / temperature
    view_M = jnp.arange(len(everyone_MD))
    own_N = first * num_views + jnp.arange(num_local * num_views)
    is_itself_NM = own_N[:, None] == view_M
    is_positive_NM = (own_N[:, None] // num_views == view_M // num_views) & ~is_itself_NM
    log_p_NM = jax.nn.log_softmax(jnp.where(is_itself_NM, -jnp.inf, scores_NM), axis=-1)
    positives_N = jnp.sum(jnp.where(is_positive_NM, log_p_NM, 0.0), axis=-1) / (num_views - 1)
    return -jnp.mean(positives_N)


def build(config: ConfigDict, cohort: PreparedCohort) -> PairObjective:
    """The objective of `config`; see `osteojax.objectives`."""
    settings = config.objective

    def model(backbone: nn.Module, axis_name: str | None) -> nn.Module:
        sizes = settings.projector_dim, settings.projection_dim
        return ProjectedModel(backbone, Projector(*sizes, axis_name))

    def loss(params: Params, carried: Outputs, outputs: Outputs) -> tuple[Array, Outputs, Metrics]:
        projection_BVD = outputs["projection"]
        loss = lax.pmean(nt_xent(projection_BVD, settings.temperature, AXIS), AXIS)
        num_views = config.batch_size * projection_BVD.shape[1]
        return loss, {}, {"nt_xent": loss, "chance": jnp.log(jnp.float32(num_views - 1))}

    def exchanged_bytes(num_devices: int) -> dict[str, int]:
        """Forward, each device sends its projections; backward, gradients of all projections."""
        projections = 4 * config.batch_size * count_views(config) * settings.projection_dim
        return {"projections": projections // num_devices + projections, "losses": 4}

    return PairObjective(config, cohort, Method(model, loss, exchanged_bytes))
