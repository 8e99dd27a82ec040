"""Leave one DXA scanner out: how good is a model for a scanner that training did not have?

    osteojax study configs/studies/leave_one_device_out.py --workdir W

For each scanner, every patient with a result of it is external; the other patients keep their
splits. The experts are given the scanner that training did not have (its embedding is untrained),
or "unknown", whose embedding was trained by device dropout.
"""

from __future__ import annotations

from configs.studies import small
from launch.studies.plan import Cohort, Contrast, Row, Study

DEVICES = ("hologic", "ge_lunar", "medix")


def _rows(device: str) -> tuple[Row, ...]:
    cohort, of = f"without_{device}", f"{device} left out:"
    return (
        Row(f"{of} one head", cohort, "tp_swav", settings={"moe.num_experts": 1}),
        Row(f"{of} MoE, told its device", cohort, "tp_swav", swap=True),
        Row(f"{of} MoE, told none", like=f"{of} MoE, told its device", told="unknown"),
        Row(f"{of} HU, logistic", cohort, ceiling="hu"),
        Row(f"{of} oracle", cohort, ceiling="oracle"),
    )


def _contrasts(device: str) -> tuple[Contrast, ...]:
    of = f"{device} left out:"
    none, told, one = f"{of} MoE, told none", f"{of} MoE, told its device", f"{of} one head"
    return (
        Contrast(none, one, "AUROC", +1, 0.02, group="external"),
        Contrast(none, one, "MAE", -1, 0.005, group="external"),
        Contrast(none, told, "MAE", -1, 0.005, group="external"),
    )


def get_study(variant: str = "") -> Study:
    """The study; there is one size, for two CPU cores."""
    if variant:
        raise ValueError(f"unknown variant {variant!r} of leave_one_device_out; there is none")
    simulate = (
        "--patients 480 --sites A,B,C --levels L1-L4 --spacing-mm 3.0 --complete-labels 0.15,0.25"
    )
    return Study(
        name="Leave one DXA device out, small",
        size=(
            "480 simulated patients of sites A-C, L1-L4, 32^3 voxels of 3 mm; ResNet with one "
            "block a stage, width 8, batch 16; 500 steps of pre-training, 400 of fine-tuning."
        ),
        cohorts={
            f"without_{device}": Cohort(simulate, "--size 32", 21, hold_out_device=device)
            for device in DEVICES
        },
        rows=tuple(row for device in DEVICES for row in _rows(device)),
        contrasts=tuple(contrast for device in DEVICES for contrast in _contrasts(device)),
        pretrain_config=small.PRETRAIN_ON_BOXES,
        finetune_config=small.FINETUNE_ON_BOXES,
        pretrain_settings={**small.PRETRAIN_SETTINGS, **small.PRETRAINING_OF_0_1},
        finetune_settings=small.FINETUNE_SETTINGS,
        contrast_resamples=small.RESAMPLES_OF_0_1,
        pretrainings={"tp_swav": {}},
        seeds=(0, 1, 2),
    )
