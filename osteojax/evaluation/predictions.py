"""The predictions table: one row per vertebra, with columns of the cohort and of the model.

    patient_id, scan_id, site, split, level, sex      text
    level_class          1-18 (`osteojax.data.vertebrae.LEVELS`)
    device               a DXA scanner, "unknown", or empty where there is no DXA result
    age                  years, empty where unknown
    truncated            1 where the border of the CT cuts the vertebra
    osteoporosis         1, 0, or empty where there is no label
    bmd_g_cm2, t_score   empty where there is no DXA result
    probability          the model's probability of osteoporosis, 0-1
    bmd_pred_g_cm2       the model's areal bone mineral density, on `device`
    level_pred           the model's level, 1-18
    level_probability    the model's probability of this level, 0-1
    expert_1, ...        weights of the experts, summing to 1 (none for a model without experts)

and columns that may be absent or empty:

    slice_mm             distance of the CT's slices, for subgroups by slice thickness
    mean_hu              of the vertebra
    body_share           largest share of body voxels of an 18 mm crop; below 1 none fits the body
    baseline_hu, baseline_hu_age   probabilities of `osteojax.evaluation.baselines`
    ood_distance, ood_percentile   from the training vertebrae (`evaluation.statistics.ood`)

`from_outputs` makes the model's columns, here and in the tables of `osteojax predict`.
Tables of 0.1 number the experts from 0 (gate_0 is expert_1); `read` renames them.

The rest of `osteojax.evaluation` expects a table that passed `check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from osteojax.errors import UserError
from osteojax.evaluation.columns import (
    EXTRA,
    FIXED,
    INTEGERS,
    MODEL_OUTPUTS,
    OPTIONAL_NUMBERS,
    TEXT,
    expert_columns,
    renamed_from_0_1,
)
from osteojax.evaluation.faults import check_identity, check_values, numbers, require_columns, where
from osteojax.files import atomic_path


def from_outputs(outputs: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The model's columns, one row per vertebra, for `evaluate` and `predict`.

    Args:
      outputs: of an exported model, or `osteojax.objectives.diagnosis.in_units`: probability
        f[N] of osteoporosis, bmd_g_cm2 f[N], level_probabilities f[N, 18], gate f[N, experts].

    Returns:
      probability, bmd_pred_g_cm2, level_pred (1-18), level_probability, expert_1, ...
    """
    levels, gate = outputs["level_probabilities"], outputs["gate"]
    return pd.DataFrame(
        {
            "probability": outputs["probability"].astype(np.float64),
            "bmd_pred_g_cm2": outputs["bmd_g_cm2"].astype(np.float64),
            "level_pred": levels.argmax(axis=1) + 1,
            "level_probability": levels.max(axis=1).astype(np.float64),
            **{f"expert_{i + 1}": gate[:, i].astype(np.float64) for i in range(gate.shape[1])},
        }
    )


def check(table: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """The table with its columns typed and in order.

    Args:
      table: one row per vertebra, any column order; empty text and NaN both mean empty.
      source: name of the table in error messages (its path).

    Returns:
      A new table: text as str ("" where empty), optional numbers as float64 (NaN where empty),
      `level_class`, `level_pred`, `truncated` as int64; absent columns are added, with NaN.

    Raises:
      UserError: a column is missing; a prediction is NaN or infinite; a probability is outside
        0-1; a (scan_id, level) occurs twice; a patient is in two splits. It names the row.
    """
    require_columns(table, source)
    if table.empty:
        raise UserError(f"{source}: no rows, nothing to evaluate. Choose another split.")
    experts = expert_columns(table)
    if experts != [f"expert_{i + 1}" for i in range(len(experts))]:
        names = ", ".join(experts)
        raise UserError(f"{source}: expert columns {names}; number them from expert_1 on.")
    extra = [name for name in EXTRA if name in table.columns]
    typed = table[[*FIXED, *experts, *extra]].reset_index(drop=True)
    typed = typed.reindex(columns=[*FIXED, *experts, *EXTRA])
    for name in TEXT:
        typed[name] = typed[name].astype(object).where(typed[name].notna(), "").astype(str)
    for name in (*OPTIONAL_NUMBERS, *INTEGERS, *MODEL_OUTPUTS, *experts, *EXTRA):
        typed[name] = numbers(typed, name, source)
    check_values(typed, experts, source)
    for name in INTEGERS:
        typed[name] = typed[name].astype(np.int64)
    check_identity(typed, source)
    return typed


def set_aside(table: pd.DataFrame, source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Separates rows that can be evaluated from those that cannot, so that one bad row does not
    prevent the report.

    Rows are left out if a prediction is NaN or infinite, or if the vertebra occurs several times
    with different values (it is not known which is right). Of equal copies the first is kept.

    Args:
      table: as for `check`.
      source: name of the table in error messages.

    Returns:
      the usable rows, in order, and the others as split, scan_id, level, reason.

    Raises:
      UserError: columns are missing, or no row is usable.
    """
    require_columns(table, source)
    table = table.reset_index(drop=True)
    reasons = pd.Series("", index=table.index)
    copies = table.duplicated()
    twice = table[~copies].duplicated(["scan_id", "level"], keep=False)
    reasons[twice[twice].index] = "scan and level occur several times, with different values"
    for name in reversed((*MODEL_OUTPUTS, *expert_columns(table))):
        values = numbers(table, name, source)
        for bad in values[~np.isfinite(values)].index:
            reasons[bad] = f"{name} is {values[bad]:g}"
    reasons[copies] = "a copy of another row"
    out = reasons != ""
    if len(table) and out.all():
        raise UserError(
            f"{source}: none of {len(table)} vertebrae can be evaluated; {where(table, 0)}: "
            f"{reasons.iloc[0]}. NaN from a model means that it diverged: evaluate an earlier "
            "checkpoint."
        )
    left_out = table.loc[out, ["split", "scan_id", "level"]].assign(reason=reasons[out])
    return table[~out].reset_index(drop=True), left_out.reset_index(drop=True)


def paired(
    first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str] = ("first", "second")
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two models' predictions of the same vertebrae, in the same order.

    Raises:
      UserError: a table is unusable, or the two have different vertebrae or labels (another cohort,
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
        values = [table[name].fillna(-1.0) if name in OPTIONAL_NUMBERS else table[name]
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
        # Columns are read as text and converted later, so that a site called "NA" is not missing.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error}). Evaluate again.") from error
    return check(renamed_from_0_1(table), str(path))


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
