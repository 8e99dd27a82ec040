"""VICReg (Bardes, Ponce, LeCun, ICLR 2022): members of a pool get equal embeddings (invariance);
variance and covariance terms prevent collapse and redundancy. There are no negatives."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from osteojax.errors import UserError
from osteojax.models.heads import Projector
from osteojax.objectives.pairs import Method, Outputs, PairObjective, ProjectedModel, count_views
from osteojax.types import AXIS, Metrics, Params

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort

GAMMA = 1.0
"""Standard deviation that every dimension should have (eq. 1)."""
EPSILON = 1e-4
"""Epsilon of the square root in eq. 2."""


def vicreg_terms(projection_BVD: Array, axis_name: str | None) -> dict[str, Array]:
    """The three terms over the global batch, f[] each, equal on all devices.

    Args:
      projection_BVD: f[B, V, D], not normalised; B is this device's share of the global batch of G.
      axis_name: mapped axis that the batch is spread over; None on one device.

    Returns:
      invariance: squared distance of two views, averaged over pairs of views and over dimensions.
        Eq. 5 sums over dimensions; the authors' code, to which their weights belong, averages.
      variance (eq. 1) and covariance (eq. 3 and 4): summed over the views.
    """

    def over_devices(local: Array) -> Array:
        return local if axis_name is None else lax.psum(local, axis_name)

    num_local, num_views, dim = projection_BVD.shape
    total = num_local if axis_name is None else num_local * lax.axis_size(axis_name)
    centred_BVD = projection_BVD - over_devices(jnp.sum(projection_BVD, axis=0)) / total
    products_VDD = over_devices(jnp.einsum("bvi,bvj->vij", centred_BVD, centred_BVD))
    covariance_VDD = products_VDD / (total - 1)
    variance_VD = jnp.diagonal(covariance_VDD, axis1=1, axis2=2)
    missing_VD = jax.nn.relu(GAMMA - jnp.sqrt(variance_VD + EPSILON))
    pairs = list(itertools.combinations(range(num_views), 2))
    one, other = ([pair[side] for pair in pairs] for side in (0, 1))
    squared = jnp.sum((projection_BVD[:, one] - projection_BVD[:, other]) ** 2)
    return {
        "invariance": over_devices(squared) / (total * len(pairs) * dim),
        "variance": jnp.sum(missing_VD) / dim,
        "covariance": (jnp.sum(covariance_VDD**2) - jnp.sum(variance_VD**2)) / dim,
    }


def build(config: ConfigDict, cohort: PreparedCohort) -> PairObjective:
    """The objective of `config`; see `osteojax.objectives`."""
    settings = config.objective
    if config.batch_size < 2:
        raise UserError("objective.name=vicreg needs a batch_size of 2 or more: it has a variance.")

    def model(backbone: nn.Module, axis_name: str | None) -> nn.Module:
        """The paper's expander has three layers of 8,192; ours is the projector of the other
        methods, two layers of the config's sizes, without its normalisation."""
        sizes = settings.projector_dim, settings.projection_dim
        return ProjectedModel(backbone, Projector(*sizes, axis_name, unit=False))

    def loss(params: Params, carried: Outputs, outputs: Outputs) -> tuple[Array, Outputs, Metrics]:
        """Eq. 6."""
        terms = vicreg_terms(outputs["projection"], AXIS)
        weights = {name: settings[f"{name}_weight"] for name in terms}
        return sum(weights[name] * terms[name] for name in terms), {}, terms

    def exchanged_bytes(num_devices: int) -> dict[str, int]:
        """Means of each view, forward and backward, its covariance, and the invariance."""
        dim = settings.projection_dim
        return {"covariance": 4 * count_views(config) * (2 * dim + dim**2), "losses": 4}

    return PairObjective(config, cohort, Method(model, loss, exchanged_bytes))
