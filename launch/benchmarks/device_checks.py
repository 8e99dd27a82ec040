"""Small computations on the device beside the same on this machine's CPU, or in NumPy.

On a GPU other programs run than on a CPU: other forms of pools, norms and gradients, texture maps
of a whole batch at once. Each check returns a relative error, which `LIMITS` bounds. On a CPU both
sides are equal, so that they only show that the check runs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from launch.benchmarks.experiment import Experiment, config_of, stand_in_cohort
from osteojax.ops.sinkhorn import sinkhorn
from osteojax.ops.texture import glcm
from osteojax.ops.texture.pair_features import ALL_FEATURES
from osteojax.train.parallel import DataParallel
from osteojax.types import AXIS

SIZE, BATCH, STEPS = 16, 4, 3
NUM_LEVELS, RADIUS = 48, 3


def assignments() -> float:
    """Sinkhorn, against float64 in NumPy."""
    scores = np.random.default_rng(0).uniform(-1, 1, (256, 32)).astype(np.float32)
    log_q = scores.astype(np.float64) / 0.05
    for _ in range(3):
        for axis in (0, 1):
            log_q = log_q - np.logaddexp.reduce(log_q, axis=axis, keepdims=True)
    return _difference(sinkhorn(jnp.asarray(scores)), np.exp(log_q))


def texture_maps() -> float:
    """The paper's four maps of whole boxes."""
    return _texture(None, glcm.FEATURES)


def texture_maps_in_a_mask() -> float:
    mask = np.random.default_rng(1).random((2, SIZE, SIZE, SIZE)) < 0.9
    return _texture(mask, glcm.FEATURES)


def all_texture_features() -> float:
    """All 16 features, whose sums have 64 bits."""
    return _texture(None, ALL_FEATURES)


def _texture(mask: np.ndarray | None, features: tuple[str, ...]) -> float:
    shape = (2, SIZE, SIZE, SIZE)
    levels = np.random.default_rng(0).integers(1, NUM_LEVELS + 1, shape, np.uint8)

    def maps() -> dict[str, np.ndarray]:
        found = glcm.texture_maps(
            levels, mask, kernel_radius=RADIUS, num_levels=NUM_LEVELS, features=features
        )
        return {name: np.asarray(image) for name, image in found.items()}

    there = maps()
    with jax.default_device(_cpu()):
        here = maps()
    return max(_difference(there[name], here[name]) for name in features)


def losses_of_a_few_steps() -> float:
    """Losses of TP-SwAV on whole boxes in float32, without TF32: the whole network, its gradients
    and the optimiser, by what they do to the next step's loss."""
    with jax.default_matmul_precision("float32"):
        there, here = _losses(jax.devices()[0]), _losses(_cpu())
    return _difference(there, here)


def steps_in_one_dispatch() -> float:
    """As many steps in one dispatch as in several: the last loss."""
    one = _experiment(jax.devices()[0])
    batch = one.synthetic_batch()
    again = {name: np.stack([value] * STEPS) for name, value in batch.items()}
    program = one.program(lambda data, batch: batch)
    state = one.new_state(batch)
    _, metrics = program(state, None, one.devices.put_steps(again), one.key)
    return _difference(np.asarray(metrics["loss"])[-1:], _losses(jax.devices()[0])[-1:])


def _losses(device: jax.Device) -> np.ndarray:
    """f32[STEPS]"""
    with jax.default_device(device):
        one = _experiment(device)
        step = one.same_batch_again(one.synthetic_batch())
        return np.concatenate([np.asarray(step()["loss"]) for _ in range(STEPS)])


def _experiment(device: jax.Device) -> Experiment:
    config = config_of(
        SimpleNamespace(
            objective="swav", textures="offline", region="box", batch=BATCH, width=8,
            dtype="float32", engine="shard_map",
        )
    )  # fmt: skip
    config.model.stage_sizes = (1, 1)
    config.objective.queue_size = config.objective.queue_start_steps = 0
    config.objective.freeze_prototypes_steps = 0
    mesh = Mesh(np.array([device]), (AXIS,), axis_types=(AxisType.Auto,))
    cohort = stand_in_cohort(SIZE, vertebrae=BATCH)
    return Experiment(config, cohort, devices=DataParallel(mesh))


def _cpu() -> jax.Device:
    """Raises RuntimeError where JAX_PLATFORMS leaves it out."""
    return jax.local_devices(backend="cpu")[0]


def _difference(found: Any, expected: Any) -> float:
    """The largest |found - expected| beside the largest |expected|; NaN must be equal."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("nan")
    return float(np.nanmax(np.abs(found - expected)) / np.nanmax(np.abs(expected)))


CHECKS: tuple[Callable[[], float], ...] = (
    assignments,
    texture_maps,
    texture_maps_in_a_mask,
    all_texture_features,
    losses_of_a_few_steps,
    steps_in_one_dispatch,
)
LIMITS = {
    "assignments": 1e-5,
    "texture_maps": 2e-6,
    "texture_maps_in_a_mask": 2e-6,
    "all_texture_features": 1e-5,
    "losses_of_a_few_steps": 1e-4,
    "steps_in_one_dispatch": 1e-3,
}
"""Largest relative errors: rounding in float32; atomic sums on a GPU may differ between runs."""
