"""Shared code of self-supervised methods on several members of a vertebra's texture pool.

A method is a model and a loss (`Method`). The rest is here and in `pair_input.py`: training rows,
what the network sees of a batch, one pass of the network for all views, running statistics of the
image member, embeddings, frozen probes and warnings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from osteojax.data.view_settings import ViewSettings
from osteojax.data.views import View
from osteojax.models import build_backbone
from osteojax.objectives import ten_times
from osteojax.objectives.embedding import image_batch_statistics, run_over
from osteojax.objectives.encoder import encoder_exports
from osteojax.objectives.pair_input import PairInput
from osteojax.train.optim import duration_steps
from osteojax.types import AXIS, Batch, Export, Metrics, ModelState, Params, TrainState

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort
    from osteojax.objectives import Devices

Outputs = dict[str, Array]
"""Outputs of a method's model by name: "embedding" f32[..., F] and those that its loss needs."""


def count_views(config: ConfigDict) -> int:
    """V, the number of views of an example: 2, or `data.views.count`."""
    return ViewSettings.of(config.data).count


@dataclasses.dataclass(frozen=True)
class Method:
    """A self-supervised method.

    Attributes:
      model: (backbone, axis name) -> module, whose call (x f32[N, *space, 1], map_ids i32[N], *,
        train) gives `Outputs` [N, ...].
      loss: (params, carried, outputs [B, V, ...]) -> (loss f32[], carried, metrics), of one
        device's share of the batch and equal on all devices (`Objective.loss`). Beside the model's
        outputs it is given "index" i32[B], the vertebrae's rows of the table.
      exchanged_bytes: as of `Objective`.
      carried: initial value of state that the method keeps between steps, beside the model.
      optimizer: wraps the update direction, which all parameters follow by default.
      check_devices: as of `Objective`; by default every number is supported.
      diagnose: (cohort, {"rows" i64[N], "map_ids" i32[N, 2], outputs [N, 2, ...]}) -> metrics of
        the split "valid", from the pairs that were drawn of it.
      constrain: wraps the whole optimiser, learning rate included, for parameters that must have a
        property after every update, such as unit length.
    """

    model: Callable[[nn.Module, str | None], nn.Module]
    loss: Callable[[Params, Outputs, Outputs], tuple[Array, Outputs, Metrics]]
    exchanged_bytes: Callable[[int], dict[str, int]]
    carried: Callable[[], Outputs] = dict
    optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = (
        lambda direction: direction
    )
    check_devices: Callable[[int], None] = lambda num_devices: None
    diagnose: Callable[[PreparedCohort, dict[str, np.ndarray]], dict[str, float]] = (
        lambda cohort, pairs: {}
    )
    constrain: Callable[[optax.GradientTransformation], optax.GradientTransformation] = (
        lambda optimizer: optimizer
    )


class ProjectedModel(nn.Module):
    """Backbone -> projector: the model of a method that compares projections."""

    backbone: nn.Module
    projector: nn.Module

    def __call__(self, x: Array, map_ids: Array, *, train: bool) -> Outputs:
        """f32[N, *space, 1], i32[N] -> embedding f32[N, F], projection f32[N, D]."""
        embedding = self.backbone(x, train=train, map_id=map_ids)["pooled"]
        return {"embedding": embedding, "projection": self.projector(embedding, train=train)}


class PairObjective:
    """The `osteojax.objectives.Objective` of a `Method`."""

    diverges_above = staticmethod(ten_times)

    def __init__(self, config: ConfigDict, cohort: PreparedCohort, method: Method) -> None:
        self.config, self.cohort, self.method = config, cohort, method
        self._input = PairInput(config, cohort)
        self.view: View = self._input.view
        self.training_rows = self._input.training_rows
        self.model = method.model(build_backbone(config.model, AXIS), AXIS)
        self.check_devices, self.exchanged_bytes = method.check_devices, method.exchanged_bytes
        self._warned: set[str] = set()

    def init(self, key: Array, batch: Batch) -> tuple[Params, ModelState]:
        """Parameters and state for batches shaped like `batch` (its values are not used)."""
        model = self.method.model(build_backbone(self.config.model, None), None)
        space = jax.eval_shape(self._input.seen, batch).shape[2:]
        x = self._input.z_scored(jnp.zeros((2, *space), jnp.uint8), jnp.zeros(2, jnp.int32))
        variables = jax.jit(partial(model.init, train=False))(key, x, jnp.zeros(2, jnp.int32))
        batch_stats = variables.get("batch_stats", {})
        return variables["params"], {
            "batch_stats": batch_stats,
            # Statistics of the image member, for runs that start from this encoder.
            "image_batch_stats": batch_stats,
            "initial_hu_probe": jnp.float32(jnp.nan),
            **self.method.carried(),
        }

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, tuple[ModelState, Metrics]]:
        """The method's loss of the augmented members that a batch shows."""
        members = self._input.augmented(batch, key)
        variables = {"params": params, "batch_stats": model_state["batch_stats"]}
        outputs, batch_stats = self._forward(variables, members, batch["map_ids"], train=True)
        outputs = {**outputs, "index": batch["index"]}
        value, carried, metrics = self.method.loss(params, model_state, outputs)
        return value, ({**model_state, "batch_stats": batch_stats, **carried}, metrics)

    def optimizer(
        self, direction: optax.GradientTransformation, schedule: optax.Schedule
    ) -> optax.GradientTransformation:
        wrapped = self.method.optimizer(direction)
        optimizer = optax.chain(wrapped, optax.scale_by_learning_rate(schedule))
        return self.method.constrain(optimizer)

    def validate(self, state: TrainState, devices: Devices) -> tuple[ModelState, dict[str, float]]:
        """The method's diagnostics of pairs, and frozen probes on the image member's embedding.

        Returns:
          (model state with fresh `image_batch_stats`, metrics).
        """
        from osteojax.objectives import diagnostics, probes

        self._map_functions(devices)
        params, stats = state.params, state.model_state["batch_stats"]
        image_stats = image_batch_statistics(
            self._statistics_of, params, stats, self.cohort, self.cohort.rows("train"),
            self._input.image_view(self.cohort), devices, self.config.batch_size,
        )  # fmt: skip
        metrics = self.method.diagnose(self.cohort, self._drawn_pairs(params, stats, devices))
        metrics |= probes.frozen_probes(
            self.cohort,
            lambda rows: self.embeddings(params, image_stats, rows, devices),
            self.config.checkpoint.get("label_probe", "logistic"),
        )
        initial = float(state.model_state["initial_hu_probe"])
        warmed_up = int(state.step) >= self._warmup_steps
        diagnostics.warn(metrics, initial, self._warned, warmed_up=warmed_up)
        if "texture_probe_r" not in metrics:
            probes.warn(self.cohort, self._warned)
        model_state = {**state.model_state, "image_batch_stats": image_stats}
        if np.isnan(initial) and "hu_probe_r2" in metrics:
            model_state["initial_hu_probe"] = jnp.float32(metrics["hu_probe_r2"])
        return devices.replicate(model_state), metrics

    @cached_property
    def _warmup_steps(self) -> int:
        return duration_steps(self.config, "warmup", len(self.training_rows()))

    def embeddings(
        self,
        params: Params,
        image_stats: Any,
        rows: np.ndarray,
        devices: Devices,
        cohort: PreparedCohort | None = None,
    ) -> np.ndarray:
        """Embeddings of vertebrae in evaluation mode: of the image's whole box, or the mean over
        the fixed body crops.

        Args:
          params, image_stats: of a run; the latter is `image_batch_stats` of its model state.
          rows: i64[N] of the cohort.
          devices: the same in every call.
          cohort: another one that was prepared with the same boxes. Its z-scores are made with the
            statistics of the run's own. None: the run's.

        Returns:
          f32[N, F].

        Raises:
          UserError: the other cohort has other boxes.
        """
        self._map_functions(devices)
        cohort = self.cohort if cohort is None else cohort
        variables, size = {"params": params, "batch_stats": image_stats}, self.config.batch_size
        view = self._input.image_view(cohort)
        found = run_over(
            cohort, rows, view, self._embeddings_of, variables, devices, size, "embedding"
        )
        return found["embedding"]

    def exports(self) -> dict[str, Export]:
        """Only the encoder, since there are no heads."""
        return encoder_exports(self.config, self.cohort.manifest)

    def _map_functions(self, devices: Devices) -> None:
        if not hasattr(self, "_outputs_of"):
            self._outputs_of = devices.map_forward(self._evaluated)
            self._embeddings_of = devices.map_forward(self._embedded)
            self._statistics_of = devices.map_reduce(self._updated_statistics)

    def _drawn_pairs(self, params: Params, stats: Any, devices: Devices) -> dict[str, np.ndarray]:
        """Outputs [N, 2, ...] of every pair that the view draws of validation vertebrae, with the
        pairs' rows and map ids."""
        rows, variables = self.cohort.rows("valid"), {"params": params, "batch_stats": stats}
        found = run_over(
            self.cohort, rows, self.view, self._outputs_of, variables, devices,
            self.config.batch_size, "validation",
        )  # fmt: skip
        pairs = {key: out.reshape(-1, 2, *out.shape[2:]) for key, out in found.items()}
        return {"rows": np.repeat(rows, self._input.settings.count // 2), **pairs}

    def _forward(
        self, variables: Any, codes_BVDHW: Array, map_ids_BV: Array, *, train: bool
    ) -> tuple[Outputs, Any]:
        """(outputs [B, V, ...], running statistics). All views go through the network in one pass,
        with common batch statistics."""
        map_ids = map_ids_BV.reshape(-1)
        x = self._input.z_scored(codes_BVDHW.reshape(-1, *codes_BVDHW.shape[2:]), map_ids)
        mutable = ["batch_stats"] if train else False
        found: Any = self.model.apply(variables, x, map_ids, train=train, mutable=mutable)
        outputs, updated = found if train else (found, variables)
        views = map_ids_BV.shape
        shaped = {name: out.reshape(*views, *out.shape[1:]) for name, out in outputs.items()}
        return shaped, updated.get("batch_stats", {})

    def _evaluated(self, variables: Any, batch: Batch) -> Outputs:
        map_ids, seen = batch["map_ids"], self._input.seen(batch)
        outputs, _ = self._forward(variables, seen, map_ids, train=False)
        return {**outputs, "map_ids": map_ids}

    def _embedded(self, variables: Any, batch: Batch) -> Outputs:
        """Embeddings [B, F] of images: the mean over what is seen of a vertebra."""
        seen = self._input.seen(batch)
        outputs, _ = self._forward(variables, seen, _image_maps(seen), train=False)
        return {"embedding": jnp.mean(outputs["embedding"], axis=1, dtype=jnp.float32)}

    def _updated_statistics(self, variables: Any, batch: Batch) -> Any:
        seen = self._input.seen(batch)
        return self._forward(variables, seen, _image_maps(seen), train=True)[1]


def _image_maps(seen_BVDHW: Array) -> Array:
    """i32[B, V]: the map id of the image, for all that is seen."""
    return jnp.zeros(seen_BVDHW.shape[:2], jnp.int32)
