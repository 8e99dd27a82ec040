"""Columns of dxa.csv that hold another quantity or unit than their names say."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.csv_input import Row
from data_prep.simulate.patients import Settings, draw_patient
from data_prep.vertebrae.dxa_columns import refuse_wrong_columns
from osteojax.errors import UserError


def table(bmd, scores=()) -> list[Row]:
    scores = [*scores, *[""] * (len(bmd) - len(scores))]
    return [
        Row("dxa.csv", i + 2, f"p{i}/L1", {"bmdgcm2": str(value), "tscore": str(score)})
        for i, (value, score) in enumerate(zip(bmd, scores, strict=True))
    ]


@pytest.fixture(scope="module")
def simulated() -> list:
    """DXA results of 400 patients, as they are written into dxa.csv."""
    settings = Settings(seed=11)
    return [result for number in range(400) for result in draw_patient(settings, number).dxa]


@pytest.mark.parametrize(
    ("bmd", "told"),
    [
        (["-0.4", "0.3", "0.6", "1.2"], r"1 of 4 values .* negative \(-0.4 in line 2\).* T-scores"),
        (["0.9", "-1"], r"1 of 2 values .* \(-1 in line 3\)"),
        (["0.9"] * 20 + ["-1.5", "-2"], "2 of 22 values"),
        ([0.1, 0.3, 0.6, 1.2, 1.5, 1.7, 2.1, 2.5], "between 0.53 and 1.80, .*T-scores"),
        ([3.4, 2.1, 1.5, 2.8, 0.4, 2.2, 0.9, 4.0], "T-scores"),  # typed without their sign
        (["950", "1012", "0.88"], r"2 of 3 values .* above 10 \(950 in line 2\).* divide by 1000"),
        (["120.5", "98", "143", ""], r"3 of 3 values .* volumetric BMD in mg/cm\^3"),
    ],
)
def test_a_wrong_column_is_refused_whole(bmd, told):
    with pytest.raises(UserError, match=told) as caught:
        refuse_wrong_columns(table(bmd))
    assert "\n" not in str(caught.value)


def test_bmd_in_the_column_of_t_scores_is_refused():
    with pytest.raises(UserError, match=r"all 9 values of t_score are from 0.7 to 1.1"):
        refuse_wrong_columns(table([""] * 9, [0.7, 0.8, 0.9, 1.0, 1.1, 0.95, 0.85, 0.75, 1.05]))


def test_wrong_values_in_a_right_column_are_left_to_their_rows():
    refuse_wrong_columns(table(["0.9"] * 15 + ["-0.9", "950", "x", "", "0,9", "9"]))
    refuse_wrong_columns(table(["0.9", "950"]))
    refuse_wrong_columns(table(["", "", ""], ["-1", "0.5", "0.6"]))


def test_plausible_columns_are_never_refused(simulated):
    """Columns of every length, also of one sex's or one scanner's results."""
    rng = np.random.default_rng(0)
    for draw in range(400):
        size = int(rng.integers(1, 60))
        chosen = [simulated[i] for i in rng.integers(0, len(simulated), size)]
        scores = [f"{r.t_score:.2f}" for r in chosen] if draw % 2 else []
        refuse_wrong_columns(table([f"{r.bmd_g_cm2:.3f}" for r in chosen], scores))
    refuse_wrong_columns(table([f"{r.bmd_g_cm2:.3f}" for r in simulated]))


def test_every_t_score_column_of_a_cohort_is_seen(simulated):
    """Twenty patients of a cohort, whose T-scores stand in the BMD column."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        chosen = [simulated[i].t_score for i in rng.integers(0, len(simulated), 20)]
        with pytest.raises(UserError, match="T-scores"):
            refuse_wrong_columns(table(chosen))
