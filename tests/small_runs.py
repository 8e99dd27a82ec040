"""Shipped configs, shrunk so that a run takes seconds: the same code, fewer layers and steps."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from launch.configs import load_config

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
    """The shipped config of a name, as "simclr_resnet34" or "simclr_resnet34:body"."""
    file, _, variant = name.partition(":")
    path = f"{CONFIGS / file}.py:{','.join(filter(None, (variant, 'smoke')))}"
    backbone = load_config(path, []).model  # another one than ResNet has no stages to shrink
    fits = "stage_sizes" in backbone
    shrunk = [text for text in SMALL if fits or not text.startswith("--config.model.stage_sizes")]
    return load_config(path, [*shrunk, *overrides])


def pretraining(*overrides: str) -> ConfigDict:
    own = ("--config.objective.queue_size=16", "--config.objective.num_prototypes=8")
    freeze = "--config.objective.freeze_prototypes_steps=2"
    return small("tp_swav_resnet34", *own, freeze, *overrides)


def fine_tuning(*overrides: str) -> ConfigDict:
    return small("moe_multitask_resnet34", *overrides)
