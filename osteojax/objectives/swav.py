"""TP-SwAV: swapped prediction between two members of a vertebra's texture pool.

Paper, section 2.1 and eq. 1; Caron et al. 2020. Values that the paper does not give are fields of
the config, with the defaults of docs/method.md.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from osteojax.errors import UserError
from osteojax.models.heads import Projector, Prototypes, l2_normalise
from osteojax.objectives.pairs import Method, Outputs, PairObjective, count_views
from osteojax.ops.sinkhorn import sinkhorn_of_each
from osteojax.types import AXIS, Metrics, Params

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort


class SwAVModel(nn.Module):
    """Backbone -> projector -> prototypes."""

    backbone: nn.Module
    projector: nn.Module
    prototypes: nn.Module

    def __call__(self, x: Array, map_ids: Array, *, train: bool) -> dict[str, Array]:
        """f32[B, *space, 1], i32[B] -> embedding f32[B, F], projection f32[B, D] (unit rows),
        scores f32[B, K] (cosines)."""
        embedding = self.backbone(x, train=train, map_id=map_ids)["pooled"]
        projection = self.projector(embedding, train=train)
        scores = self.prototypes(projection)
        return {"embedding": embedding, "projection": projection, "scores": scores}


def swapped_prediction(scores_BVK: Array, targets_BVK: Array, temperature: float) -> Array:
    """Eq. 1, averaged over this device's examples: cross-entropy of each view's prediction against
    the other's assignment, summed over both directions; with more than two views, averaged over
    pairs of them. f32[]; 2 ln K if nothing is learnt."""
    log_p_BVK = jax.nn.log_softmax(scores_BVK.astype(jnp.float32) / temperature, axis=-1)
    losses = []
    for s, t in itertools.combinations(range(scores_BVK.shape[1]), 2):
        both = slice(s, t + 1, t - s)
        swapped_B2K = targets_BVK[:, both][:, ::-1]
        losses.append(-jnp.mean(jnp.sum(swapped_B2K * log_p_BVK[:, both], axis=(1, 2))))
    return sum(losses[1:], losses[0]) / len(losses)


def prototype_diversity(vectors_KD: Array) -> Array:
    """Mean over i < j of relu(c_i . c_j)^2, f32[]: pushes prototypes apart to right angles. The
    paper only says that a regulariser ensures diversity (section 2.1)."""
    unit_KD = l2_normalise(vectors_KD)
    cosines_KK = jnp.maximum(unit_KD @ unit_KD.T, 0.0)
    k = vectors_KD.shape[0]
    return (jnp.sum(cosines_KK**2) - jnp.sum(jnp.diagonal(cosines_KK) ** 2)) / (k * (k - 1))


def decided(scores_BVK: Array, targets_BVK: Array) -> Metrics:
    """How decided the assignment of the global batch is; equal on all devices.

    The perplexity of soft assignments does not show it, because assignments that are nearly uniform
    use every prototype a little (docs/method.md, "SSL diagnostics").

    Returns:
      prototypes_used: number of prototypes that are nearest to a view of an example, 1 to K.
      largest_assignment: the largest entry of Q, 1 / K to 1.
    """
    num_prototypes = scores_BVK.shape[-1]
    nearest_BV = jnp.argmax(lax.stop_gradient(scores_BVK), axis=-1)
    used_K = jnp.max(jax.nn.one_hot(nearest_BV, num_prototypes), axis=(0, 1))
    used_K, largest = lax.pmax((used_K, jnp.max(targets_BVK)), AXIS)
    return {"prototypes_used": jnp.sum(used_K), "largest_assignment": largest}


class SwAV:
    """Loss, queue and prototypes of a run: the parts of its `pairs.Method`.

    Attributes:
      queue_size: entries of the queue; 0 for no queue.
      queue_waits: embeddings that must have passed before the queue's entries take part in
        assignments: a full queue, and `queue_start_steps` batches.
    """

    def __init__(self, settings: ConfigDict, batch_size: int, num_views: int = 2) -> None:
        """settings: `config.objective`; batch_size: global; num_views: V, of every example."""
        self._settings, self._batch_size, self._num_views = settings, batch_size, num_views
        # A batch of 8 K is large enough to be spread over the prototypes (docs/method.md).
        wants_queue = batch_size < 8 * settings.num_prototypes
        self.queue_size = settings.queue_size if wants_queue else 0
        if self.queue_size and self.queue_size < batch_size:
            raise UserError(
                f"objective.queue_size {self.queue_size} is below batch_size {batch_size}. "
                "Raise it, or set it to 0 for no queue."
            )
        # Absent in a config of 0.2, whose queue took part as soon as it was full.
        self.queue_waits = max(self.queue_size, settings.get("queue_start_steps", 0) * batch_size)

    def model(self, backbone: nn.Module, axis_name: str | None) -> nn.Module:
        sizes = self._settings.projector_dim, self._settings.prototype_dim
        return SwAVModel(backbone, Projector(*sizes, axis_name), self._prototypes())

    def _prototypes(self) -> nn.Module:
        settings = self._settings
        return Prototypes(settings.num_prototypes, settings.prototype_dim, name="prototypes")

    def carried(self) -> Outputs:
        """The empty queue."""
        if not self.queue_size:
            return {}
        shape = self.queue_size, self._num_views, self._settings.prototype_dim
        return {"queue": jnp.zeros(shape, jnp.float32), "queue_filled": jnp.int32(0)}

    def loss(
        self, params: Params, carried: Outputs, outputs: Outputs
    ) -> tuple[Array, Outputs, Metrics]:
        """Eq. 1 plus the diversity term, over the global batch."""
        settings, scores_BVK = self._settings, outputs["scores"]
        targets_BVK = self._assign(params, carried, scores_BVK)
        swapped = lax.pmean(swapped_prediction(scores_BVK, targets_BVK, settings.temperature), AXIS)
        diversity = prototype_diversity(params["prototypes"]["vectors"])
        share_K = lax.pmean(jnp.mean(targets_BVK, axis=(0, 1)), AXIS)
        flat = jnp.log(jnp.float32(settings.num_prototypes))
        metrics = {
            "swapped_prediction": swapped / 2,  # per view, to compare with ln K
            "ln_k": flat,
            "loss_over_flat": swapped / 2 / flat,
            "prototype_diversity": diversity,
            "prototype_perplexity": jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share_K, share_K))),
            **decided(scores_BVK, targets_BVK),
        }
        loss = swapped + settings.diversity_weight * diversity
        return loss, self.push(carried, outputs["projection"]), metrics

    def _assign(self, params: Params, carried: Outputs, scores_BVK: Array) -> Array:
        """Q of eq. 1 for every view, f32[B, V, K]. Entries of the queue take part after
        `queue_waits`. Because older encoders embedded them, they affect the assignment but are
        never predicted."""
        settings = self._settings
        epsilon, iterations = settings.sinkhorn_epsilon, settings.sinkhorn_iterations
        assign = partial(
            sinkhorn_of_each, epsilon=epsilon, num_iterations=iterations, axis_name=AXIS
        )
        local, views = scores_BVK.shape[0], scores_BVK.shape[1]
        alone = [scores_BVK[:, v] for v in range(views)]
        if not self.queue_size:
            return jnp.stack(assign(alone), axis=1)
        # Each device uses its share of the queue, so that sums over the axis count it once.
        share = self.queue_size // lax.axis_size(AXIS)
        queue_QVD = lax.dynamic_slice_in_dim(carried["queue"], lax.axis_index(AXIS) * share, share)
        variables = {"params": params["prototypes"]}
        queue_scores_QVK: Any = self._prototypes().apply(variables, queue_QVD)
        both = jnp.concatenate([scores_BVK, queue_scores_QVK], axis=0)
        assigned = assign([*alone, *(both[:, v] for v in range(views))])
        plain = jnp.stack(assigned[:views], axis=1)
        queued = jnp.stack([each[:local] for each in assigned[views:]], axis=1)
        return jnp.where(carried["queue_filled"] >= self.queue_waits, queued, plain)

    def push(self, carried: Outputs, projection_BVD: Array) -> Outputs:
        """The queue with the global batch's projections first and the oldest dropped."""
        if not self.queue_size:
            return {}
        local = lax.stop_gradient(projection_BVD)
        total = local.shape[0] * lax.axis_size(AXIS)
        place = jnp.zeros((total, *local.shape[1:]), local.dtype)
        start = lax.axis_index(AXIS) * local.shape[0]
        place = lax.dynamic_update_slice_in_dim(place, local, start, axis=0)
        newest = lax.psum(place, AXIS)  # other devices add zeros, so this is an exact gather
        queue = jnp.concatenate([newest, carried["queue"][:-total]], axis=0)
        filled = jnp.minimum(carried["queue_filled"] + total, self.queue_waits)
        return {"queue": queue, "queue_filled": filled}

    def check_devices(self, num_devices: int) -> None:
        """Raises UserError if the queue does not divide over the devices."""
        if self.queue_size % num_devices:
            raise UserError(
                f"objective.queue_size {self.queue_size} does not divide by {num_devices} devices. "
                f"Choose a multiple of {num_devices}."
            )

    def exchanged_bytes(self, num_devices: int) -> dict[str, int]:
        settings, views = self._settings, self._num_views
        assignments = views * (2 if self.queue_size else 1)  # without the queue, and with it
        per_iteration = 2 * 4 * settings.num_prototypes  # a maximum and a sum
        projections = views * self._batch_size * settings.prototype_dim * 4
        return {
            "sinkhorn": assignments * settings.sinkhorn_iterations * per_iteration,
            "queue": projections if self.queue_size else 0,
            # The loss and the largest assignment; the prototypes' shares, and which are used
            "losses": 2 * 4 + 2 * 4 * settings.num_prototypes,
        }

    def optimizer(self, direction: optax.GradientTransformation) -> optax.GradientTransformation:
        """Prototypes are frozen, without decay, for the first `freeze_prototypes_steps`; their
        moments start afterwards."""
        freeze = self._settings.freeze_prototypes_steps
        frozen = optax.conditionally_mask(direction, lambda step: step >= freeze)

        def label(params: Params) -> dict[str, str]:
            return {name: "frozen" if name == "prototypes" else "free" for name in params}

        return optax.multi_transform({"free": direction, "frozen": frozen}, label)

    def constrain(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """With `unit_prototypes`, prototypes have unit length after every update, also while they
        are frozen, so that the first update gives it to them.

        A step of Adam has about the same length for any vector, so it turns a long vector less:
        0.001 a coordinate turns the initial vectors of 128 normal coordinates, of length 11, by
        0.001 rad, and unit vectors by 0.011.
        """
        if not self._settings.get("unit_prototypes", False):
            return optimizer

        def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(gradients, state, params)
            vectors = params["prototypes"]["vectors"]
            unit = l2_normalise(vectors + updates["prototypes"]["vectors"])
            return {**updates, "prototypes": {"vectors": unit - vectors}}, state

        return optax.GradientTransformation(optimizer.init, update)

    def diagnose(self, cohort: PreparedCohort, pairs: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of what the prototypes encode (`diagnostics.assignment_metrics`)."""
        from osteojax.objectives import diagnostics

        return diagnostics.assignment_metrics(cohort, pairs, self._settings)


def build(config: ConfigDict, cohort: PreparedCohort) -> PairObjective:
    """The objective of `config`; see `osteojax.objectives`."""
    swav = SwAV(config.objective, config.batch_size, count_views(config))
    method = Method(
        swav.model, swav.loss, swav.exchanged_bytes, swav.carried, swav.optimizer,
        swav.check_devices, swav.diagnose, swav.constrain,
    )  # fmt: skip
    return PairObjective(config, cohort, method)
