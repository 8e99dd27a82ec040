"""Questions that the ladder's first seed raised; exploratory, its rows chosen after a look at it.

    osteojax study configs/studies/paper_ladder_why.py --workdir W

- Where HU tell nothing, networks are at chance, and a logistic model on mean GLCM features nearly
  so, though the structure is there. Is 400 steps too short? (It is not: so the rows of 3,000 steps
  said.) Then is it the 3 mm voxels: do features, and networks, find it at 1.5 mm?
- Experts lower the BMD's error where all devices are identical, too. Is it their size, or does the
  device's name stand for the site, its scanner and its patients?
"""

from __future__ import annotations

import dataclasses

from configs.studies import paper_ladder
from launch.studies.plan import Cohort, Contrast, Row, Study

LONG = {"optim.train_steps": 3000, "optim.warmup_steps": 300, "optim.eval_steps": 500}
SHORT_CLASS, LONG_CLASS = paper_ladder.DIAGNOSIS, {**paper_ladder.DIAGNOSIS, **LONG}
TEXTURE, DEVICES, FINE = "hu_matched", "same_devices", "hu_matched_fine"
LONGER = {**paper_ladder.DIAGNOSIS, "optim.train_steps": 900, "optim.eval_steps": 225}
"""As many steps as pre-training and fine-tuning together."""


def get_study(variant: str = "") -> Study:
    """The study; there is one size, for two CPU cores."""
    if variant:
        raise ValueError(f"unknown variant {variant!r} of paper_ladder_why; there is none")
    ladder = paper_ladder.get_study()
    tp = {"pretrain": "tp_swav", "pretrained_on": "main"}
    moe = "same devices: unified + MoE"
    fine = Cohort(
        "--patients 160 --levels L1-L4 --spacing-mm 1.5 --complete-labels 0.15,0.35 --hu-signal 0",
        "--size 64 --external-sites D",
        paper_ladder.REPORTED_SEED,
    )
    return dataclasses.replace(
        ladder,
        cohorts={**ladder.cohorts, FINE: fine},
        name="Why the ladder says so, small",
        size=(
            f"{ladder.size} Rows of 3,000 steps fine-tune for so long; those at 1.5 mm have 160 "
            "patients and 64^3 voxels."
        ),
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
            Row("1.5 mm, HU matched: GLCM means, logistic", FINE, ceiling="glcm"),
            Row("1.5 mm, HU matched: HU, logistic", FINE, ceiling="hu"),
            Row("1.5 mm, HU matched: scratch, 900 steps", FINE, settings=LONGER),
            Row("1.5 mm, HU matched: TP-SwAV, class", FINE, "tp_swav", settings=SHORT_CLASS),
            Row(
                "1.5 mm, HU matched: image pairs, class", FINE, "image_image", settings=SHORT_CLASS
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
            Contrast(
                "HU matched: GLCM means, logistic", "HU matched: HU, logistic", "AUROC", +1,
                paper_ladder.AUROC_MATTERS,
            ),
            Contrast(
                "1.5 mm, HU matched: GLCM means, logistic", "1.5 mm, HU matched: HU, logistic",
                "AUROC", +1, paper_ladder.AUROC_MATTERS,
            ),
            *(
                Contrast(
                    "1.5 mm, HU matched: TP-SwAV, class", f"1.5 mm, HU matched: {other}", "AUROC",
                    +1, paper_ladder.AUROC_MATTERS,
                )
                for other in ("scratch, 900 steps", "image pairs, class")
            ),
        ),
        seeds=(0, 1),
    )  # fmt: skip
