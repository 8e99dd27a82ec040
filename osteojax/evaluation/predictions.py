"""The predictions table: one row per vertebra, what is known of it beside what the model says.

    patient_id, scan_id, site, split, level, sex      text
    level_class          1-18 (`osteojax.data.schema.LEVELS`)
    device               a DXA device, "unknown", or empty where there is no DXA result
    age                  years, empty where unknown
    truncated            1 where the border of the CT cuts the vertebra
    osteoporosis         1, 0, or empty where there is no label
    bmd_g_cm2, t_score   empty where there is no DXA result
    probability          the model's probability of osteoporosis, 0-1
    bmd_pred_g_cm2       the model's areal bone mineral density
    level_pred           the model's level, 1-18, and its probability, 0-1
    gate_0, gate_1, ...  weights of the experts, summing to 1 (none for a model without experts)

Everything else in `osteojax.evaluation` reads a table that passed `check`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from osteojax.data.schema import LEVELS, SPLITS, level_class
from osteojax.errors import UserError
from osteojax.files import atomic_path

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
    "gate_0",
    "gate_1",
    "gate_2",
)
"""The table's columns for the paper's three experts; `gate_columns` tells how many there are."""

_TEXT = ("patient_id", "scan_id", "site", "split", "level", "device", "sex")
_KNOWN_IDS = ("patient_id", "scan_id", "site", "split", "level")
_OPTIONAL_NUMBERS = ("age", "osteoporosis", "bmd_g_cm2", "t_score")
_INTEGERS = ("level_class", "level_pred", "truncated")
_MODEL_OUTPUTS = ("probability", "bmd_pred_g_cm2", "level_pred", "level_probability")
_FIXED = tuple(name for name in COLUMNS if not name.startswith("gate_"))

GATE_SUM_TOLERANCE = 1e-2
"""Gates sum to 1 within this: bfloat16 weights, rounded to 3 digits, are off by a few 1e-3."""


def gate_columns(table: pd.DataFrame) -> list[str]:
    """Names of the expert weights, gate_0 first; empty for a model without experts."""
    names = [str(name) for name in table.columns if re.fullmatch(r"gate_\d+", str(name))]
    return sorted(names, key=lambda name: int(name.partition("_")[2]))


def check(table: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """The table with its columns typed and in order.

    Args:
      table: one row per vertebra, any column order; empty text and NaN both mean empty.
      source: what error messages call the table (its path).

    Returns:
      A new table: text as str ("" where empty), optional numbers as float64 (NaN where empty),
      `level_class`, `level_pred`, `truncated` as int64.

    Raises:
      UserError: a column is missing; a prediction is NaN or infinite; a probability is outside
        0-1; a (scan_id, level) occurs twice; a patient is in two splits. It names the row.
    """
    missing = [name for name in _FIXED if name not in table.columns]
    if missing:
        raise UserError(
            f"{source}: columns missing: {', '.join(missing)}. Expected: {', '.join(COLUMNS)}. "
            "Write the table with `osteojax evaluate`."
        )
    if table.empty:
        raise UserError(f"{source}: no rows, nothing to evaluate. Choose another split.")
    gates = gate_columns(table)
    if gates != [f"gate_{i}" for i in range(len(gates))]:
        raise UserError(f"{source}: expert columns {', '.join(gates)}; number them from gate_0 on.")
    typed = table[[*_FIXED, *gates]].reset_index(drop=True)
    for name in _TEXT:
        typed[name] = typed[name].astype(object).where(typed[name].notna(), "").astype(str)
    for name in (*_OPTIONAL_NUMBERS, *_INTEGERS, *_MODEL_OUTPUTS, *gates):
        typed[name] = _numbers(typed, name, source)
    _check_values(typed, gates, source)
    for name in _INTEGERS:
        typed[name] = typed[name].astype(np.int64)
    _check_identity(typed, source)
    return typed


def read(path: str | Path) -> pd.DataFrame:
    """Reads `predictions.csv` and checks it. Raises UserError for a file that is not one."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file. `osteojax evaluate` writes it.")
    try:
        # Text only, then typed column by column: a site called "NA" is a site, not a missing one.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error}). Evaluate again.") from error
    return check(table, str(path))


def write(path: str | Path, table: pd.DataFrame) -> None:
    """Checks the table and writes it as CSV, atomically; floats keep every digit."""
    typed = check(table, str(path))
    typed["osteoporosis"] = typed["osteoporosis"].astype("Int64")  # 1, 0 or empty, not 1.0
    with atomic_path(path) as temporary:
        typed.to_csv(temporary, index=False, lineterminator="\n")


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a diagnosis, osteoporosis as int64."""
    rows = table[table["osteoporosis"].notna()].reset_index(drop=True)
    return rows.assign(osteoporosis=rows["osteoporosis"].astype(np.int64))


def _where(table: pd.DataFrame, row: int) -> str:
    """How an error message points at a row: its number in the CSV (header is 1) and its case."""
    return f"row {row + 2} ({table['scan_id'].iloc[row]}/{table['level'].iloc[row]})"


def _numbers(table: pd.DataFrame, name: str, source: str) -> pd.Series:
    """float64 of one column; empty is NaN, other text an error."""
    values = table[name]
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    numbers = pd.to_numeric(text.where(text != "", "nan"), errors="coerce").astype(np.float64)
    bad = np.flatnonzero(numbers.isna() & ~text.str.lower().isin(["", "nan", "<na>", "none"]))
    if bad.size:
        row = int(bad[0])
        raise UserError(
            f"{source}: {_where(table, row)}: {name} is {text.iloc[row]!r}, not a number. "
            "Correct the cell."
        )
    return numbers


def _check_values(table: pd.DataFrame, gates: list[str], source: str) -> None:
    """Raises UserError at the first row whose value is impossible."""
    bounds: dict[str, tuple[int, int]] = {
        "probability": (0, 1),
        "level_probability": (0, 1),
        "level_class": (1, len(LEVELS)),
        "level_pred": (1, len(LEVELS)),
        "truncated": (0, 1),
        "osteoporosis": (0, 1),
        **dict.fromkeys(gates, (0, 1)),
    }
    for name in (*_MODEL_OUTPUTS, *gates, "level_class", "truncated"):
        _refuse(
            table,
            ~np.isfinite(table[name]),
            name,
            "but every vertebra needs a finite value. NaN from a model means that it diverged: "
            "evaluate an earlier checkpoint.",
            source,
        )
    for name in _OPTIONAL_NUMBERS:
        _refuse(table, np.isinf(table[name]), name, "not a finite number. Correct it.", source)
    for name, (low, high) in bounds.items():
        outside = (table[name] < low) | (table[name] > high)
        _refuse(table, outside, name, f"outside {low} to {high}. Correct it.", source)
    for name in ("osteoporosis", *_INTEGERS):
        broken = table[name].notna() & (table[name] % 1 != 0)
        _refuse(table, broken, name, "not a whole number. Correct it.", source)
    if gates:
        total = table[gates].sum(axis=1)
        off = np.flatnonzero((total - 1).abs() > GATE_SUM_TOLERANCE)
        if off.size:
            raise UserError(
                f"{source}: {_where(table, int(off[0]))}: expert weights sum to "
                f"{total.iloc[off[0]]:.4g}, not 1. Write the gate's softmax, not its logits."
            )


def _refuse(table: pd.DataFrame, bad: pd.Series, name: str, what: str, source: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        row = int(rows[0])
        more = f" (and {rows.size - 1} more rows)" if rows.size > 1 else ""
        raise UserError(
            f"{source}: {_where(table, row)}: {name} is {table[name].iloc[row]:g}{more}, {what}"
        )


def _check_identity(table: pd.DataFrame, source: str) -> None:
    """Ids present, levels and splits known, no vertebra twice, no patient in two splits."""
    for name in _KNOWN_IDS:
        empty = np.flatnonzero(table[name] == "")
        if empty.size:
            raise UserError(
                f"{source}: {_where(table, int(empty[0]))}: {name} is empty. Fill it in."
            )
    for row, split in enumerate(table["split"]):
        if split not in SPLITS:
            raise UserError(
                f"{source}: {_where(table, row)}: split {split!r}; splits are {', '.join(SPLITS)}."
            )
    for row, (level, number) in enumerate(zip(table["level"], table["level_class"], strict=True)):
        if level not in LEVELS or level_class(level) != number:
            raise UserError(
                f"{source}: {_where(table, row)}: level {level!r} with level_class {number}. "
                "Levels T1-T12, L1-L6 are classes 1-18."
            )
    twice = np.flatnonzero(table.duplicated(["scan_id", "level"]))
    if twice.size:
        row = int(twice[0])
        key = (table["scan_id"] == table["scan_id"][row]) & (table["level"] == table["level"][row])
        first = int(np.flatnonzero(key)[0])
        raise UserError(
            f"{source}: {_where(table, row)}: the same scan and level as row {first + 2}. "
            "Keep one row per vertebra."
        )
    splits = table.groupby("patient_id")["split"].unique()
    mixed = splits[splits.map(len) > 1]
    if len(mixed):
        raise UserError(
            f"{source}: patient {mixed.index[0]} is in splits {', '.join(mixed.iloc[0])}. "
            "A patient belongs to one split: prepare the cohort again."
        )
