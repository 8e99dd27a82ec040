"""Names of the columns of a predictions table; `predictions` has their meanings."""

from __future__ import annotations

import re

import pandas as pd

COLUMNS = (
    "patient_id",
    "scan_id",
    "site",
    "split",
    "level",
    "level_class",
    "device",
    "sex",
    "age",
    "truncated",
    "osteoporosis",
    "bmd_g_cm2",
    "t_score",
    "probability",
    "bmd_pred_g_cm2",
    "level_pred",
    "level_probability",
    "expert_1",
    "expert_2",
    "expert_3",
    "slice_mm",
    "mean_hu",
    "body_share",
    "baseline_hu",
    "baseline_hu_age",
    "ood_distance",
    "ood_percentile",
)
"""The table's columns for the paper's three experts; `expert_columns` gives those of a table."""

TEXT = ("patient_id", "scan_id", "site", "split", "level", "device", "sex")
KNOWN_IDS = ("patient_id", "scan_id", "site", "split", "level")
OPTIONAL_NUMBERS = ("age", "osteoporosis", "bmd_g_cm2", "t_score")
INTEGERS = ("level_class", "level_pred", "truncated")
MODEL_OUTPUTS = ("probability", "bmd_pred_g_cm2", "level_pred", "level_probability")
EXTRA = COLUMNS[-7:]
FIXED = tuple(name for name in COLUMNS[:-7] if not name.startswith("expert_"))


def expert_columns(table: pd.DataFrame) -> list[str]:
    """Names of the expert weights, expert_1 first; empty for a model without experts."""
    return _numbered(table, "expert")


def renamed_from_0_1(table: pd.DataFrame) -> pd.DataFrame:
    """Renames the expert weights of a table of 0.1: gate_0, gate_1, ... become expert_1, ..."""
    old = _numbered(table, "gate")
    return table.rename(columns={name: f"expert_{int(name[5:]) + 1}" for name in old})


def _numbered(table: pd.DataFrame, prefix: str) -> list[str]:
    pattern = re.compile(rf"{prefix}_\d+")
    names = [str(name) for name in table.columns if pattern.fullmatch(str(name))]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))
