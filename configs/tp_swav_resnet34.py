"""TP-SwAV pre-training of a 3D ResNet34: the paper's settings, and ours where it gives none.

    osteojax train --config configs/tp_swav_resnet34.py --workdir W --data DIR

`configs/tp_swav_resnet34.py:smoke` is the same path at 32^3 with a narrow network: minutes on two
CPU cores. Fields marked R are not fixed by the paper.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant "smoke" shrinks it."""
    if variant not in ("", "smoke"):
        raise ValueError(f"unknown variant {variant!r} of tp_swav_resnet34; choose none or smoke")
    config = ConfigDict()
    config.seed = 0
    config.engine = "shard_map"  # or "pmap"
    config.batch_size = 32  # global
    config.steps_per_dispatch = 0  # R: 0 chooses, 8 from resident data on accelerators, else 1
    config.log_every_steps = 10
    config.eval_at_start = True  # the probes' values at initialisation

    config.data = ConfigDict(
        {
            "pairs": "uniform",  # R: uniform, cross_group, image_plus_one; controls: image_image,
            # other_patient
            "textures": "offline",  # R: read from the folder, or online: made in the step
            "labelled_too": False,  # R: the paper's 30,256 pre-training vertebrae have no label
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
    config.objective = ConfigDict(
        {
            "name": "swav",
            "projector_dim": 512,  # R
            "prototype_dim": 128,  # R
            "num_prototypes": 128,  # R
            "temperature": 0.1,  # R
            "sinkhorn_epsilon": 0.05,  # R
            "sinkhorn_iterations": 3,  # R
            "queue_size": 1024,  # R, per view; unused where batch_size >= 8 num_prototypes
            "freeze_prototypes_steps": 945,  # R: one epoch of the paper's cohort
            "diversity_weight": 0.1,  # R
        }
    )
    config.optim = ConfigDict(
        {
            "learning_rate": 1e-4,
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 0.1,
            "ema_decay": placeholder(float),  # of averaged parameters; none by default
            # Durations in epochs; a number of steps, where given, wins.
            "train_epochs": 300.0,
            "warmup_epochs": 100.0,
            "eval_epochs": 1.0,
            "save_epochs": 1.0,
            "train_steps": placeholder(int),
            "warmup_steps": placeholder(int),
            "eval_steps": placeholder(int),
            "save_steps": placeholder(int),
        }
    )
    config.checkpoint = ConfigDict(
        {"keep": 2, "best_metric": "label_probe_auroc", "best_mode": "max"}
    )
    if variant == "smoke":
        config.model.width = 16
        config.data.labelled_too = True
        config.data.augment.max_shift_voxels = 2
        config.objective.num_prototypes = 32
        config.objective.queue_size = 256
        config.objective.freeze_prototypes_steps = 10
        config.optim.learning_rate = 1e-3
        config.optim.train_epochs, config.optim.warmup_epochs = 40.0, 4.0
        config.optim.eval_epochs = config.optim.save_epochs = 10.0
    return config.lock()
