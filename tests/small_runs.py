"""Shipped configs, shrunk so that a run takes seconds: the same code, fewer layers and steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.configs import load_config
from osteojax.train.parallel import DataParallel

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

SMALL = (
    "--config.model.stage_sizes=(1,1)",
    "--config.model.width=4",
    "--config.batch_size=8",
    "--config.optim.train_steps=6",
    "--config.optim.warmup_steps=2",
    "--config.optim.eval_steps=3",
    "--config.optim.save_steps=3",
    "--config.log_every_steps=1",
)


def small(name: str, *overrides: str) -> ConfigDict:
    """The shipped config of a name, as "simclr_resnet34" or "simclr_resnet34:paper"."""
    file, _, variant = name.partition(":")
    path = f"{CONFIGS / file}.py:{','.join(filter(None, (variant, 'smoke')))}"
    backbone = load_config(path, []).model  # another one than ResNet has no stages to shrink
    fits = "stage_sizes" in backbone
    shrunk = [text for text in SMALL if fits or not text.startswith("--config.model.stage_sizes")]
    return load_config(path, [*shrunk, *overrides])


def pretraining(*overrides: str) -> ConfigDict:
    """TP-SwAV on whole boxes; `tests/objectives` has the runs on crops of the body."""
    own = ("--config.objective.queue_size=16", "--config.objective.num_prototypes=8")
    freeze = "--config.objective.freeze_prototypes_steps=2"
    return small("tp_swav_resnet34:paper", *own, freeze, *overrides)


def fine_tuning(*overrides: str) -> ConfigDict:
    """On whole boxes; `seeing` sees the body too."""
    return small("moe_multitask_resnet34:paper", *overrides)


def seeing(sees: str, *overrides: str) -> ConfigDict:
    """A fine-tuning run of one block that sees the body, or both body and box: three crops with
    z-scores of bodies, and the body's numbers."""
    config = fine_tuning(
        f"--config.data.sees={sees}", "--config.data.statistics=body",
        "--config.data.numbers=true", "--config.data.views.readout_crops=3",
        "--config.data.unlabelled_too=true", *overrides,
    )  # fmt: skip
    with config.unlocked():
        config.model.stage_sizes = (1,)
        config.moe.expert_dim = config.moe.gate_dim = 8
    return config


@contextlib.contextmanager
def on_devices(count: int) -> Iterator[None]:
    """Runs use so many of the eight devices: a program for one compiles and runs fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataParallel, "create", partial(DataParallel.create, num_devices=count))
        yield


def drawn(tree: Any, seed: int = 0) -> Any:
    """The same tree with random numbers: no branch of the network is switched off. The experts'
    are small, because the tiny cohort's z-scores are large and must not saturate answers."""
    generator = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.Array) -> jax.Array:
        spread = 0.3 * generator.standard_normal(leaf.shape)
        spread *= 0.03 if path[0].key == "experts" else 1.0
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(1 + abs(spread) if positive else spread, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def random_state(objective: Any) -> tuple[Any, Any]:
    """Parameters and model state of an objective, with random weights and running statistics."""
    from osteojax.data.pipeline import evaluation_batches

    batches = evaluation_batches(objective.cohort, np.arange(2), objective.view, batch_size=2)
    params, state = objective.init(jax.random.key(0), next(batches)[1])
    return drawn(params), {**state, "batch_stats": drawn(state["batch_stats"])}


def random_workdir(config: ConfigDict, workdir: Path, pool: Path) -> None:
    """Writes what training leaves of a run, with random weights as its best step."""
    from osteojax import objectives
    from osteojax.checkpoints import Checkpoints
    from osteojax.data.cohort import PreparedCohort
    from osteojax.train.workdir import claim
    from osteojax.types import TrainState

    cohort = PreparedCohort(pool)
    claim(workdir, config, cohort)
    params, model_state = random_state(objectives.load(config, cohort))
    checkpoints = Checkpoints(workdir)
    checkpoints.save_best(TrainState(jnp.int32(1), params, model_state, ()), {"loss": 1.0})
    checkpoints.close()
