"""Direction and width of a picture's stripes, from a small convolution.

An `osteojax.objectives.Objective`, named `tests.pictures.objective` in a config.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from scipy.special import softmax

from osteojax.data.cohort import PreparedCohort
from osteojax.data.views import Example, with_volumes
from osteojax.evaluation.targets import TargetEvaluation
from osteojax.objectives import ten_times
from osteojax.objectives.embedding import run_over
from osteojax.types import AXIS, Export
from tests.pictures import data


class Model(nn.Module):
    """f32[B, H, W, 1] -> logits f32[B, 2], width f32[B] (z-scored)."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        x = nn.relu(nn.Conv(self.features, (3, 3))(x))
        x = nn.relu(nn.Conv(self.features, (3, 3))(x)).mean(axis=(1, 2))
        return {"logits": nn.Dense(2)(x), "width": nn.Dense(1)(x)[:, 0]}


@dataclasses.dataclass(frozen=True)
class Answered:
    """A picture with its answers."""

    key = "codes"
    pool = members = ("picture",)

    def draw(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        answers = {name: values[row] for name, values in cohort.targets.items()}
        return {"index": np.int32(row), "map_ids": np.zeros(1, np.int32), **answers}

    def __call__(self, cohort: PreparedCohort, row: int, rng: np.random.Generator) -> Example:
        return with_volumes(self, cohort, self.draw(cohort, row, rng))


class Stripes:
    view = Answered()
    diverges_above = staticmethod(ten_times)

    def __init__(self, config: Any, cohort: Any) -> None:
        self.config, self.cohort, self.manifest = config, cohort, cohort.manifest
        self.model = Model(config.model.features)
        self.width = cohort.manifest.target("width")

    def training_rows(self) -> np.ndarray:
        return self.cohort.rows("train", labelled=True)

    def check_devices(self, num_devices: int) -> None: ...

    def exchanged_bytes(self, num_devices: int) -> dict[str, int]:
        return {"losses": 4 * 4}

    def _see(self, pictures: Array) -> Array:
        about = data.about(self.manifest)
        return ((pictures.astype(jnp.float32) - about["mean"]) / about["std"])[..., None]

    def init(self, key: Array, batch: Any) -> tuple[Any, Any]:
        x = self._see(jnp.asarray(batch["codes"][:2, 0]))
        return self.model.init(key, x)["params"], {}

    def _losses(self, outputs: Any, answers: Any) -> dict[str, tuple[Array, Array]]:
        """Sum and count of each loss over the pictures that have the answer."""
        direction, width = answers["direction"], answers["width"]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
            outputs["logits"], jnp.maximum(direction, 0)
        )
        known = ~jnp.isnan(width)
        error = outputs["width"] - (jnp.where(known, width, 0) - self.width.mean) / self.width.std
        return {
            "direction": (jnp.sum(cross_entropy * (direction >= 0)), jnp.sum(direction >= 0)),
            "width": (jnp.sum(error**2 * known), jnp.sum(known)),
        }

    def loss(self, params: Any, model_state: Any, batch: Any, key: Array, step: Array) -> Any:
        outputs = self.model.apply({"params": params}, self._see(batch["codes"][:, 0]))
        sums = lax.psum(self._losses(outputs, batch), AXIS)
        means = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
        return sum(means.values()), (model_state, means)

    def optimizer(self, direction: Any, schedule: Any) -> Any:
        return optax.chain(direction, optax.scale_by_learning_rate(schedule))

    def predict(
        self, params: Any, model_state: Any, rows: np.ndarray, devices: Any
    ) -> dict[str, np.ndarray]:
        def forward(variables: Any, batch: Any) -> Any:
            return self.model.apply(variables, self._see(batch["codes"][:, 0]))

        return run_over(
            self.cohort,
            rows,
            self.view,
            devices.map_forward(forward),
            {"params": params},
            devices,
            self.config.batch_size,
            "predicting",
        )

    def validate(self, state: Any, devices: Any) -> tuple[Any, dict[str, float]]:
        rows = self.cohort.rows("valid", labelled=True)
        outputs = self.predict(state.params, state.model_state, rows, devices)
        answers = {name: jnp.asarray(own[rows]) for name, own in self.cohort.targets.items()}
        losses = self._losses(outputs, answers)
        metrics = {name: float(total / count) for name, (total, count) in losses.items()}
        return state.model_state, metrics | {"loss": sum(metrics.values())}

    def evaluation(self) -> TargetEvaluation:
        def predict(*where: Any) -> dict[str, np.ndarray]:
            outputs = self.predict(*where)
            width_px = outputs["width"] * self.width.std + self.width.mean
            return {"direction": softmax(outputs["logits"], axis=1), "width": width_px}

        return TargetEvaluation(self.cohort, predict)

    def exports(self) -> dict[str, Export]:
        size = self.manifest.field("picture").shape

        def program(variables: Any, picture: Array) -> dict[str, Array]:
            outputs: Any = self.model.apply(variables, self._see(picture))
            width_px = outputs["width"] * self.width.std + self.width.mean
            return {
                "direction_probabilities": jax.nn.softmax(outputs["logits"]),
                "width_px": width_px,
            }

        return {
            "model": Export(
                programs={"program": program},
                variables=lambda params, model_state: {"params": params},
                inputs={"picture": {"shape": ["b", *size], "dtype": "uint8", "what": "as stored"}},
                describe=lambda name: {"what": name},
                facts={"kind": self.manifest.kind, "directions": list(data.DIRECTIONS)},
            )
        }


def build(config: Any, cohort: Any) -> Stripes:
    return Stripes(config, cohort)
