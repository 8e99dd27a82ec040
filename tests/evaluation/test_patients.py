"""A patient's truth and prediction come from the same, labelled, vertebrae."""

from __future__ import annotations

import numpy as np
import pytest

from osteojax.evaluation import predictions
from osteojax.evaluation.patients import aggregate
from tests.evaluation.tables import synthetic


def small_table():
    """Three patients worked by hand; the third has no label."""
    table = synthetic(3, "test", seed=0)
    table["osteoporosis"] = np.nan
    table.loc[[1, 2], "osteoporosis"] = [0.0, 1.0]
    table.loc[[6, 7, 8], "osteoporosis"] = 0.0
    table.loc[[0, 1, 2], "probability"] = [0.99, 0.2, 0.6]  # 0.99 is unlabelled
    table.loc[[6, 7, 8], "probability"] = [0.1, 0.3, 0.5]
    return predictions.check(table)


def test_any_positive_and_mean_by_hand():
    any_rule, mean_rule = aggregate(small_table(), "any"), aggregate(small_table(), "mean")
    assert list(any_rule["patient_id"]) == ["test-A0000", "test-B0001"]
    assert list(any_rule["osteoporosis"]) == list(mean_rule["osteoporosis"]) == [1, 0]
    assert list(any_rule["vertebrae"]) == [2, 3]
    assert list(any_rule["probability"]) == [0.6, 0.5]
    assert list(mean_rule["probability"]) == pytest.approx([0.4, 0.3])


def test_an_unlabelled_vertebra_never_decides():
    table = small_table()
    before = aggregate(table, "any")
    table.loc[table["osteoporosis"].isna(), "probability"] = 1.0
    assert aggregate(table, "any").equals(before)


@pytest.mark.parametrize("rule", ["any", "mean"])
def test_order_of_rows_does_not_matter(rule):
    table = predictions.check(synthetic(20, "test", seed=5))
    shuffled = table.sample(frac=1, random_state=1).reset_index(drop=True)
    first, second = aggregate(table, rule), aggregate(shuffled, rule)
    np.testing.assert_allclose(first.pop("probability"), second.pop("probability"), rtol=1e-12)
    assert first.equals(second)


def test_two_devices_in_one_patient_are_named_mixed():
    table = small_table()
    table.loc[[1, 2], "device"] = ["hologic", "lunar"]
    assert aggregate(table, "any")["device"][0] == "mixed"


def test_no_labels_no_patients_and_unknown_rule():
    table = small_table()
    table["osteoporosis"] = np.nan
    assert aggregate(table, "any").empty
    with pytest.raises(ValueError, match="any, mean"):
        aggregate(table, "median")
