"""Folders of earlier versions, opened by this one."""

from __future__ import annotations

import pandas as pd
import pytest

from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import VERTEBRA_COLUMNS, columns
from osteojax.errors import UserError
from tests.tiny_cohort import write_tiny_cohort

ADDED_LATER = [column.name for column in columns(()) if column.added_later]


def test_a_folder_without_the_newest_columns_opens_with_them_empty(tmp_path):
    folder = write_tiny_cohort(tmp_path / "pool", patients=2, size=8)
    whole = PreparedCohort(folder).table
    pd.read_csv(folder / "vertebrae.csv").drop(columns=ADDED_LATER).to_csv(
        folder / "vertebrae.csv", index=False
    )
    old = PreparedCohort(folder).table
    assert set(old.columns) == set(VERTEBRA_COLUMNS)
    assert old[ADDED_LATER].isna().all(axis=None)
    assert whole["slice_mm"].tolist() == [1.0] * 3 + [3.0] * 3
    assert old["mean_hu"].tolist() == whole["mean_hu"].tolist()


def test_any_other_missing_column_is_an_error(tmp_path):
    folder = write_tiny_cohort(tmp_path / "pool", patients=1, size=8)
    pd.read_csv(folder / "vertebrae.csv").drop(columns="mean_hu").to_csv(
        folder / "vertebrae.csv", index=False
    )
    with pytest.raises(UserError, match=r"columns missing: .*mean_hu"):
        PreparedCohort(folder)
