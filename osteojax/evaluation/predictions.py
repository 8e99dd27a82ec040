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
    gate_0, gate_1, ...  weights of the experts, summing to 1 (none for a model without experts);
                         gate_0 is what reports call expert 1

and columns that may be absent or empty, each for what it is needed for:

    slice_mm             distance of the CT's slices: the subgroups by slice thickness
    mean_hu              of the vertebra
    baseline_hu, baseline_hu_age   probabilities of `osteojax.evaluation.baselines`
    ood_distance, ood_percentile   from the training vertebrae (`evaluation.statistics.ood`)

Everything else in `osteojax.evaluation` reads a table that passed `check`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from osteojax.data.schema import SPLITS
from osteojax.data.vertebrae import LEVELS, level_class
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
    "slice_mm",
    "mean_hu",
    "baseline_hu",
    "baseline_hu_age",
    "ood_distance",
    "ood_percentile",
)
"""The table's columns for the paper's three experts; `gate_columns` tells how many there are."""

_TEXT = ("patient_id", "scan_id", "site", "split", "level", "device", "sex")
_KNOWN_IDS = ("patient_id", "scan_id", "site", "split", "level")
_OPTIONAL_NUMBERS = ("age", "osteoporosis", "bmd_g_cm2", "t_score")
_INTEGERS = ("level_class", "level_pred", "truncated")
_MODEL_OUTPUTS = ("probability", "bmd_pred_g_cm2", "level_pred", "level_probability")
_EXTRA = COLUMNS[-6:]
_FIXED = tuple(name for name in COLUMNS[:-6] if not name.startswith("gate_"))

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
      `level_class`, `level_pred`, `truncated` as int64; columns that may be absent are there, NaN.

    Raises:
      UserError: a column is missing; a prediction is NaN or infinite; a probability is outside
        0-1; a (scan_id, level) occurs twice; a patient is in two splits. It names the row.
    """
    _require_columns(table, source)
    if table.empty:
        raise UserError(f"{source}: no rows, nothing to evaluate. Choose another split.")
    gates = gate_columns(table)
    if gates != [f"gate_{i}" for i in range(len(gates))]:
        raise UserError(f"{source}: expert columns {', '.join(gates)}; number them from gate_0 on.")
    extra = [name for name in _EXTRA if name in table.columns]
    typed = table[[*_FIXED, *gates, *extra]].reset_index(drop=True)
    typed = typed.reindex(columns=[*_FIXED, *gates, *_EXTRA])
    for name in _TEXT:
        typed[name] = typed[name].astype(object).where(typed[name].notna(), "").astype(str)
    for name in (*_OPTIONAL_NUMBERS, *_INTEGERS, *_MODEL_OUTPUTS, *gates, *_EXTRA):
        typed[name] = _numbers(typed, name, source)
    _check_values(typed, gates, source)
    for name in _INTEGERS:
        typed[name] = typed[name].astype(np.int64)
    _check_identity(typed, source)
    return typed


def set_aside(table: pd.DataFrame, source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts the rows that can be evaluated from those that cannot, so that one bad row does not
    cost the report.

    Left out are rows with a prediction that is NaN or infinite, and vertebrae that occur several
    times with different values (nothing says which is right). Of copies that agree the first is
    kept.

    Args:
      table: as `check` takes it.
      source: what error messages call it.

    Returns:
      the usable rows, in order, and the others as split, scan_id, level, reason.

    Raises:
      UserError: columns are missing, or no row is usable.
    """
    _require_columns(table, source)
    table = table.reset_index(drop=True)
    reasons = pd.Series("", index=table.index)
    copies = table.duplicated()
    twice = table[~copies].duplicated(["scan_id", "level"], keep=False)
    reasons[twice[twice].index] = "scan and level occur several times, with different values"
    for name in reversed((*_MODEL_OUTPUTS, *gate_columns(table))):
        values = _numbers(table, name, source)
        for bad in values[~np.isfinite(values)].index:
            reasons[bad] = f"{name} is {values[bad]:g}"
    reasons[copies] = "a copy of another row"
    out = reasons != ""
    if len(table) and out.all():
        raise UserError(
            f"{source}: none of {len(table)} vertebrae can be evaluated; {_where(table, 0)}: "
            f"{reasons.iloc[0]}. NaN from a model means that it diverged: evaluate an earlier "
            "checkpoint."
        )
    left_out = table.loc[out, ["split", "scan_id", "level"]].assign(reason=reasons[out])
    return table[~out].reset_index(drop=True), left_out.reset_index(drop=True)


def paired(
    first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str] = ("first", "second")
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two models' predictions of the same vertebrae, in one order.

    Raises:
      UserError: a table is unusable, or they are of different vertebrae or labels (another cohort,
        split or preparation). It names the first vertebra that differs.
    """
    keys = ["scan_id", "level"]
    tables = [
        check(table, name).sort_values(keys, ignore_index=True)
        for table, name in zip((first, second), names, strict=True)
    ]
    ids = [set(zip(table["scan_id"], table["level"], strict=True)) for table in tables]
    if alone := sorted(ids[0] ^ ids[1]):
        scan, level = alone[0]
        has, lacks = names if alone[0] in ids[0] else names[::-1]
        raise UserError(
            f"{scan}/{level} is in the predictions of {has} and not in those of {lacks} "
            f"({len(alone)} such vertebrae): they are not of one cohort and split. Evaluate both "
            "on the same --data and --split."
        )
    for name in ("patient_id", "split", "osteoporosis", "bmd_g_cm2"):
        values = [table[name].fillna(-1.0) if name in _OPTIONAL_NUMBERS else table[name]
                  for table in tables]  # fmt: skip
        different = np.flatnonzero((values[0] != values[1]).to_numpy())
        if different.size:
            row = int(different[0])
            raise UserError(
                f"{tables[0]['scan_id'][row]}/{tables[0]['level'][row]}: {name} is "
                f"{tables[0][name][row]} in the predictions of {names[0]} and "
                f"{tables[1][name][row]} in those of {names[1]}: the labels come from different "
                "preparations of the cohort. Evaluate both on the same --data."
            )
    return tables[0], tables[1]


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


def _require_columns(table: pd.DataFrame, source: str) -> None:
    missing = [name for name in _FIXED if name not in table.columns]
    if missing:
        raise UserError(
            f"{source}: columns missing: {', '.join(missing)}. Expected: {', '.join(COLUMNS)}. "
            "Write the table with `osteojax evaluate`."
        )


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
        **dict.fromkeys((*gates, "baseline_hu", "baseline_hu_age"), (0, 1)),
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
    for name in (*_OPTIONAL_NUMBERS, *_EXTRA):
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
