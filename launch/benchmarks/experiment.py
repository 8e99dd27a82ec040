"""A training step without the training loop: a shipped config, synthetic data, and steps on them.

This needs only jax, flax, optax and orbax.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.benchmarks.plain_config import shipped_config
from osteojax import objectives
from osteojax.data import vertebrae as vertebrae_data
from osteojax.data.vertebrae import POOL, image_spec, map_spec
from osteojax.data.view_settings import REGIONS
from osteojax.errors import UserError
from osteojax.train.costs import StepCost, step_cost
from osteojax.train.optim import adamw_direction
from osteojax.train.parallel import DataParallel
from osteojax.train.step import make_step, make_steps
from osteojax.types import TrainState

DTYPES = ("float32", "bfloat16")
DEVICES = ("hologic", "ge_lunar", "medix", "unknown")
RUN_KEY = 1


def check_numbers(args: Any, *names: str) -> None:
    """Raises UserError for a number below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {value}: a number from 1 is needed.")


def config_of(args: Any) -> Any:
    """The shipped config of `--objective`, with the size of the step set from `args`."""
    whole_boxes = getattr(args, "region", REGIONS[0]) == "box"
    config = shipped_config(args.objective, "paper" if whole_boxes else "")
    config.batch_size, config.engine = args.batch, args.engine
    config.model.width, config.model.dtype = args.width, args.dtype
    if "textures" in config.data:
        config.data.textures = args.textures
    for every_vertebra in ("labelled_too", "unlabelled_too"):
        if every_vertebra in config.data:
            config.data[every_vertebra] = True
    return config


def stand_in_cohort(size: int, vertebrae: int = 1, kernel_radius: int = 3) -> Any:
    """A stand-in for a `PreparedCohort` with what a step reads: manifest, labels, folder name.

    Its labels are random, and its only volumes are masks, with a ball of 34 mm as the body.
    """
    body = _ball(size, 34 / 96)
    manifest = vertebrae_data.manifest_of(
        size=size,
        spacing_mm=96 / size,
        shape=(size, size, size),
        maps=(image_spec(), *(map_spec(name, 25.0) for name in POOL[1:])),
        devices=DEVICES,
        bmd_mean=0.85,
        bmd_std=0.2,
        texture={
            "bin_width": 25.0,
            "kernel_radius": kernel_radius,
            "domain": "box",
            "engine": "jax",
        },
        shards=(),
        counts={},
        settings={},
        label_scheme="none",
        code_version="benchmark",
        statistics={region: ((0.0, 1.0),) * len(POOL) for region in ("vertebra", "body")},
    )
    rng = np.random.default_rng(0)
    labels = SimpleNamespace(
        osteoporosis=rng.integers(0, 2, vertebrae, np.int32),
        bmd_g_cm2=rng.uniform(0.5, 1.2, vertebrae).astype(np.float32),
        level=rng.integers(0, 18, vertebrae, np.int32),
        device=rng.integers(0, len(DEVICES) - 1, vertebrae, np.int32),
    )
    return SimpleNamespace(
        manifest=manifest,
        about=vertebrae_data.about(manifest),
        directory=Path("benchmark"),
        labels=labels,
        array=lambda row, name: np.stack([body, np.ones_like(body), body]),
    )


def _ball(size: int, diameter: float) -> np.ndarray:
    """bool[size, size, size]: a ball in the middle. diameter: as a share of the edge."""
    from_middle = (np.indices((size, size, size)) + 0.5) / size - 0.5
    return (from_middle**2).sum(axis=0) <= (diameter / 2) ** 2


def random_codes(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8[*shape] image codes."""
    return np.random.default_rng(seed).integers(0, image_spec().codes, shape, np.uint8)


def _attached(engine: str, num_devices: int | None) -> DataParallel:
    available = jax.device_count()
    if num_devices is not None and num_devices > available:
        raise UserError(f"--devices {num_devices}: this machine shows {available}.")
    return DataParallel.create(engine, num_devices)


class Experiment:
    """The training step of a config on some devices.

    Attributes:
      config, cohort: `cohort` is a `PreparedCohort` or a stand-in.
      objective, devices: of the step.
      optimizer: of the config, at a fixed learning rate.
    """

    def __init__(
        self,
        config: Any,
        cohort: Any,
        num_devices: int | None = None,
        devices: DataParallel | None = None,
    ) -> None:
        """`devices` may be absent ones; None takes the first `num_devices` of this machine."""
        self.config, self.cohort = config, cohort
        self.objective = objectives.load(config, cohort)
        self.devices = devices or _attached(config.engine, num_devices)
        self.devices.check_batch(config.batch_size)
        self.objective.check_devices(self.devices.num_devices)
        self.optimizer = self.objective.optimizer(
            adamw_direction(config), optax.constant_schedule(config.optim.learning_rate)
        )
        self.key = jax.random.key(RUN_KEY)

    def draws(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws of the objective's view for some rows (`osteojax.data.views`)."""
        drawn = [self.objective.view.draw(self.cohort, int(row), rng) for row in rows]
        return {key: np.stack([draw[key] for draw in drawn]) for key in drawn[0]}

    def synthetic_batch(self) -> dict[str, np.ndarray]:
        """A global batch of noise, in the form that the step takes."""
        count = self.config.batch_size
        rows = np.arange(count) % len(self.cohort.labels.level)
        draws = self.draws(rows, np.random.default_rng(0))
        shape = self.batch_shapes()[self.objective.view.key].shape
        return {**draws, self.objective.view.key: random_codes(*shape)}

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a global batch, in the form that the step takes."""
        count, view = self.config.batch_size, self.objective.view
        drawn = self.draws(np.array([0]), np.random.default_rng(0))
        shapes = {
            key: jax.ShapeDtypeStruct((count, *value.shape[1:]), value.dtype)
            for key, value in drawn.items()
        }
        views = drawn["map_ids"].shape[1:] if view.key == "codes" else ()
        volumes = (count, *views, *self.cohort.about.shape)
        return {**shapes, view.key: jax.ShapeDtypeStruct(volumes, np.uint8)}

    def initial_state(self, batch: dict[str, Any]) -> TrainState:
        """A new training state. batch: a global batch, or its shapes and dtypes."""
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        params, model_state = self.objective.init(jax.random.key(0), blank)
        ema = params if self.config.optim.ema_decay is not None else None
        return TrainState(jnp.int32(0), params, model_state, self.optimizer.init(params), ema)

    def new_state(self, batch: dict[str, Any]) -> TrainState:
        """A new training state on all devices."""
        return self.devices.replicate(self.initial_state(batch))

    def single_step(self) -> Any:
        """The jitted step (state, batch, run key) -> (state, metrics), as of `make_step`."""
        ema_decay = self.config.optim.ema_decay
        return make_step(self.objective.loss, self.optimizer, self.devices, ema_decay)

    def program(self, gather: Callable) -> Any:
        """The program that training dispatches: (state, data, batches or draws of some steps, run
        key) -> (state, metrics); `gather` as for `make_steps`."""
        if self.devices.engine == "pmap":  # always one step, without a leading axis
            step = self.single_step()
            return lambda state, data, batch, key: step(state, batch, key)
        ema_decay = self.config.optim.ema_decay
        return make_steps(self.objective.loss, self.optimizer, self.devices, ema_decay, gather)

    def on_devices(self, batch: dict[str, np.ndarray]) -> Any:
        """A global batch on the devices, so that a dispatch of one step needs no transfer."""
        if self.devices.engine == "pmap":  # pmap would send NumPy arrays with every call
            share = self.devices.put(batch)
            mapped = jax.pmap(lambda x: x, devices=list(self.devices.mesh.devices.flat))
            return jax.block_until_ready(mapped(share))
        steps = {key: np.asarray(value)[None] for key, value in batch.items()}
        return jax.block_until_ready(self.devices.put_steps(steps))

    def same_batch_again(self, batch: dict[str, np.ndarray]) -> Callable[[], Any]:
        """A call that takes one step, always on the same batch on the devices."""
        program, placed = self.program(lambda data, batch: batch), self.on_devices(batch)
        held = [self.new_state(batch)]

        def once() -> Any:
            held[0], metrics = program(held[0], None, placed, self.key)
            return metrics

        return once

    def cost(self, batch: dict[str, Any]) -> StepCost:
        """Cost of one step on all devices together (`osteojax.train.costs`)."""
        return step_cost(self.config, self.cohort, batch)
