"""Fine-tuning: diagnosis, BMD and position through device-aware experts (paper, eq. 2-4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from osteojax.data import vertebrae
from osteojax.objectives import ten_times
from osteojax.objectives.batch_sight import BatchSight
from osteojax.objectives.diagnosis import (
    attention_program,
    build_model,
    in_units,
    model_export,
    model_variables,
    parted,
)
from osteojax.objectives.embedding import run_over
from osteojax.objectives.encoder import encoder_exports
from osteojax.types import AXIS, Batch, Export, Metrics, ModelState, Params, TrainState

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort
    from osteojax.evaluation import Evaluation
    from osteojax.objectives import Devices


def masked_mean(values_B: Array, valid_B: Array, axis_name: str | None) -> Array:
    """Sum over the global batch divided by its count of valid entries; 0 where there are none.

    Dividing by each device's count would give a device with few labels the weight of one with many.
    """
    total = jnp.sum(jnp.where(valid_B, values_B, 0.0))
    count = jnp.sum(valid_B.astype(jnp.float32))
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1.0)


def multitask_losses(
    outputs: dict[str, Any], targets: dict[str, Any], axis_name: str | None
) -> dict[str, Array]:
    """The three terms of eq. 4, each over the vertebrae that have its label.

    Args:
      outputs: logits f32[B, 2], bmd f32[B] (z-scored), level_logits f32[B, 18].
      targets: label i32[B] (-1 missing), bmd f32[B] (z-scored, NaN missing), level i32[B].

    Returns:
      diagnosis (cross-entropy), bmd (squared error), position (cross-entropy), f32[] each.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    has_label, has_bmd = targets["label"] >= 0, ~jnp.isnan(targets["bmd"])
    # where() must precede the square, because the gradient of a masked NaN is NaN.
    difference = outputs["bmd"] - jnp.where(has_bmd, targets["bmd"], 0.0)
    everyone = jnp.ones_like(has_label)
    diagnosis = cross_entropy(outputs["logits"], jnp.maximum(targets["label"], 0))
    return {
        "diagnosis": masked_mean(diagnosis, has_label, axis_name),
        "bmd": masked_mean(difference**2, has_bmd, axis_name),
        "position": masked_mean(
            cross_entropy(outputs["level_logits"], targets["level"]), everyone, axis_name
        ),
    }


class Multitask:
    """An `osteojax.objectives.Objective`."""

    diverges_above = staticmethod(ten_times)

    def __init__(self, config: ConfigDict, cohort: PreparedCohort) -> None:
        self.config, self.cohort = config, cohort
        about = vertebrae.about(cohort.manifest)
        self._sight = BatchSight(config, cohort)
        self.view: Callable = self._sight.view()
        self.num_scanners = len(about.devices)
        self.model = build_model(config, self.num_scanners, AXIS)
        self._unknown = self.num_scanners - 1
        self._apply: Callable[..., Any] = self.model.apply
        self._bmd_affine = about.bmd_mean, about.bmd_std

    def training_rows(self) -> np.ndarray:
        """Labelled vertebrae of training patients; all of them with `data.unlabelled_too`."""
        labelled = None if self.config.data.unlabelled_too else True
        return self.cohort.rows("train", labelled=labelled)

    def init(self, key: Array, batch: Batch) -> tuple[Params, ModelState]:
        """Parameters and state for batches shaped like `batch` (its values are not used)."""
        model = build_model(self.config, self.num_scanners, None)
        two = {name: jnp.asarray(value[:2]) for name, value in batch.items()}
        seen = self._sight.seen(two, self._sight.scale.get("numbers"))
        devices = jnp.zeros(2, jnp.int32)
        variables = jax.jit(partial(model.init, device_B=devices, train=False))(key, **seen)
        batch_stats = variables.get("batch_stats", {})
        return variables["params"], {"batch_stats": batch_stats, **self._sight.scale}

    def _targets(self, batch: Batch) -> dict[str, Array]:
        mean, std = self._bmd_affine
        return {**batch, "bmd": (batch["bmd"] - mean) / std}

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, tuple[ModelState, Metrics]]:
        """Eq. 4 over the global batch."""
        outputs, updated = self._apply(
            {"params": params, "batch_stats": model_state["batch_stats"]},
            device_B=self._drop_device(batch["device"], batch["index"], key),
            train=True,
            mutable=["batch_stats"],
            **self._sight.seen(batch, model_state.get("numbers"), key),
        )
        losses = multitask_losses(outputs, self._targets(batch), AXIS)
        weights, gate_BN = self.config.objective, outputs["gate"]
        total = (
            weights.diagnosis_weight * losses["diagnosis"]
            + weights.bmd_weight * losses["bmd"]
            + weights.position_weight * losses["position"]
        )
        importance_N = lax.pmean(jnp.mean(gate_BN, axis=0), AXIS)
        if weights.gate_balance_weight:
            # CV^2 of importance (Shazeer et al. 2017, eq. 6); the paper has no such term.
            spread = jnp.var(importance_N) / (jnp.mean(importance_N) ** 2 + 1e-10)
            total = total + weights.gate_balance_weight * spread
        entropy_B = -jnp.sum(jax.scipy.special.xlogy(gate_BN, gate_BN), axis=-1)
        metrics = {
            **losses,
            "gate_entropy": lax.pmean(jnp.mean(entropy_B), AXIS),
            **{f"gate_{i}": importance_N[i] for i in range(gate_BN.shape[1])},
        }
        model_state = {**model_state, "batch_stats": updated.get("batch_stats", {})}
        return total, (model_state, metrics)

    def _drop_device(self, device_B: Array, index_B: Array, key: Array) -> Array:
        """Replaces some scanners by "unknown", so that its embedding is trained."""
        probability = self.config.objective.device_dropout
        device_key = jax.random.fold_in(key, 2**31 - 1)  # no record has this index

        def drop(index: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(device_key, index), probability)

        return jnp.where(jax.vmap(drop)(index_B), self._unknown, device_B)

    def optimizer(
        self, direction: optax.GradientTransformation, schedule: optax.Schedule
    ) -> optax.GradientTransformation:
        return optax.chain(direction, optax.scale_by_learning_rate(schedule))

    def check_devices(self, num_devices: int) -> None:
        """Every number of devices is supported."""

    def exchanged_bytes(self, num_devices: int) -> dict[str, int]:
        """Sum and count of three masked losses; entropy and importance of the gate."""
        return {"losses": 3 * 2 * 4 + 4 + 4 * self.config.moe.num_experts}

    def validate(self, state: TrainState, devices: Devices) -> tuple[ModelState, dict[str, float]]:
        """Losses and AUROC on labelled validation vertebrae, with averaged parameters if the run
        keeps them.

        Returns:
          (model state, metrics); auroc is absent where validation has one class only.
        """
        from sklearn.metrics import roc_auc_score

        rows = self.cohort.rows("valid", labelled=True)
        if len(rows) == 0:
            return state.model_state, {}
        params = state.params if state.ema_params is None else state.ema_params
        predicted = self.predict(params, state.model_state, rows, devices)
        labels = self.cohort.labels
        targets = {
            "label": jnp.asarray(labels.osteoporosis[rows]),
            "bmd": jnp.asarray(labels.bmd_g_cm2[rows]),
            "level": jnp.asarray(labels.level[rows]),
        }
        losses = multitask_losses(predicted, self._targets(targets), None)
        metrics = {name: float(value) for name, value in losses.items()}
        weights = self.config.objective
        metrics["loss"] = sum(
            weights[f"{name}_weight"] * metrics[name] for name in ("diagnosis", "bmd", "position")
        )
        mean, std = self._bmd_affine
        error = np.abs(predicted["bmd"] * std + mean - labels.bmd_g_cm2[rows])
        if not np.isnan(error).all():
            metrics["bmd_mae_g_cm2"] = float(np.nanmean(error))
        hits = predicted["level_logits"].argmax(-1) == labels.level[rows]
        metrics["position_accuracy"] = float(hits.mean())
        known = labels.osteoporosis[rows] >= 0
        if len(set(labels.osteoporosis[rows][known])) == 2:
            margin = predicted["logits"][known, 1] - predicted["logits"][known, 0]
            metrics["auroc"] = float(roc_auc_score(labels.osteoporosis[rows][known], margin))
        return state.model_state, metrics

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        rows: np.ndarray,
        devices: Devices,
        given_device: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Outputs of `DiagnosisModel` for some rows, with each vertebra's own device, or with
        given_device i32[N], one for every row of the cohort."""
        if not hasattr(self, "_mapped_forward"):
            self._mapped_forward = devices.map_forward(self._forward)
        return run_over(
            self.cohort,
            rows,
            self._sight.view(given_device),
            self._mapped_forward,
            model_variables(params, model_state),
            devices,
            self.config.batch_size,
            "predicting",
        )

    def exports(self) -> dict[str, Export]:
        """The whole model, and the encoder alone."""
        manifest = self.cohort.manifest
        model = {"model": model_export(self.config, manifest)}
        return {**model, **encoder_exports(self.config, manifest)}

    def evaluation(self) -> Evaluation:
        """Diagnosis, BMD and level, in the units of the exported model."""
        from osteojax.evaluation.vertebrae import VertebraEvaluation

        manifest = self.cohort.manifest

        def predict(*where: Any) -> dict[str, np.ndarray]:
            return in_units(self.predict(*where), manifest)

        attention = attention_program(self.config, manifest)
        takes_body = self._sight.sight.takes_body
        return VertebraEvaluation(self.cohort, predict, attention, takes_body)

    def _forward(self, variables: Any, batch: Batch) -> dict[str, Array]:
        variables, scale = parted(variables)
        seen = self._sight.seen(batch, scale)
        return self._apply(variables, device_B=batch["device"], train=False, **seen)


def build(config: ConfigDict, cohort: PreparedCohort) -> Multitask:
    """The objective of `config`; see `osteojax.objectives`."""
    return Multitask(config, cohort)
