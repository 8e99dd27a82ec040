"""The paper's ladder (Tables 2 and 4) again, where the encoder sees the bone.

    osteojax study configs/studies/paper_ladder_body.py --workdir W --seeds 3

The first ladder (paper_ladder.py) could not test the paper's claim on texture: at 3 mm, on whole
boxes, no encoder read any. Here voxels are of 1.5 mm, where a linear model reads trabecular spacing
from the body at r 0.9, pre-training sees crops inside the body by the recipe of
configs/studies/texture_learning.py, and fine-tuning joins them with the whole vertebra. Cohorts
have a seed that no study has seen. Everything below was committed before the run whose table is
benchmarks/paper_ladder_body.md: simulator options, the expectation of each contrast and the
smallest difference that matters.

The three claims are judged by the contrasts of the first ladder. Besides, the rows "sees" compare
body, vertebra and both, and the rows "+ numbers" ask whether 11 plain numbers of the body are worth
more than pre-training.

On two CPU cores a fine-tuning takes 4 minutes and a pre-training 2 (estimated from 20 steps), so a
seed takes about 50 minutes with two processes; run it as one part for each seed.
"""

from __future__ import annotations

from configs.studies import small, texture_encoders
from configs.studies.paper_ladder import (
    DIAGNOSIS,
    ONE_HEAD,
    REFERENCES,
    WITH_BMD,
    WITH_POSITION,
    auroc,
    mae,
)
from launch.studies.plan import Cohort, Contrast, Row, Study

SEED = 51
"""Of the cohorts."""

OPTIONS = "--patients 480 --levels L1-L4 --spacing-mm 1.5 --complete-labels 0.15,0.35"
PREPARE = "--size 64 --box vertebra --external-sites D"

FROM_BODIES = {"data.sees": "both", "data.statistics": "body"}
SEES_BODY = {**FROM_BODIES, "data.sees": "body"}
SEES_VERTEBRA = {**FROM_BODIES, "data.sees": "vertebra"}
NUMBERS = {"data.numbers": True}

METHOD = "TP-SwAV, unified + MoE"


def _cohorts() -> dict[str, Cohort]:
    return {
        "main": Cohort(OPTIONS, PREPARE, SEED),
        "no_texture": Cohort(f"{OPTIONS} --texture-signal 0", PREPARE, SEED, splits_of="main"),
        "hu_matched": Cohort(f"{OPTIONS} --hu-signal 0", PREPARE, SEED),
    }


def _rows() -> tuple[Row, ...]:
    """Names give the losses: class, BMD, position; "unified" is all three."""
    tp = {"pretrain": "tp_swav"}
    scratch_best = "scratch, unified + MoE"
    return (
        Row("scratch, class", settings=DIAGNOSIS, note="Table 2"),
        Row("scratch, class + BMD", settings=WITH_BMD, note="Table 4"),
        Row("scratch, class + position", settings=WITH_POSITION, note="Table 4"),
        Row("scratch, unified", settings=ONE_HEAD, note="Table 4"),
        Row(scratch_best, note="Table 4"),
        Row("image crops, class", pretrain="image_crops", settings=DIAGNOSIS, note="Table 2: SwAV"),
        Row("TP-SwAV, class", **tp, settings=DIAGNOSIS, note="Table 2"),
        Row("TP-SwAV, unified", **tp, settings=ONE_HEAD, note="Table 2"),
        Row(METHOD, **tp, swap=True, note="Table 2: the method"),
        Row("other patient's pairs, class", pretrain="other_patient", settings=DIAGNOSIS),
        Row("MoE, told the wrong device", like=METHOD, told="wrong"),
        Row("MoE, told no device", like=METHOD, told="unknown"),
        Row("MoE without device embedding", **tp, settings={"moe.use_device": False}),
        Row("one MLP + device", **tp, settings={"moe.decoder": "concatenated"}, swap=True),
        Row(f"{METHOD}, sees the body", **tp, settings=SEES_BODY),
        Row(f"{METHOD}, sees the vertebra", **tp, settings=SEES_VERTEBRA),
        Row(f"{scratch_best} + numbers", settings=NUMBERS),
        Row(f"{METHOD} + numbers", **tp, settings=NUMBERS),
        Row("no texture: TP-SwAV, class", "no_texture", **tp, settings=DIAGNOSIS),
        Row("no texture: scratch, class", "no_texture", settings=DIAGNOSIS),
        Row("HU matched: scratch, class", "hu_matched", settings=DIAGNOSIS),
        Row("HU matched: image crops, class", "hu_matched", "image_crops", settings=DIAGNOSIS),
        Row("HU matched: TP-SwAV, class", "hu_matched", **tp, settings=DIAGNOSIS),
        *REFERENCES,
        Row("HU matched: oracle", "hu_matched", ceiling="oracle"),
    )


def _contrasts() -> tuple[Contrast, ...]:
    """Expected signs: +1 and -1 as the paper claims, or as a control must show if the claims hold;
    0 where there should be no difference."""
    tp, unified, scratch = "TP-SwAV, class", "TP-SwAV, unified", "scratch, unified + MoE"
    return (
        # Claim 1: pre-training (Table 2)
        auroc(tp, "scratch, class", +1),
        auroc(tp, "image crops, class", +1),
        auroc(tp, "other patient's pairs, class", +1),
        auroc("HU matched: TP-SwAV, class", "HU matched: scratch, class", +1),
        auroc("HU matched: TP-SwAV, class", "HU matched: image crops, class", +1),
        # Claim 2: auxiliary losses (Table 4)
        auroc("scratch, class + BMD", "scratch, class", +1),
        auroc("scratch, class + position", "scratch, class", +1),
        auroc("scratch, unified", "scratch, class", +1),
        auroc(unified, tp, +1),
        # Claim 3: experts (Table 2)
        auroc(METHOD, unified, +1),
        mae(METHOD, unified, -1),
        mae(METHOD, "MoE without device embedding", -1),
        mae(METHOD, "MoE, told the wrong device", -1),
        mae(METHOD, "one MLP + device", -1),
        # The whole method
        auroc(METHOD, "scratch, class", +1, unit="patient"),
        auroc(METHOD, "scratch, class", +1, group="external"),
        # What fine-tuning must see
        auroc(METHOD, f"{METHOD}, sees the vertebra", +1),
        auroc(METHOD, f"{METHOD}, sees the body", 0),
        mae(METHOD, f"{METHOD}, sees the vertebra", -1),
        mae(METHOD, f"{METHOD}, sees the body", -1),
        # Plain numbers instead of pre-training
        auroc(f"{scratch} + numbers", METHOD, 0),
        auroc(f"{METHOD} + numbers", f"{scratch} + numbers", 0),
        mae(f"{METHOD} + numbers", METHOD, -1),
        # Controls, and whether the cohort contains the signal
        auroc("no texture: TP-SwAV, class", "no texture: scratch, class", 0),
        auroc("GLCM means, logistic", "HU, logistic", +1),
        auroc("no texture: GLCM means, logistic", "no texture: HU, logistic", 0),
        auroc("HU matched: GLCM means, logistic", "HU matched: HU, logistic", +1),
    )


def get_study(variant: str = "") -> Study:
    """The study; there is one size, for two CPU cores."""
    if variant:
        raise ValueError(f"unknown variant {variant!r} of paper_ladder_body; there is none")
    return Study(
        name="The paper's ladder, with crops of the body",
        size=(
            "480 simulated patients, L1-L4, 1.5 mm voxels; ResNet with one block a stage, width 8; "
            "400 steps of 32 of pre-training on crops of 18 mm inside the body, 400 of 16 of "
            "fine-tuning on crops and whole vertebra."
        ),
        cohorts=_cohorts(),
        rows=_rows(),
        contrasts=_contrasts(),
        pretrain_config=small.PRETRAIN_CONFIG,
        finetune_config=small.FINETUNE_CONFIG,
        pretrain_settings={**small.NETWORK, **texture_encoders.R},
        finetune_settings={**small.FINETUNE_SETTINGS, **FROM_BODIES},
        pretrainings={
            "tp_swav": {},
            "image_crops": texture_encoders.IMAGES,
            "other_patient": {"data.pairs": "other_patient"},
        },
        seeds=(0, 1, 2),
    )
