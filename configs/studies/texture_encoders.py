"""The encoders of configs/studies/texture_learning.py: recipe, networks, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.readouts.plan import Encoder, FineTuning

SWAV, SIMCLR, VICREG = (f"configs/{n}_resnet34.py" for n in ("tp_swav", "simclr", "vicreg"))
OF_MAPS, OF_SPACING = (f"configs/studies/regression.py:{n}" for n in ("maps", "spacing"))

RESNET34: dict[str, Any] = {
    "model.stage_sizes": (3, 4, 6, 3),
    "model.width": 16,
    "model.shortcut": "average",
    "model.stem_window": 7,
    "model.stem_stride": 2,
    "model.max_pool": True,
    "model.block_scale": 0.0,
}
SMALL: dict[str, Any] = {
    "model.stage_sizes": (1, 1, 1),
    "model.width": 16,
    "model.shortcut": "average",
    "model.stem_window": 5,
    "model.stem_stride": 2,
    "model.max_pool": False,
    "model.block_scale": 1.0,
}

RUN: dict[str, Any] = {
    "batch_size": 32,
    "eval_at_start": False,
    "optim.learning_rate": 3e-3,
    "optim.train_steps": 400,
    "optim.warmup_steps": 40,
    "optim.eval_steps": 400,
    "optim.save_steps": 200,
}
BODY: dict[str, Any] = {
    "data.labelled_too": True,
    "data.pairs": "cross_group",
    "data.statistics": "body",
    "data.views.region": "body",
    "data.views.edge_mm": 18.0,
    "data.views.count": 2,
    "data.views.same_place": False,
    "data.views.body_share": 1.0,
    "data.views.readout_crops": 8,
}
ASSIGNMENT: dict[str, Any] = {
    "objective.num_prototypes": 64,
    "objective.queue_size": 0,
    "objective.sinkhorn_epsilon": 0.02,
    "objective.unit_prototypes": True,
    "objective.freeze_prototypes_steps": 10,
}
QUEUE: dict[str, Any] = {"objective.queue_size": 256, "objective.queue_start_steps": 0}
LATE_QUEUE: dict[str, Any] = {**QUEUE, "objective.queue_start_steps": 100}
"""Caron et al. let the queue begin late, when embeddings move slowly."""
FLAT: dict[str, Any] = {"objective.sinkhorn_epsilon": 0.05, "objective.unit_prototypes": False}
"""Assignment as in 0.1."""

R: dict[str, Any] = {**RUN, **BODY, **ASSIGNMENT}
"""The recipe, without a network."""

IMAGES: dict[str, Any] = {"data.pairs": "image_image"}

TUNED: tuple[dict[str, Any], ...] = (
    {},
    {"objective.sinkhorn_epsilon": 0.05},
    {"objective.sinkhorn_epsilon": 0.01},
    {"optim.learning_rate": 1e-3},
    {"objective.num_prototypes": 16},
    {"objective.temperature": 0.2},
)
"""Alternatives for image pairs, and for TP-SwAV."""

AS_0_1: dict[str, Any] = {
    **RUN,
    **RESNET34,
    **FLAT,
    "batch_size": 16,
    "model.shortcut": "strided",
    "data.labelled_too": True,
    "data.pairs": "uniform",
    "data.statistics": "box",
    "data.views.region": "box",
    "data.augment.max_shift_voxels": 2,
    "objective.num_prototypes": 32,
    **QUEUE,
    "objective.freeze_prototypes_steps": 10,
    "optim.learning_rate": 1e-3,
}
"""Whole boxes, and of 0.1 all that a config can say; its boxes were cubes."""


def block(prefix: str, network: Mapping[str, Any]) -> dict[str, Encoder]:
    """The five encoders of the primary questions, with one network."""
    own = {**R, **network}
    return {
        f"{prefix}start": Encoder(SWAV, own, trained=False),
        f"{prefix}tp_swav": Encoder(SWAV, own),
        f"{prefix}image_pairs": Encoder(SWAV, {**own, **IMAGES}),
        f"{prefix}image_pairs_tuned": Encoder(SWAV, {**own, **IMAGES}, tune=TUNED),
        f"{prefix}other_patient": Encoder(SWAV, {**own, "data.pairs": "other_patient"}),
    }


def _without_maps(config: str, network: Mapping[str, Any]) -> Encoder:
    """A method without prototypes, on image crops at two places."""
    return Encoder(config, {**RUN, **BODY, **network, **IMAGES})


def fine_tunings() -> dict[str, FineTuning]:
    """From a pre-trained encoder, and from scratch with as many steps as both take together; a step
    shows as many crops as one of pre-training."""

    def steps(count: int) -> FineTuning:
        run = {
            "batch_size": 16,
            "data.views.readout_crops": 4,
            "optim.learning_rate": 1e-3,
            "optim.train_steps": count,
            "optim.warmup_steps": count // 10,
            "optim.eval_steps": count,
            "optim.save_steps": count,
        }
        return FineTuning("configs/studies/fine_tuning.py", {**run, **RESNET34})

    return {"fine_tuned": steps(200), "scratch": steps(200 + RUN["optim.train_steps"])}


def encoders() -> dict[str, Encoder]:
    base = {**R, **RESNET34}

    def both(name: str, settings: Mapping[str, Any]) -> dict[str, Encoder]:
        """A network that starts in another place, untrained and trained."""
        return {
            f"{name}_start": Encoder(SWAV, settings, trained=False),
            name: Encoder(SWAV, settings),
        }

    return {
        **block("", RESNET34),
        **block("small_", SMALL),
        "tp_swav_tuned": Encoder(SWAV, base, tune=TUNED),
        "uniform": Encoder(SWAV, {**base, "data.pairs": "uniform"}),
        "one_place": Encoder(SWAV, {**base, "data.views.same_place": True}),
        "simclr": _without_maps(SIMCLR, RESNET34),
        "vicreg": _without_maps(VICREG, RESNET34),
        "small_simclr": _without_maps(SIMCLR, SMALL),
        "regression": _without_maps(OF_MAPS, RESNET34),
        "small_regression": _without_maps(OF_MAPS, SMALL),
        "supervised": _without_maps(OF_SPACING, RESNET34),
        "small_supervised": _without_maps(OF_SPACING, SMALL),
        "queue": Encoder(SWAV, {**base, **QUEUE}),
        "small_queue": Encoder(SWAV, {**R, **SMALL, **QUEUE}),
        "small_image_pairs_queue": Encoder(SWAV, {**R, **SMALL, **IMAGES, **QUEUE}),
        "late_queue": Encoder(SWAV, {**base, **LATE_QUEUE}),
        "small_late_queue": Encoder(SWAV, {**R, **SMALL, **LATE_QUEUE}),
        "flat": Encoder(SWAV, {**base, **FLAT}),
        **both("box_statistics", {**base, "data.statistics": "box"}),
        **both("strided", {**base, "model.shortcut": "strided"}),
        **both("scales_one", {**base, "model.block_scale": 1.0}),
        **both("small_scales_zero", {**R, **SMALL, "model.block_scale": 0.0}),
        **both("crops_12", {**base, "data.views.edge_mm": 12.0}),
        **both("crops_24", {**base, "data.views.edge_mm": 24.0, "data.views.body_share": 0.95}),
        **both("as_0_1", AS_0_1),
        **{
            f"{name}@{cohort}": Encoder(SWAV, {**base, **changes}, trained, cohort)
            for cohort in ("no_texture", "with_hu")
            for name, changes, trained in (
                ("start", {}, False), ("tp_swav", {}, True), ("image_pairs", IMAGES, True),
            )
        },
    }  # fmt: skip
