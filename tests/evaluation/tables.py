"""Synthetic predictions with known relations, for the evaluation tests."""

from __future__ import annotations

import numpy as np
import pandas as pd

from osteojax.data.vertebrae import LEVELS
from osteojax.evaluation import baselines

SLICES_MM = {"A": 1.0, "B": 3.0, "C": 6.0, "D": 1.0}
DEVICES = {"A": "hologic", "B": "lunar", "C": "medix", "D": "hologic"}


def synthetic(
    patients: int, split: str, seed: int, sites: str = "ABC", informative: float = 0.8
) -> pd.DataFrame:
    """Five vertebrae (T12-L4) per patient, two of L1-L4 labelled; D is the external site.

    The model's logit is informative * truth + noise of SD 1; BMD is off by bias -0.02, SD 0.05.
    Every eleventh patient's age is unknown.
    """
    generator = np.random.default_rng(seed)
    hu_generator = np.random.default_rng([seed, 1])
    rows = []
    for number in range(patients):
        site = sites[number % len(sites)]
        sick = generator.random() < 0.4
        sex = "F" if generator.random() < 0.6 else "M"
        age = float(np.round(generator.normal(70 if sick else 60, 9)))
        with_label = set(generator.choice(["L1", "L2", "L3", "L4"], 2, replace=False))
        for level in ("T12", "L1", "L2", "L3", "L4"):
            measured = level in with_label
            bmd = generator.normal(0.72 if sick else 1.0, 0.08)
            truth = bmd < (0.77 if DEVICES[site] != "lunar" else 0.88)
            logit = informative * (2 * truth - 1) + generator.normal()
            gates = generator.dirichlet([6 if i == "ABC".find(site) else 1.5 for i in range(3)])
            true_class = LEVELS.index(level) + 1
            off = generator.choice([-1, 0, 0, 0, 0, 0, 1])
            rows.append(
                {
                    "patient_id": f"{split}-{site}{number:04d}",
                    "scan_id": f"{split}-{site}{number:04d}-ct",
                    "site": site,
                    "split": "external" if site == "D" else split,
                    "level": level,
                    "level_class": true_class,
                    "device": DEVICES[site] if measured else "",
                    "sex": sex,
                    "age": age if number % 11 else np.nan,
                    "truncated": 0,
                    "osteoporosis": float(truth) if measured else np.nan,
                    "bmd_g_cm2": bmd if measured else np.nan,
                    "t_score": (bmd - 1.05) / 0.11 if measured else np.nan,
                    "probability": float(np.float32(1 / (1 + np.exp(-logit)))),
                    "bmd_pred_g_cm2": bmd - 0.02 + generator.normal(0, 0.05),
                    "level_pred": int(np.clip(true_class + off, 1, 18)),
                    "level_probability": generator.uniform(0.3, 1),
                    "expert_1": gates[0],
                    "expert_2": gates[1],
                    "expert_3": gates[2],
                    "slice_mm": SLICES_MM[site],
                    "mean_hu": 20 + 150 * bmd + hu_generator.normal(0, 30),
                }
            )
    return pd.DataFrame(rows)


def with_baselines(*tables: pd.DataFrame) -> list[pd.DataFrame]:
    """The tables with the probabilities of the baselines, fitted on 60 other patients."""
    found, _ = baselines.fit(synthetic(60, "train", 99))
    return [
        table.assign(
            **{baselines.column(name): model.probability(table) for name, model in found.items()}
        )
        for table in tables
    ]
