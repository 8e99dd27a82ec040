"""Blocks of fields that most training configs have, with the values that most of them share.

A file of this folder takes a block and gives what differs. Every field can be set on the command
line all the same, and `config.json` of a workdir holds them all. Fields marked R are not fixed by
the paper.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def run(*, eval_at_start: bool) -> ConfigDict:
    """A new config with the fields of the run itself.

    Args:
      eval_at_start: validates at step 0 too: the probes' values at initialisation.
    """
    return ConfigDict(
        {
            "seed": 0,
            "engine": "shard_map",  # or "pmap"
            "batch_size": 32,  # global
            # R: 0 chooses, 8 from resident data on accelerators, else 1
            "steps_per_dispatch": 0,
            "log_every_steps": 10,
            "eval_at_start": eval_at_start,
        }
    )


def data(**own: Any) -> ConfigDict:
    """Where volumes are kept and how they are augmented, beside the fields `own` of the config."""
    return ConfigDict(
        {
            **own,
            "placement": "auto",  # R: of volumes; auto, resident (in device memory) or disk
            "augment": {  # R
                "max_shift_voxels": 6,
                "flip_probability": 0.5,
                "affine": False,
                "crop_min_volume": 1.0,  # 1: no crop; 0.14 crops as SwAV does
                "own_crop_key": True,  # False: a crop's random numbers are the shift's, as in 0.1
            },
        }
    )


def pair_data(variants: frozenset[str]) -> ConfigDict:
    """`data` of a self-supervised method on pairs of the texture pool.

    Args:
      variants: with "paper" the network sees whole boxes, as the paper describes; else crops
        inside the vertebral body, z-scored by the statistics of bodies, in pairs of members from
        both groups (docs/method.md, "Views inside the body").
    """
    region = region_of(variants)
    body = region == "body"
    return data(
        # R: uniform, cross_group, image_plus_one; controls: image_image, other_patient
        pairs="cross_group" if body else "uniform",
        textures="offline",  # R: read from the folder, or online: made in the step
        labelled_too=False,  # R: the paper's 30,256 pre-training vertebrae have no label
        views=views(region),
        statistics=region,  # R: z-scores of the voxels of box, vertebra or body
    )


def region_of(variants: frozenset[str]) -> str:
    """What a variant's encoder sees: "body", or "box" in the paper's."""
    return "box" if "paper" in variants else "body"


def views(region: str) -> ConfigDict:
    """What is seen of a vertebra (`osteojax.data.view_settings`)."""
    return ConfigDict(
        {
            "region": region,  # R: box, or body: crops inside the vertebral body
            "edge_mm": 18.0,  # R: of a crop
            "count": 2,  # R: views of a vertebra in pre-training, an even number
            "same_place": False,  # R: each crop has its own place
            "body_share": 1.0,  # R: of a crop's voxels that are body
            "readout_crops": 8,  # R: fixed crops whose mean embedding is that of a vertebra
        }
    )


def readout() -> ConfigDict:
    """Crops of the vertebral body whose mean embedding is that of a vertebra."""
    return ConfigDict(
        {
            "edge_mm": 18.0,  # R
            "body_share": 1.0,  # R: share of a crop's voxels that must be body
            "readout_crops": 8,  # R
        }
    )


def resnet34() -> ConfigDict:
    """The backbone."""
    return ConfigDict(
        {
            "name": "resnet",
            "stage_sizes": (3, 4, 6, 3),
            "width": 64,
            "rank": 3,  # R: 2 sees the mid-sagittal slice
            "norm": "batch",  # R: batch, per_map, group
            "dtype": "float32",  # of compute; parameters and losses are float32 always
            "remat": False,
            # R: the mean of 2^3 voxels where space is halved; strided reads one of 8, as in 0.1
            "shortcut": "average",
            "stem_window": 7,  # voxels
            "stem_stride": 2,
            "max_pool": True,  # behind the stem
            "block_scale": 0.0,  # R: start of a block's last scale; at 0 it starts as its shortcut
        }
    )


def optimiser(
    *, learning_rate: float, train_epochs: float, warmup_epochs: float, **own: Any
) -> ConfigDict:
    """AdamW, its schedule, and how often the run validates and saves."""
    return ConfigDict(
        {
            "learning_rate": learning_rate,
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 0.1,
            "ema_decay": placeholder(float),  # of averaged parameters; none by default
            # Durations in epochs; a number of steps, where given, wins.
            "train_epochs": train_epochs,
            "warmup_epochs": warmup_epochs,
            "eval_epochs": 1.0,
            "save_epochs": 1.0,
            "train_steps": placeholder(int),
            "warmup_steps": placeholder(int),
            "eval_steps": placeholder(int),
            "save_steps": placeholder(int),
            **own,
        }
    )


def checkpoint(best_metric: str, best_mode: str, **own: Any) -> ConfigDict:
    """How many checkpoints are kept, and the validation metric ("max" or "min") of the best; the
    metric "step" keeps the last that was validated."""
    return ConfigDict({"keep": 2, "best_metric": best_metric, "best_mode": best_mode, **own})


def probed_checkpoint(variants: frozenset[str]) -> ConfigDict:
    """`checkpoint` of a self-supervised method: the last step on crops of bodies, the best by a
    frozen probe of the label where whole boxes are seen.

    Args:
      variants: as of `pair_data`.
    """
    # Not by the texture probe, which ranks encoders otherwise than true spacing (docs/method.md)
    best = "step" if region_of(variants) == "body" else "label_probe_auroc"
    # R: ridge, its strength chosen within training; logistic: 0.1's, which hardly sees directions
    # of small variance
    return checkpoint(best, "max", label_probe="ridge")


def use_smoke_schedule(config: ConfigDict) -> None:
    """Shrinks network, shifts and schedule: minutes on two CPU cores with boxes of 1.5 mm."""
    config.model.stage_sizes, config.model.width = (2, 2, 2, 2), 16
    config.data.augment.max_shift_voxels = 2
    config.optim.learning_rate = 1e-3
    config.optim.train_epochs, config.optim.warmup_epochs = 40.0, 4.0
    config.optim.eval_epochs = config.optim.save_epochs = 10.0


def variants_of(variant: str, name: str) -> frozenset[str]:
    """The parts of a variant of a shipped config: "smoke", and "paper" or "body".

    "body", crops inside the vertebral body, is what a config does without "paper" too.

    Args:
      variant: parts joined by commas, as "paper,smoke", or none.
      name: of the config.

    Raises:
      ValueError: a part is unknown, or both "body" and "paper" are given.
    """
    parts = frozenset(filter(None, variant.split(",")))
    if parts - {"smoke", "body", "paper"} or {"body", "paper"} <= parts:
        raise ValueError(
            f"unknown variant {variant!r} of {name}; choose none, smoke, body or paper, or as "
            "paper,smoke"
        )
    return parts
