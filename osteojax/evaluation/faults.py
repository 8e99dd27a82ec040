"""Checks of a predictions table; each fault is reported in one line that names the row."""

from __future__ import annotations

import numpy as np
import pandas as pd

from osteojax.data.schema import SPLITS
from osteojax.data.vertebrae import LEVELS, level_class
from osteojax.errors import UserError
from osteojax.evaluation.columns import (
    COLUMNS,
    EXTRA,
    FIXED,
    INTEGERS,
    KNOWN_IDS,
    MODEL_OUTPUTS,
    OPTIONAL_NUMBERS,
)

EXPERT_SUM_TOLERANCE = 1e-2
"""Tolerance of the sum of expert weights; in bfloat16, with 3 digits, it errs by a few 1e-3."""


def require_columns(table: pd.DataFrame, source: str) -> None:
    missing = [name for name in FIXED if name not in table.columns]
    if missing:
        raise UserError(
            f"{source}: columns missing: {', '.join(missing)}. Expected: {', '.join(COLUMNS)}. "
            "Write the table with `osteojax evaluate`."
        )


def where(table: pd.DataFrame, row: int) -> str:
    """A row for an error message: its number in the CSV (the header is 1) and its case."""
    return f"row {row + 2} ({table['scan_id'].iloc[row]}/{table['level'].iloc[row]})"


def numbers(table: pd.DataFrame, name: str, source: str) -> pd.Series:
    """One column as float64, NaN where empty. Raises UserError for other text."""
    values = table[name]
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    found = pd.to_numeric(text.where(text != "", "nan"), errors="coerce").astype(np.float64)
    bad = np.flatnonzero(found.isna() & ~text.str.lower().isin(["", "nan", "<na>", "none"]))
    if bad.size:
        row = int(bad[0])
        raise UserError(
            f"{source}: {where(table, row)}: {name} is {text.iloc[row]!r}, not a number. "
            "Correct the cell."
        )
    return found


def check_values(table: pd.DataFrame, experts: list[str], source: str) -> None:
    """Raises UserError at the first row whose value is impossible."""
    bounds: dict[str, tuple[int, int]] = {
        "probability": (0, 1),
        "level_probability": (0, 1),
        "level_class": (1, len(LEVELS)),
        "level_pred": (1, len(LEVELS)),
        "truncated": (0, 1),
        "osteoporosis": (0, 1),
        **dict.fromkeys((*experts, "baseline_hu", "baseline_hu_age"), (0, 1)),
    }
    for name in (*MODEL_OUTPUTS, *experts, "level_class", "truncated"):
        _refuse(
            table,
            ~np.isfinite(table[name]),
            name,
            "but every vertebra needs a finite value. NaN from a model means that it diverged: "
            "evaluate an earlier checkpoint.",
            source,
        )
    for name in (*OPTIONAL_NUMBERS, *EXTRA):
        _refuse(table, np.isinf(table[name]), name, "not a finite number. Correct it.", source)
    for name, (low, high) in bounds.items():
        outside = (table[name] < low) | (table[name] > high)
        _refuse(table, outside, name, f"outside {low} to {high}. Correct it.", source)
    for name in ("osteoporosis", *INTEGERS):
        broken = table[name].notna() & (table[name] % 1 != 0)
        _refuse(table, broken, name, "not a whole number. Correct it.", source)
    if experts:
        total = table[experts].sum(axis=1)
        off = np.flatnonzero((total - 1).abs() > EXPERT_SUM_TOLERANCE)
        if off.size:
            raise UserError(
                f"{source}: {where(table, int(off[0]))}: expert weights sum to "
                f"{total.iloc[off[0]]:.4g}, not 1. Write the gate's softmax, not its logits."
            )


def _refuse(table: pd.DataFrame, bad: pd.Series, name: str, what: str, source: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        row = int(rows[0])
        more = f" (and {rows.size - 1} more rows)" if rows.size > 1 else ""
        raise UserError(
            f"{source}: {where(table, row)}: {name} is {table[name].iloc[row]:g}{more}, {what}"
        )


def check_identity(table: pd.DataFrame, source: str) -> None:
    """Raises UserError unless ids are present, levels and splits known, no vertebra occurs twice,
    and no patient is in two splits."""
    for name in KNOWN_IDS:
        empty = np.flatnonzero(table[name] == "")
        if empty.size:
            raise UserError(
                f"{source}: {where(table, int(empty[0]))}: {name} is empty. Fill it in."
            )
    for row, split in enumerate(table["split"]):
        if split not in SPLITS:
            raise UserError(
                f"{source}: {where(table, row)}: split {split!r}; splits are {', '.join(SPLITS)}."
            )
    for row, (level, number) in enumerate(zip(table["level"], table["level_class"], strict=True)):
        if level not in LEVELS or level_class(level) != number:
            raise UserError(
                f"{source}: {where(table, row)}: level {level!r} with level_class {number}. "
                "Levels T1-T12, L1-L6 are classes 1-18."
            )
    twice = np.flatnonzero(table.duplicated(["scan_id", "level"]))
    if twice.size:
        row = int(twice[0])
        key = (table["scan_id"] == table["scan_id"][row]) & (table["level"] == table["level"][row])
        first = int(np.flatnonzero(key)[0])
        raise UserError(
            f"{source}: {where(table, row)}: the same scan and level as row {first + 2}. "
            "Keep one row per vertebra."
        )
    splits = table.groupby("patient_id")["split"].unique()
    mixed = splits[splits.map(len) > 1]
    if len(mixed):
        raise UserError(
            f"{source}: patient {mixed.index[0]} is in splits {', '.join(mixed.iloc[0])}. "
            "A patient belongs to one split: prepare the cohort again."
        )
