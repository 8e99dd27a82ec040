"""A study on the tiny cohort: its folder as if simulated, and rows that take seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.studies.plan import Cohort, Contrast, Row, Study
from tests.small_runs import CONFIGS

COHORT = Cohort("--patients 40", "--size 16", seed=7)

SMALL = {
    "model.stage_sizes": (1,),
    "model.width": 4,
    "model.rank": 2,
    "batch_size": 8,
    "optim.train_steps": 4,
    "optim.warmup_steps": 1,
    "optim.eval_steps": 4,
    "optim.save_steps": 1,
}


def study(**fields: Any) -> Study:
    """Ceilings, two trained rows without common pre-training, and one evaluated with the wrong
    DXA scanner."""
    defaults = {
        "name": "Stand-in",
        "size": "nothing",
        "cohorts": {"main": COHORT},
        "rows": (
            Row("scratch", settings={"moe.num_experts": 1}),
            Row("experts", pretrain="tp", swap=True),
            Row("experts, wrong", like="experts", told="wrong"),
            Row("oracle", ceiling="oracle"),
            Row("HU", ceiling="hu"),
        ),
        "contrasts": (
            Contrast("oracle", "HU", "MAE", -1, 0.005),
            Contrast("oracle", "HU", "AUROC", +1, 0.02, unit="patient"),
            Contrast("experts", "scratch", "AUROC", +1, 0.02),
        ),
        "pretrain_config": f"{CONFIGS / 'tp_swav_resnet34.py'}:paper,smoke",
        "finetune_config": f"{CONFIGS / 'moe_multitask_resnet34.py'}:paper,smoke",
        "pretrain_settings": {
            **SMALL,
            "eval_at_start": False,
            "objective.queue_size": 16,
            "objective.num_prototypes": 8,
        },
        "finetune_settings": {**SMALL, "data.unlabelled_too": False},
        "pretrainings": {"tp": {}},
        "seeds": (0, 1),
        "resamples": 100,
        "contrast_resamples": 200,
    }
    return Study(**{**defaults, **fields})


def stand_in_cohort(workdir: Path, pool: Path, name: str = "main") -> None:
    """Makes an existing prepared folder look like a cohort that the study has made."""
    folder = workdir / "cohorts" / name
    (folder / "simulated").mkdir(parents=True)
    (folder / "pool").symlink_to(pool, target_is_directory=True)
    truth(pool).to_csv(folder / "simulated" / "truth.csv", index=False)
    (folder / "made.json").write_text(json.dumps(dataclasses.asdict(COHORT)))


def truth(pool: Path) -> pd.DataFrame:
    """BMD on each scanner: the measured value on its own, 0.1 g/cm^2 apart on the others."""
    table = pd.read_csv(pool / "vertebrae.csv", keep_default_na=False, na_values={"bmd_g_cm2": ""})
    devices = ("hologic", "ge_lunar", "medix")
    bmd = table["bmd_g_cm2"].to_numpy(np.float64)
    own = np.array([devices.index(d) if d else 0 for d in table["device"]])
    found = table[["patient_id", "scan_id", "level"]].copy()
    for number, name in enumerate(devices):
        found[f"bmd_g_cm2_{name}"] = bmd + 0.1 * (number - own)
        found[f"t_score_{name}"] = (found[f"bmd_g_cm2_{name}"] - 0.1 * (number - own) - 1.0) / 0.1
    return found
