"""The small size of studies, for two CPU cores: one block per stage, width 8, batch 16."""

from __future__ import annotations

from typing import Any

PRETRAIN_CONFIG = "configs/tp_swav_resnet34.py:smoke"
FINETUNE_CONFIG = "configs/moe_multitask_resnet34.py:smoke"
PRETRAIN_ON_BOXES = "configs/tp_swav_resnet34.py:paper,smoke"
FINETUNE_ON_BOXES = "configs/moe_multitask_resnet34.py:paper,smoke"
"""As the paper describes it: whole boxes, which the first studies saw."""
NETWORK: dict[str, Any] = {
    "model.stage_sizes": (1, 1, 1, 1),
    "model.width": 8,
    "batch_size": 16,
}
PRETRAIN_SETTINGS: dict[str, Any] = {
    **NETWORK,
    "eval_at_start": False,
    "optim.learning_rate": 1e-3,
    "optim.train_steps": 500,
    "optim.warmup_steps": 50,
    "optim.eval_steps": 250,
    "optim.save_steps": 250,
    "objective.freeze_prototypes_steps": 50,
}
PRETRAINING_OF_0_1: dict[str, Any] = {
    "objective.num_prototypes": 32,
    "objective.queue_size": 256,
    "objective.sinkhorn_epsilon": 0.05,
    "objective.unit_prototypes": False,
    "data.augment.own_crop_key": False,
    "checkpoint.label_probe": "logistic",
}
"""Settings of pre-training in 0.1, which made the committed tables of the ladder and of the
scanners left out."""
RESAMPLES_OF_0_1 = 1000
"""Of the contrasts in the same tables: with 25 of them, no p can be below 0.05 after Holm's
correction."""
FINETUNE_SETTINGS: dict[str, Any] = {
    **NETWORK,
    "data.unlabelled_too": False,
    "checkpoint.best_metric": "auroc",
    "checkpoint.best_mode": "max",
    "optim.learning_rate": 1e-3,
    "optim.train_steps": 400,
    "optim.warmup_steps": 40,
    "optim.eval_steps": 100,
    "optim.save_steps": 200,
}
