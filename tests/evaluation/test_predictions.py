"""The predictions table: what is written is what is read, and no bad row goes through."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from osteojax.errors import UserError
from osteojax.evaluation import predictions
from osteojax.evaluation.columns import COLUMNS, expert_columns
from tests.evaluation.tables import synthetic


@pytest.fixture
def table() -> pd.DataFrame:
    return synthetic(4, "test", seed=0)


def test_written_table_is_read_back_to_the_last_digit(tmp_path, table):
    path = tmp_path / "predictions.csv"
    predictions.write(path, table)
    pd.testing.assert_frame_equal(predictions.read(path), predictions.check(table))
    assert list(predictions.read(path).columns) == list(COLUMNS)
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_empty_cells_stay_empty_and_a_site_called_na_stays_a_site(tmp_path, table):
    table["site"] = "NA"
    table.loc[0, ["sex", "device"]] = ""
    predictions.write(tmp_path / "p.csv", table)
    text = (tmp_path / "p.csv").read_text().splitlines()
    assert text[1].split(",")[2] == "NA"
    assert ",nan," not in "".join(text).lower()
    back = predictions.read(tmp_path / "p.csv")
    assert set(back["site"]) == {"NA"}
    assert back["device"][0] == ""
    assert back["osteoporosis"].isna().sum() == table["osteoporosis"].isna().sum() > 0


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("probability", np.nan, "row 4 .*L2.*probability is nan.*earlier checkpoint"),
        ("bmd_pred_g_cm2", np.inf, "row 4 .*bmd_pred_g_cm2 is inf"),
        ("expert_2", np.nan, "row 4 .*expert_2 is nan"),
        ("probability", 1.2, "row 4 .*probability is 1.2.*outside 0 to 1"),
        ("probability", -0.1, "probability is -0.1"),
        ("level_pred", 19, "level_pred is 19.*outside 1 to 18"),
        ("level_pred", 2.5, "level_pred is 2.5.*whole"),
        ("osteoporosis", 0.5, "osteoporosis is 0.5.*whole"),
        ("expert_1", 0.0, "expert weights sum to"),
        ("level", "L9", "level 'L9' with level_class"),
        ("level_class", 3, "level_class 3"),
        ("split", "testing", "split 'testing'; splits are"),
        ("patient_id", "", "patient_id is empty"),
        ("age", "old", "age is 'old', not a number"),
    ],
)
def test_a_bad_value_names_row_and_value(table, column, value, expected):
    table[column] = table[column].astype(object)
    table.loc[2, column] = value
    with pytest.raises(UserError, match=expected):
        predictions.check(table, "p.csv")


def test_duplicate_vertebra_names_both_rows(table):
    twice = pd.concat([table, table.iloc[[1]]], ignore_index=True)
    with pytest.raises(UserError, match=rf"row {len(table) + 2} .*as row 3"):
        predictions.check(twice)


def test_patient_in_two_splits_is_refused(table):
    table.loc[0, "split"] = "valid"
    with pytest.raises(UserError, match="is in splits valid, test"):
        predictions.check(table)


def test_missing_column_missing_file_and_no_rows(tmp_path, table):
    with pytest.raises(UserError, match="columns missing: probability"):
        predictions.check(table.drop(columns="probability"))
    with pytest.raises(UserError, match="no such file"):
        predictions.read(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="no rows"):
        predictions.check(table.iloc[:0])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="not a CSV table"):
        predictions.read(tmp_path / "empty.csv")


def test_a_refused_table_leaves_no_file(tmp_path, table):
    table.loc[0, "probability"] = np.nan
    with pytest.raises(UserError):
        predictions.write(tmp_path / "p.csv", table)
    assert list(tmp_path.iterdir()) == []


def test_any_number_of_experts(table):
    without = table.drop(columns=["expert_1", "expert_2", "expert_3"])
    assert expert_columns(predictions.check(without)) == []
    with pytest.raises(UserError, match="number them from expert_1"):
        predictions.check(table.rename(columns={"expert_1": "expert_8"}))


def test_columns_that_may_be_absent_are_there_and_empty(table):
    old = predictions.check(table.drop(columns=["slice_mm", "mean_hu"]))
    assert old[["slice_mm", "mean_hu", "baseline_hu", "ood_distance"]].isna().all(axis=None)
    assert predictions.check(table)["slice_mm"].tolist() == table["slice_mm"].tolist()
    with pytest.raises(UserError, match=r"baseline_hu is 2.*outside 0 to 1"):
        predictions.check(table.assign(baseline_hu=2.0))


def test_rows_that_cannot_be_evaluated_are_set_aside_with_their_reason(table):
    spoilt = table.copy()
    spoilt.loc[3, "probability"] = np.nan
    spoilt.loc[5, "expert_2"] = np.inf
    other = table.iloc[[7]].assign(probability=0.123)
    usable, left_out = predictions.set_aside(
        pd.concat([spoilt, other, table.iloc[[9]]], ignore_index=True), "p.csv"
    )
    assert left_out["reason"].tolist() == [
        "probability is nan",
        "expert_2 is inf",
        *["scan and level occur several times, with different values"] * 2,
        "a copy of another row",
    ]
    assert left_out["level"].tolist() == table["level"].iloc[[3, 5, 7, 7, 9]].tolist()
    expected = table.drop(index=[3, 5, 7]).reset_index(drop=True)
    pd.testing.assert_frame_equal(predictions.check(usable), predictions.check(expected))


def test_a_diverged_model_leaves_nothing_to_evaluate(table):
    with pytest.raises(UserError, match=r"none of 20 vertebrae .*probability is nan.*diverged"):
        predictions.set_aside(table.assign(probability=np.nan), "p.csv")
    with pytest.raises(UserError, match="'high', not a number"):
        predictions.set_aside(table.assign(probability="high"), "p.csv")
    with pytest.raises(UserError, match="columns missing: probability"):
        predictions.set_aside(table.drop(columns="probability"), "p.csv")


def test_pairs_are_of_one_cohort(table):
    second = table.assign(probability=1 - table["probability"]).sample(frac=1, random_state=0)
    first, other = predictions.paired(table, second)
    assert (first[["scan_id", "level"]] == other[["scan_id", "level"]]).all(axis=None)
    np.testing.assert_allclose(first["probability"], 1 - other["probability"], rtol=1e-12)
    with pytest.raises(UserError, match=r"test-A0000-ct/L1 is in the predictions of a and not in"):
        predictions.paired(table, table[table.index != 1], ("a", "b"))
    relabelled = table.copy()
    row = table["osteoporosis"].notna().idxmax()
    relabelled.loc[row, "osteoporosis"] = 1 - table.loc[row, "osteoporosis"]
    with pytest.raises(UserError, match=r"osteoporosis is .* different preparations"):
        predictions.paired(table, relabelled)
    with pytest.raises(UserError, match="not of one cohort"):
        predictions.paired(table, synthetic(4, "valid", 0))


def test_experts_of_0_1_were_numbered_from_0(table, tmp_path):
    old = table.rename(columns={f"expert_{i + 1}": f"gate_{i}" for i in range(3)})
    old.to_csv(tmp_path / "old.csv", index=False)
    predictions.write(tmp_path / "new.csv", table)
    pd.testing.assert_frame_equal(
        predictions.read(tmp_path / "old.csv"), predictions.read(tmp_path / "new.csv")
    )


def test_the_models_columns_by_hand():
    outputs = {
        "probability": np.array([0.25, 0.5], np.float32),
        "bmd_g_cm2": np.array([0.5, 1.0], np.float32),
        "level_probabilities": np.array([[0.25, 0.75, 0], [0.5, 0.125, 0.375]], np.float32),
        "gate": np.array([[0.75, 0.25], [0, 1]], np.float32),
    }
    expected = {
        "probability": [0.25, 0.5], "bmd_pred_g_cm2": [0.5, 1.0], "level_pred": [2, 1],
        "level_probability": [0.75, 0.5], "expert_1": [0.75, 0], "expert_2": [0.25, 1],
    }  # fmt: skip
    pd.testing.assert_frame_equal(predictions.from_outputs(outputs), pd.DataFrame(expected))
