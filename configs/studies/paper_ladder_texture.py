"""Why no row of the ladder finds texture: exploratory, designed after seeing the ladder's seed 0.

    osteojax study configs/studies/paper_ladder_texture.py --workdir W --seeds 1

Where HU carry no information about bone, networks are at chance, and a logistic model on mean GLCM
features nearly so, although the structure was simulated. Is fine-tuning too short? Or are the
voxels too large: do features and networks find the structure at 1.5 mm instead of 3?
"""

from __future__ import annotations

import dataclasses

from configs.studies import paper_ladder
from launch.studies.plan import Cohort, Contrast, Row, Study

SHORT = paper_ladder.DIAGNOSIS
LONG = {**SHORT, "optim.train_steps": 3000, "optim.warmup_steps": 300, "optim.eval_steps": 500}
AS_BOTH = {**SHORT, "optim.train_steps": 900, "optim.eval_steps": 225}
"""The steps of pre-training and fine-tuning together."""
COARSE, FINE = "hu_matched", "hu_matched_fine"


def _contrast(first: str, second: str) -> Contrast:
    return Contrast(first, second, "AUROC", +1, paper_ladder.AUROC_MATTERS)


def get_study(variant: str = "") -> Study:
    """The study; there is one size, for two CPU cores."""
    if variant:
        raise ValueError(f"unknown variant {variant!r} of paper_ladder_texture; there is none")
    ladder = paper_ladder.get_study()
    fine_cohort = Cohort(
        "--patients 160 --levels L1-L4 --spacing-mm 1.5 --complete-labels 0.15,0.35 --hu-signal 0",
        "--size 64 --external-sites D",
        paper_ladder.REPORTED_SEED,
    )
    coarse, fine = "HU matched:", "1.5 mm, HU matched:"
    return dataclasses.replace(
        ladder,
        name="Why the ladder finds no texture",
        size=(
            "3 mm: the ladder's own cohort, 720 patients at 32^3; 1.5 mm: 160 patients at 64^3. "
            "The ladder's network; 500 steps of pre-training, 400 of fine-tuning but where the row "
            "says more."
        ),
        cohorts={**ladder.cohorts, FINE: fine_cohort},
        rows=(
            Row(f"{coarse} GLCM means, logistic", COARSE, ceiling="glcm"),
            Row(f"{coarse} HU, logistic", COARSE, ceiling="hu"),
            Row(f"{coarse} scratch, 400 steps", COARSE, settings=SHORT),
            Row(f"{coarse} scratch, 3,000 steps", COARSE, settings=LONG),
            Row(f"{coarse} TP-SwAV, 3,000 steps", COARSE, "tp_swav", settings=LONG),
            Row(f"{fine} GLCM means, logistic", FINE, ceiling="glcm"),
            Row(f"{fine} HU, logistic", FINE, ceiling="hu"),
            Row(f"{fine} scratch, 900 steps", FINE, settings=AS_BOTH),
            Row(f"{fine} TP-SwAV, class", FINE, "tp_swav", settings=SHORT),
        ),
        contrasts=(
            _contrast(f"{coarse} GLCM means, logistic", f"{coarse} HU, logistic"),
            _contrast(f"{fine} GLCM means, logistic", f"{fine} HU, logistic"),
            _contrast(f"{coarse} scratch, 3,000 steps", f"{coarse} scratch, 400 steps"),
            _contrast(f"{coarse} TP-SwAV, 3,000 steps", f"{coarse} scratch, 3,000 steps"),
            _contrast(f"{fine} TP-SwAV, class", f"{fine} scratch, 900 steps"),
        ),
    )
