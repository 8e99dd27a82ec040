"""A study of readouts on the tiny cohort, whose encoders take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.readouts.plan import Contrast, Encoder, Readout, ReadoutStudy
from tests.launch import stand_in_study
from tests.launch.stand_in_study import COHORT
from tests.small_runs import CONFIGS

CONFIG = f"{CONFIGS / 'tp_swav_resnet34.py'}:paper,smoke"
SETTINGS = {
    "model.stage_sizes": (1, 1),
    "model.width": 4,
    "batch_size": 8,
    "log_every_steps": 1,
    "objective.queue_size": 16,
    "objective.num_prototypes": 8,
    "objective.freeze_prototypes_steps": 2,
    "optim.train_steps": 6,
    "optim.warmup_steps": 2,
    "optim.eval_steps": 6,
    "optim.save_steps": 3,
}
"""Those of `small_runs.pretraining`, so that the programs are compiled once for all tests."""


def study(**fields: Any) -> ReadoutStudy:
    """A network at its start and pre-trained, a control, and two ceilings."""
    defaults = {
        "name": "Stand-in",
        "size": "nothing",
        "cohorts": {"main": COHORT, "new": COHORT},
        "encoders": {
            "start": Encoder(CONFIG, SETTINGS, trained=False),
            "tp": Encoder(CONFIG, SETTINGS),
        },
        "rows": (
            Readout("start", "networks", "start", few=True),
            Readout("TP-SwAV", "networks", "tp", few=True),
            Readout("shuffled", "controls", "start", shuffled=True),
            Readout("truth", "ceilings", ceiling="truth"),
            Readout("HU", "ceilings", ceiling="hu"),
        ),
        "contrasts": (
            Contrast("TP-SwAV", "start", primary=True),
            Contrast("truth", "HU"),
            Contrast("truth", "HU", "AUROC", group="held"),
            Contrast("TP-SwAV", "start", patients=12),
        ),
        "seeds": (0, 1),
        "few": (12,),
        "resamples": 200,
        "contrast_resamples": 400,
    }
    return ReadoutStudy(**{**defaults, **fields})


def stand_in_cohorts(workdir: Path, pool: Path) -> None:
    """Makes an existing prepared folder look like both cohorts of the study."""
    for name in ("main", "new"):
        stand_in_study.stand_in_cohort(workdir, pool, name)
        structure(pool).to_csv(workdir / "cohorts" / name / "simulated" / "truth.csv", index=False)


def structure(pool: Path) -> pd.DataFrame:
    """A truth.csv: trabecular spacing that falls with BMD, as the simulator's does."""
    table = pd.read_csv(pool / "vertebrae.csv", keep_default_na=False, na_values={"bmd_g_cm2": ""})
    bmd = table.groupby("patient_id")["bmd_g_cm2"].transform("mean").to_numpy(np.float64)
    noise = np.random.default_rng(0).normal(scale=0.02, size=len(table))
    found = table[["patient_id", "scan_id", "level"]].copy()
    found["trabecular_spacing_mm"] = np.exp(0.8 - bmd + noise)
    found["anisotropy"] = 1.5
    return found
