"""A cohort of phantoms as files, and the folder prepared from it without interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_prep.prepared import prepare, write_cohort


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory) -> Path:
    """cohort.csv, dxa.csv and the CTs and masks they name; not to be changed."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(cohort_folder, tmp_path_factory) -> Path:
    """The prepared folder; not to be changed."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert prepare(cohort_folder, out) == 0
    return out
