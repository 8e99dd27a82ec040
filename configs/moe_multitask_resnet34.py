"""Fine-tuning: experts, three heads, weighted loss; the paper's settings.

    osteojax train --config configs/moe_multitask_resnet34.py --workdir W2 --data DIR \
        --config.init_from=W

`configs/moe_multitask_resnet34.py:smoke` is the same path at 32^3 with a narrow network:
minutes on two CPU cores. Fields marked R are not fixed by the paper.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant "smoke" shrinks it."""
    if variant not in ("", "smoke"):
        raise ValueError(
            f"unknown variant {variant!r} of moe_multitask_resnet34; choose none or smoke"
        )
    config = ConfigDict()
    config.seed = 0
    config.engine = "shard_map"  # or "pmap"
    config.batch_size = 32  # global
    config.steps_per_dispatch = 0  # R: 0 chooses, 8 from resident data on accelerators, else 1
    config.log_every_steps = 10
    config.eval_at_start = False
    config.init_from = placeholder(str)  # workdir of a pre-training run; empty trains from scratch

    config.data = ConfigDict(
        {
            "unlabelled_too": False,  # R: unlabelled vertebrae for the position head
            "placement": "auto",  # R: of volumes; auto, resident (in device memory) or disk
            "augment": {  # R
                "max_shift_voxels": 6,
                "flip_probability": 0.5,
                "affine": False,
                "crop_min_volume": 1.0,  # 1: no crop; 0.14 crops as SwAV does
            },
        }
    )
    config.model = ConfigDict(
        {
            "name": "resnet",
            "stage_sizes": (3, 4, 6, 3),
            "width": 64,
            "rank": 3,  # R: 2 sees the mid-sagittal slice
            "norm": "batch",  # R: batch, per_map, group
            "dtype": "float32",  # of compute; parameters and losses are float32 always
            "remat": False,
        }
    )
    config.moe = ConfigDict(
        {
            "num_experts": 3,
            "gate_dim": 128,  # R
            "expert_dim": 256,  # R
            "use_device": True,  # False drops the device embedding from eq. 2
            "decoder": "experts",  # controls: concatenated, affine (models/device_heads.py)
        }
    )
    config.objective = ConfigDict(
        {
            "name": "multitask",
            "diagnosis_weight": 1.0,
            "bmd_weight": 1.0,
            "position_weight": 0.5,
            "device_dropout": 0.1,  # R: trains the unknown device
            "gate_balance_weight": 0.0,  # R: 0.01 balances the experts' importance
        }
    )
    config.optim = ConfigDict(
        {
            "learning_rate": 1e-5,
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 0.1,
            "ema_decay": placeholder(float),  # of averaged parameters; none by default
            # Durations in epochs; a number of steps, where given, wins.
            "train_epochs": 400.0,
            "warmup_epochs": 150.0,
            "eval_epochs": 1.0,
            "save_epochs": 1.0,
            "train_steps": placeholder(int),
            "warmup_steps": placeholder(int),
            "eval_steps": placeholder(int),
            "save_steps": placeholder(int),
        }
    )
    config.checkpoint = ConfigDict({"keep": 2, "best_metric": "auroc", "best_mode": "max"})
    if variant == "smoke":
        config.model.width = 16
        config.data.unlabelled_too = True
        config.checkpoint.best_metric, config.checkpoint.best_mode = "loss", "min"
        config.data.augment.max_shift_voxels = 2
        config.optim.learning_rate = 1e-3
        config.optim.train_epochs, config.optim.warmup_epochs = 40.0, 4.0
        config.optim.eval_epochs = config.optim.save_epochs = 10.0
    return config.lock()
