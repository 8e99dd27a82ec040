"""Typing errors in cohort.csv and dxa.csv, corrected before the second run."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from osteojax.data.cohort import PreparedCohort
from tests.data_prep.interrupted import noted_cases
from tests.data_prep.phantom import write_table
from tests.data_prep.prepared import contents, prepare


def change(path, row: int, **values: str) -> None:
    """Rewrites fields of one row of a table."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[row] |= values
    write_table(path, rows)


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """Scans that were read, in order."""
    return noted_cases(monkeypatch)


def test_only_the_scan_of_the_wrong_row_is_read_again(
    cohort_folder, prepared, tmp_path, done, capsys
):
    """s1's row fails, and so does the result of s2/L1; the others get their right splits."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(cohort_folder, copy)
    change(copy / "cohort.csv", 1, sex="woman")
    change(copy / "dxa.csv", 4, bmd_g_cm2="0,8")
    assert prepare(copy, out) == 1
    assert "2 failures, all listed" in capsys.readouterr().err
    assert done == ["s0", "s2", "s3", "s4"]
    splits = dict(PreparedCohort(out).table[["scan_id", "split"]].drop_duplicates().to_numpy())
    done.clear()
    for name in ("cohort.csv", "dxa.csv"):
        shutil.copy(cohort_folder / name, copy)
    assert prepare(copy, out) == 0
    assert done == ["s1"]
    assert contents(out) == contents(prepared)
    right = dict(PreparedCohort(out).table[["scan_id", "split"]].drop_duplicates().to_numpy())
    moved = sum(right[scan] != split for scan, split in splits.items())
    told = " ".join(capsys.readouterr().out.split())
    assert (f"put {moved} finished scans into another split" in told) == (moved > 0)


def test_a_corrected_result_reads_no_scan(cohort_folder, prepared, tmp_path, done):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(cohort_folder, copy)
    shutil.copytree(prepared, out)
    change(copy / "dxa.csv", 4, bmd_g_cm2="0.5")
    assert prepare(copy, out) == 0
    table = PreparedCohort(out).table.set_index(["scan_id", "level"])
    row = table.loc[("s2", "L1")]
    assert (row["bmd_g_cm2"], row["osteoporosis"]) == (0.5, 1)
    shutil.copy(cohort_folder / "dxa.csv", copy)
    assert prepare(copy, out) == 0
    assert done == []
    assert contents(out) == contents(prepared)


def test_items_name_scans_and_no_file(prepared):
    items = json.loads((prepared / "items.json").read_text())
    assert [case for case, _ in items] == ["s0", "s1", "s2", "s3", "s4"]
    assert all(len(source) == 64 and ".nii" not in source for _, source in items)
