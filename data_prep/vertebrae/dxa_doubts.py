"""Doubts of a row of dxa.csv: its BMD, T-score and label contradict each other."""

from __future__ import annotations

from data_prep.csv_input import Row
from data_prep.recipe import Doubt
from data_prep.vertebrae.scanners import (
    LEVEL_RATIOS,
    T_SCORE_OSTEOPOROSIS,
    DeviceTable,
    t_score,
)

MARGIN_SD = 2.5
"""How far a T-score may lie from the one that BMD gives by the reference, in SD, because scanners
use references of other populations. Of 3,048 simulated results the largest difference is 0.18, and
1.54 where three scanners measure alike under different names."""
LARGEST_T_SCORE = 7.5
"""In SD, either sign; of BMD alone. Of 3,048 simulated results the extremes are -6.96 and 5.06."""
SURE_SD = 0.5
"""How far below -2.5 a T-score is osteoporosis whatever the rounding, in SD."""


def result_doubts(
    row: Row, level: str, device: str, sex: str | None, devices: DeviceTable
) -> list[Doubt]:
    """Doubts of a row whose fields can be read; each is (case, reason, remedy)."""
    bmd = row.number("bmd_g_cm2", 0, 3, "")
    score = row.number("t_score", -10, 10, "")
    given = row.flag("osteoporosis")
    where = f"{row.table} line {row.line}"
    doubts: list[Doubt] = []
    expected = [] if bmd is None else _t_scores(devices, device, level, sex, bmd)
    if expected:
        low, high = min(expected), max(expected)
        by = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        if score is not None and not low - MARGIN_SD <= score <= high + MARGIN_SD:
            reason = (
                f"{where}: t_score {score:g} does not fit bmd_g_cm2 {bmd:g}, for which the "
                f"references give {by}.{' The T-score is used.' if given is None else ''}"
            )
            remedy = "Compare both with the DXA report; correct the wrong one."
            doubts.append((row.case, reason, remedy))
        if score is None and (high < -LARGEST_T_SCORE or low > LARGEST_T_SCORE):
            reason = f"{where}: bmd_g_cm2 {bmd:g} would be a T-score of {by} by the references."
            remedy = "Check the value, its unit and the device."
            doubts.append((row.case, reason, remedy))
    if given is False and score is not None and score <= T_SCORE_OSTEOPOROSIS - SURE_SD:
        reason = f"{where}: osteoporosis is no, t_score {score:g} says yes. The column is used."
        doubts.append(
            (row.case, reason, "Compare both with the DXA report; correct the wrong one.")
        )
    return doubts


def _t_scores(
    devices: DeviceTable, device: str, level: str, sex: str | None, bmd_g_cm2: float
) -> list[float]:
    """T-scores of a BMD by the references of device and sex; by all where they are not known."""
    if level not in LEVEL_RATIOS:
        return []
    names = [device] if devices.get(device) else list(devices)
    sexes = [sex] if sex else ["F", "M"]
    scores = [t_score(devices, name, level, own, bmd_g_cm2) for name in names for own in sexes]
    return [score for score in scores if score is not None]
