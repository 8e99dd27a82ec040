"""Questions that the ladder's first seed raised; exploratory, its rows chosen after a look at it.

    osteojax study configs/studies/paper_ladder_why.py --workdir W

- Where HU tell nothing, networks are at chance while a logistic model on mean GLCM features is not.
  Is 400 steps too short to learn texture, and does pre-training on texture maps shorten it?
- Experts lower the BMD's error where all devices are identical, too. Is it their size, or does the
  device's name stand for the site, its scanner and its patients?
"""

from __future__ import annotations

import dataclasses

from configs.studies import paper_ladder
from launch.studies.plan import Contrast, Row, Study

LONG = {"optim.train_steps": 3000, "optim.warmup_steps": 300, "optim.eval_steps": 500}
SHORT_CLASS, LONG_CLASS = paper_ladder.DIAGNOSIS, {**paper_ladder.DIAGNOSIS, **LONG}
TEXTURE, DEVICES = "hu_matched", "same_devices"


def get_study(variant: str = "") -> Study:
    """The study; there is one size, for two CPU cores."""
    if variant:
        raise ValueError(f"unknown variant {variant!r} of paper_ladder_why; there is none")
    ladder = paper_ladder.get_study()
    tp = {"pretrain": "tp_swav", "pretrained_on": "main"}
    moe = "same devices: unified + MoE"
    return dataclasses.replace(
        ladder,
        name="Why the ladder says so, small",
        size=f"{ladder.size} Rows of 3,000 steps fine-tune for so long.",
        rows=(
            Row("HU matched: scratch, 400 steps", TEXTURE, settings=SHORT_CLASS),
            Row("HU matched: scratch, 3,000 steps", TEXTURE, settings=LONG_CLASS),
            Row("HU matched: TP-SwAV, 3,000 steps", TEXTURE, "tp_swav", settings=LONG_CLASS),
            Row("HU matched: GLCM means, logistic", TEXTURE, ceiling="glcm"),
            Row("HU matched: HU, logistic", TEXTURE, ceiling="hu"),
            Row("same devices: unified", DEVICES, **tp, settings=paper_ladder.ONE_HEAD),
            Row(moe, DEVICES, **tp, swap=True),
            Row("same devices: MoE, told the wrong device", like=moe, told="wrong"),
            Row(
                "same devices: MoE without device embedding",
                DEVICES,
                **tp,
                settings={"moe.use_device": False},
            ),
        ),
        contrasts=(
            Contrast(
                "HU matched: scratch, 3,000 steps", "HU matched: scratch, 400 steps", "AUROC", +1,
                paper_ladder.AUROC_MATTERS,
            ),
            Contrast(
                "HU matched: TP-SwAV, 3,000 steps", "HU matched: scratch, 3,000 steps", "AUROC", +1,
                paper_ladder.AUROC_MATTERS,
            ),
            Contrast(
                "same devices: MoE without device embedding", "same devices: unified", "MAE", 0,
                paper_ladder.MAE_MATTERS,
            ),
            Contrast(
                moe, "same devices: MoE without device embedding", "MAE", -1,
                paper_ladder.MAE_MATTERS,
            ),
            Contrast(
                moe, "same devices: MoE, told the wrong device", "MAE", -1,
                paper_ladder.MAE_MATTERS,
            ),
        ),
        seeds=(0, 1),
    )  # fmt: skip
