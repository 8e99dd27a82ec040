"""TP-SwAV: swapped prediction between two members of a vertebra's texture pool.

Paper, section 2.1 and eq. 1; Caron et al. 2020. What the paper leaves open (sizes, temperature,
queue, freeze, diversity) is a field of the config, with the defaults of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from osteojax.data import vertebrae
from osteojax.data.augment import augment, network_input
from osteojax.data.online import online_texture
from osteojax.data.views import Supervised, pair_view
from osteojax.errors import UserError
from osteojax.models import build_backbone
from osteojax.models.heads import Projector, Prototypes, l2_normalise
from osteojax.objectives import ten_times
from osteojax.objectives.embedding import image_batch_statistics, run_over
from osteojax.objectives.encoder import encoder_exports
from osteojax.ops.sinkhorn import sinkhorn
from osteojax.types import AXIS, Batch, Export, Metrics, ModelState, Params, TrainState

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort
    from osteojax.objectives import Devices


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
        return {
            "embedding": embedding,
            "projection": projection,
            "scores": self.prototypes(projection),
        }

    def scores(self, projection: Array) -> Array:
        """f32[B, D] -> f32[B, K]."""
        return self.prototypes(projection)


def swapped_prediction(scores_BVK: Array, targets_BVK: Array, temperature: float) -> Array:
    """Eq. 1, averaged over this device's examples: cross-entropy of each view's prediction against
    the other's assignment, summed over both directions. f32[]; 2 ln K where nothing is learnt."""
    log_p_BVK = jax.nn.log_softmax(scores_BVK.astype(jnp.float32) / temperature, axis=-1)
    swapped_BVK = targets_BVK[:, ::-1]
    return -jnp.mean(jnp.sum(swapped_BVK * log_p_BVK, axis=(1, 2)))


def prototype_diversity(vectors_KD: Array) -> Array:
    """mean over i < j of relu(c_i . c_j)^2: pushes prototypes to at least a right angle. f32[].

    The paper only says that a regulariser ensures diversity (section 2.1).
    """
    unit_KD = l2_normalise(vectors_KD)
    cosines_KK = jnp.maximum(unit_KD @ unit_KD.T, 0.0)
    k = vectors_KD.shape[0]
    return (jnp.sum(cosines_KK**2) - jnp.sum(jnp.diagonal(cosines_KK) ** 2)) / (k * (k - 1))


class SwAV:
    """An `osteojax.objectives.Objective`."""

    diverges_above = staticmethod(ten_times)

    def __init__(self, config: ConfigDict, cohort: PreparedCohort) -> None:
        self.config, self.cohort = config, cohort
        settings = config.objective
        self._online = online_texture(config.data.textures, cohort)
        self.view: Callable = pair_view(config.data.pairs, self._online is not None)
        self.model = SwAVModel(
            backbone=build_backbone(config.model, AXIS),
            projector=Projector(settings.projector_dim, settings.prototype_dim, AXIS),
            prototypes=Prototypes(settings.num_prototypes, settings.prototype_dim),
        )
        # A batch of 8 K spreads over the prototypes by itself (docs/method.md).
        wants_queue = config.batch_size < 8 * settings.num_prototypes
        self.queue_size = settings.queue_size if wants_queue else 0
        if self.queue_size and self.queue_size < config.batch_size:
            raise UserError(
                f"objective.queue_size {self.queue_size} is below batch_size {config.batch_size}. "
                "Raise it, or set it to 0 for no queue."
            )
        self._apply: Callable[..., Any] = self.model.apply
        self._told: set[str] = set()
        self._map_affine = jnp.asarray(vertebrae.about(cohort.manifest).map_affine())

    def training_rows(self) -> np.ndarray:
        """Vertebrae of training patients; those with a label only where `data.labelled_too`."""
        labelled = None if self.config.data.labelled_too else False
        return self.cohort.rows("train", labelled=labelled)

    def init(self, key: Array, batch: Batch) -> tuple[Params, ModelState]:
        """Parameters and state for batches shaped like `batch` (its values are not used)."""
        unbound = self.model.clone(
            backbone=self.model.backbone.clone(axis_name=None),
            projector=self.model.projector.clone(axis_name=None),
        )
        space = jax.eval_shape(self._members, batch).shape[2:]
        x = self._input(jnp.zeros((2, *space), jnp.uint8), jnp.zeros(2, jnp.int32))
        variables = jax.jit(partial(unbound.init, train=False))(key, x, jnp.zeros(2, jnp.int32))
        state = {
            "batch_stats": variables["batch_stats"],
            # Statistics of the image member, for whoever takes the encoder from here.
            "image_batch_stats": variables["batch_stats"],
            "initial_hu_probe": jnp.float32(jnp.nan),
        }
        if self.queue_size:
            dim = self.config.objective.prototype_dim
            state["queue"] = jnp.zeros((self.queue_size, 2, dim), jnp.float32)
            state["queue_filled"] = jnp.int32(0)
        return variables["params"], state

    def _input(self, codes: Array, map_ids: Array) -> Array:
        return network_input(codes, map_ids, self._map_affine, self.config.model.rank)

    def _members(self, batch: Batch) -> Array:
        """uint8[B, V, D, H, W]: the members of the pool that a batch shows, as read or as made."""
        if self._online and "image" in batch:
            return self._online.members(batch["image"], batch["map_ids"])
        return batch["codes"]

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, tuple[ModelState, Metrics]]:
        """Eq. 1 plus the diversity term, over the global batch."""
        settings = self.config.objective
        codes_BVDHW = augment(self._members(batch), batch["index"], key, self.config.data.augment)
        views = codes_BVDHW.shape[0], codes_BVDHW.shape[1]
        # Both views in one pass: one set of batch statistics, one large matrix product.
        map_ids = batch["map_ids"].reshape(-1)
        x = self._input(codes_BVDHW.reshape(-1, *codes_BVDHW.shape[2:]), map_ids)
        outputs, updated = self._apply(
            {"params": params, "batch_stats": model_state["batch_stats"]},
            x,
            map_ids,
            train=True,
            mutable=["batch_stats"],
        )
        projection_BVD = outputs["projection"].reshape(*views, -1)
        scores_BVK = outputs["scores"].reshape(*views, -1)
        targets_BVK = self._assign(params, model_state, scores_BVK)
        swapped = lax.pmean(swapped_prediction(scores_BVK, targets_BVK, settings.temperature), AXIS)
        diversity = prototype_diversity(params["prototypes"]["vectors"])
        new_state = {
            **model_state,
            "batch_stats": updated["batch_stats"],
            **self._push(model_state, projection_BVD),
        }
        share_K = lax.pmean(jnp.mean(targets_BVK, axis=(0, 1)), AXIS)
        metrics = {
            "swapped_prediction": swapped / 2,  # per view: to be read beside ln K
            "ln_k": jnp.log(jnp.float32(settings.num_prototypes)),
            "prototype_diversity": diversity,
            "prototype_perplexity": jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share_K, share_K))),
        }
        return swapped + settings.diversity_weight * diversity, (new_state, metrics)

    def _assign(self, params: Params, model_state: ModelState, scores_BVK: Array) -> Array:
        """Q of eq. 1 for both views, f32[B, V, K]; entries of the queue take part once it is full.

        They were embedded by older encoders, so they shape the assignment and are never predicted.
        """
        settings = self.config.objective

        def assign(scores_NK: Array) -> Array:
            return sinkhorn(
                scores_NK,
                epsilon=settings.sinkhorn_epsilon,
                num_iterations=settings.sinkhorn_iterations,
                axis_name=AXIS,
            )

        local = scores_BVK.shape[0]
        views = range(scores_BVK.shape[1])
        plain = jnp.stack([assign(scores_BVK[:, v]) for v in views], axis=1)
        if not self.queue_size:
            return plain
        # Each device takes its share of the queue, so that sums over the axis count it once.
        share = self.queue_size // lax.axis_size(AXIS)
        queue_QVD = lax.dynamic_slice_in_dim(
            model_state["queue"], lax.axis_index(AXIS) * share, share
        )
        queue_scores_QVK = self._apply({"params": params}, queue_QVD, method="scores")
        both = jnp.concatenate([scores_BVK, queue_scores_QVK], axis=0)
        queued = jnp.stack([assign(both[:, v])[:local] for v in views], axis=1)
        return jnp.where(model_state["queue_filled"] >= self.queue_size, queued, plain)

    def _push(self, model_state: ModelState, projection_BVD: Array) -> dict[str, Array]:
        """Newest projections of the global batch first, oldest dropped; equal on all devices."""
        if not self.queue_size:
            return {}
        local = lax.stop_gradient(projection_BVD)
        total = local.shape[0] * lax.axis_size(AXIS)
        place = jnp.zeros((total, *local.shape[1:]), local.dtype)
        start = lax.axis_index(AXIS) * local.shape[0]
        place = lax.dynamic_update_slice_in_dim(place, local, start, axis=0)
        newest = lax.psum(place, AXIS)  # zeros elsewhere: an exact gather
        queue = jnp.concatenate([newest, model_state["queue"][:-total]], axis=0)
        filled = jnp.minimum(model_state["queue_filled"] + total, self.queue_size)
        return {"queue": queue, "queue_filled": filled}

    def check_devices(self, num_devices: int) -> None:
        """Raises UserError if the queue does not divide over the devices."""
        if self.queue_size % num_devices:
            raise UserError(
                f"objective.queue_size {self.queue_size} does not divide by {num_devices} devices. "
                f"Choose a multiple of {num_devices}."
            )

    def exchanged_bytes(self) -> dict[str, int]:
        """Sinkhorn: a maximum and a sum of K for each iteration and view, with and without the
        queue. Queue: the projections of the global batch, both views. Losses: swapped prediction
        and the shares of the prototypes."""
        settings, views = self.config.objective, 2
        assignments = views * (2 if self.queue_size else 1)
        per_iteration = 2 * 4 * settings.num_prototypes
        queue = views * self.config.batch_size * settings.prototype_dim * 4
        return {
            "sinkhorn": assignments * settings.sinkhorn_iterations * per_iteration,
            "queue": queue if self.queue_size else 0,
            "losses": 4 + 4 * settings.num_prototypes,
        }

    def optimizer(
        self, direction: optax.GradientTransformation, schedule: optax.Schedule
    ) -> optax.GradientTransformation:
        """Prototypes stand still, undecayed, for the first `freeze_prototypes_steps`; their
        moments start when they do."""
        freeze = self.config.objective.freeze_prototypes_steps
        frozen = optax.conditionally_mask(direction, lambda step: step >= freeze)

        def label(params: Params) -> dict[str, str]:
            return {name: "frozen" if name == "prototypes" else "free" for name in params}

        return optax.chain(
            optax.multi_transform({"free": direction, "frozen": frozen}, label),
            optax.scale_by_learning_rate(schedule),
        )

    def validate(self, state: TrainState, devices: Devices) -> tuple[ModelState, dict[str, float]]:
        """Diagnostics of docs/method.md, on validation vertebrae; see `diagnostics`.

        Returns:
          (model state with fresh `image_batch_stats`, metrics).
        """
        from osteojax.objectives import diagnostics

        if not hasattr(self, "_pair_forward"):
            self._pair_forward = devices.map_forward(self._forward_pair)
            self._statistics = devices.map_reduce(self._train_mode_statistics)
        train = self.cohort.rows("train")
        statistics = image_batch_statistics(
            self._statistics,
            state.params,
            state.model_state["batch_stats"],
            self.cohort,
            train,
            Supervised(),
            devices,
            self.config.batch_size,
        )
        model_state = {**state.model_state, "image_batch_stats": statistics}
        image = self._run(state.params, statistics, Supervised(), devices)
        pairs = self._run_pairs(state, devices)
        metrics = diagnostics.assignment_metrics(self.cohort, pairs, self.config.objective)
        metrics |= diagnostics.probe_metrics(self.cohort, *image)
        initial = float(model_state["initial_hu_probe"])
        diagnostics.warn(metrics, initial, self._told)
        if np.isnan(initial) and "hu_probe_r2" in metrics:
            model_state["initial_hu_probe"] = jnp.float32(metrics["hu_probe_r2"])
        return devices.replicate(model_state), metrics

    def exports(self) -> dict[str, Export]:
        """The encoder alone: there are no heads."""
        return encoder_exports(self.config, self.cohort.manifest)

    def _run(self, params: Params, statistics: Any, view: Callable, devices: Devices):
        """(train rows, their embeddings, validation rows, their embeddings), image member."""
        variables = {"params": params, "batch_stats": statistics}
        found: list[np.ndarray] = []
        for split in ("train", "valid"):
            rows = self.cohort.rows(split, labelled=True)
            outputs = run_over(
                self.cohort,
                rows,
                view,
                self._pair_forward,
                variables,
                devices,
                self.config.batch_size,
                f"embedding {split}",
            )
            found += [rows, outputs["embedding"][:, 0]]
        return found

    def _run_pairs(self, state: TrainState, devices: Devices) -> dict[str, np.ndarray]:
        rows = self.cohort.rows("valid")
        variables = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
        outputs = run_over(
            self.cohort,
            rows,
            self.view,
            self._pair_forward,
            variables,
            devices,
            self.config.batch_size,
            "validation pairs",
        )
        return {"rows": rows, **outputs}

    def _forward_pair(self, variables: Any, batch: Batch) -> dict[str, Array]:
        codes, map_ids = self._members(batch), batch["map_ids"]
        flat_ids = map_ids.reshape(-1)
        x = self._input(codes.reshape(-1, *codes.shape[2:]), flat_ids)
        outputs = self._apply(variables, x, flat_ids, train=False)
        shaped = {k: outputs[k].reshape(*map_ids.shape, -1) for k in ("embedding", "scores")}
        return {**shaped, "map_ids": map_ids}

    def _train_mode_statistics(self, variables: Any, batch: Batch) -> Any:
        map_ids = batch["map_ids"][:, 0]
        x = self._input(batch["codes"][:, 0], map_ids)
        _, updated = self._apply(variables, x, map_ids, train=True, mutable=["batch_stats"])
        return updated["batch_stats"]


def build(config: ConfigDict, cohort: PreparedCohort) -> SwAV:
    """The objective of `config`; see `osteojax.objectives`."""
    return SwAV(config, cohort)
