"""Refuses a DXA table whose columns hold another quantity or unit than their names say.

One wrong value is a typing error and fails alone. Where the column as a whole is wrong, single
values may still look right (a T-score of 0.6 is a possible BMD), so the table is refused.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_prep.csv_input import Row
from osteojax.errors import CaseError, UserError

LARGEST_G_CM2 = 10.0
"""A larger value has another unit than g/cm^2."""
LEAST_MG_CM2 = 300.0
"""A column of mg/cm^2 has a larger median (the lowest of 3,048 simulated vertebrae has 294), one of
mg/cm^3 a smaller one (trabecular bone of healthy young adults has 150 to 200)."""
FEW, MANY = 10, 2
"""In fewer values than `FEW` one negative value makes a column of T-scores, else `MANY` do."""
WIDEST_HALF_G_CM2 = 1.0
"""A column whose quartiles are farther apart is T-scores. Of 3,048 simulated vertebrae (both sexes,
four levels, three scanners) they are 0.31 apart, those of their T-scores 2.8; among 20,000 draws of
eight BMD values they are never more than 0.74 apart."""
ENOUGH = 8
"""Values that the distance of quartiles needs."""
BMD_RANGE_G_CM2 = (0.3, 2.0)


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A number of a column with its line."""

    line: int
    value: float


def refuse_wrong_columns(rows: list[Row]) -> None:
    """Raises UserError where `bmd_g_cm2` holds T-scores or another unit, or `t_score` holds BMD."""
    bmd = _cells(rows, "bmd_g_cm2")
    if bmd:
        _refuse_units(rows[0].table, bmd)
        _refuse_t_scores(rows[0].table, bmd)
    scores = _cells(rows, "t_score")
    low, high = BMD_RANGE_G_CM2
    if len(scores) >= ENOUGH and all(low <= cell.value <= high for cell in scores):
        raise UserError(
            f"{rows[0].table}: all {len(scores)} values of t_score are from "
            f"{min(cell.value for cell in scores):g} to {max(cell.value for cell in scores):g}, as "
            "BMD in g/cm^2 is and T-scores of patients are not. Put them in bmd_g_cm2."
        )


def _cells(rows: list[Row], column: str) -> list[_Cell]:
    cells = []
    for row in rows:
        try:
            value = row.number(column, -math.inf, math.inf, "")
        except CaseError:
            continue  # its row fails with a message of its own
        if value is not None:
            cells.append(_Cell(row.line, value))
    return cells


def _refuse_units(table: str, cells: list[_Cell]) -> None:
    large = [cell for cell in cells if cell.value > LARGEST_G_CM2]
    if len(large) <= len(cells) / 2:
        return
    median = float(np.median([cell.value for cell in large]))
    if median >= LEAST_MG_CM2:
        remedy = "It looks like mg/cm^2: divide by 1000."
    else:
        remedy = (
            "It looks like volumetric BMD in mg/cm^3, which is no DXA result: leave bmd_g_cm2 "
            "empty and give t_score or osteoporosis."
        )
    raise UserError(
        f"{table}: {len(large)} of {len(cells)} values of bmd_g_cm2 are above {LARGEST_G_CM2:g} "
        f"({large[0].value:g} in line {large[0].line}), so the column is not in g/cm^2. {remedy}"
    )


def _refuse_t_scores(table: str, cells: list[_Cell]) -> None:
    negative = [cell for cell in cells if cell.value < 0]
    if len(negative) >= (1 if len(cells) < FEW else MANY):
        reason = (
            f"{len(negative)} of {len(cells)} values of bmd_g_cm2 are negative "
            f"({negative[0].value:g} in line {negative[0].line})"
        )
    else:
        values = [cell.value for cell in cells if cell.value <= LARGEST_G_CM2]
        if len(values) < ENOUGH:
            return
        first, third = np.quantile(values, [0.25, 0.75])
        if third - first <= WIDEST_HALF_G_CM2:
            return
        reason = f"half of the values of bmd_g_cm2 are not between {first:.2f} and {third:.2f}"
    raise UserError(
        f"{table}: {reason}, so the column holds T-scores, not BMD in g/cm^2. Put T-scores in the "
        "column t_score and leave bmd_g_cm2 empty; if it is BMD, correct these values."
    )
