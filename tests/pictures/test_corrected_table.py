"""A corrected table: what had failed is done, nothing else is done again, and the folder is the one
that the right table would have given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

import data_prep.build
import data_prep.correction
from launch.cli import main
from tests.data_prep.interrupted import killed_at, noted_cases
from tests.data_prep.prepared import contents
from tests.pictures import commands


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cases that were prepared, in order."""
    return noted_cases(monkeypatch)


def with_typing_errors(folder: Path, place: Path, cases: tuple[str, ...]) -> pd.DataFrame:
    """Copies the pictures, with a table that has wrong widths in some rows; the right table."""
    shutil.copytree(folder, place)
    right = pd.read_csv(place / "pictures.csv", dtype=str, keep_default_na=False)
    wrong = right.copy()
    wrong.loc[right.picture_id.isin(cases), "width_px"] = "5,x"
    wrong.to_csv(place / "pictures.csv", index=False)
    return right


# The first moves every number behind it; with six the number of shards is another, too.
@pytest.mark.parametrize("count", [1, 6], ids=["one of the first shard", "as many as make a shard"])
def test_only_what_had_failed_is_done(folder, prepared, tmp_path, done, count):
    copy, out = tmp_path / "copy", tmp_path / "out"
    names = pd.read_csv(folder / "pictures.csv").picture_id
    cases = tuple(names[1 : 1 + count])
    with_typing_errors(folder, copy, cases)
    assert main(commands.prepare(copy, out)) == 1
    assert pd.read_csv(out / "failures.csv").case.tolist() == list(cases)
    done.clear()
    shutil.copy(folder / "pictures.csv", copy)
    assert main(commands.prepare(copy, out)) == 0
    assert done == list(cases)
    assert contents(out) == contents(prepared)
    assert not (out / ".moved").exists()


def test_a_corrected_value_of_a_finished_picture(folder, prepared, tmp_path, done):
    """The shard's rows follow, although no picture is read again."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    right = with_typing_errors(folder, copy, ())
    wrong = right.copy()
    wrong.loc[3, "width_px"] = "999"
    wrong.to_csv(copy / "pictures.csv", index=False)
    assert main(commands.prepare(copy, out)) == 0
    done.clear()
    shutil.copy(folder / "pictures.csv", copy)
    assert main(commands.prepare(copy, out)) == 0
    assert done == []
    assert contents(out) == contents(prepared)


def test_a_row_that_had_failed_may_go(folder, tmp_path, done):
    copy, out = tmp_path / "copy", tmp_path / "out"
    names = pd.read_csv(folder / "pictures.csv").picture_id
    right = with_typing_errors(folder, copy, (names[2],))
    assert main(commands.prepare(copy, out)) == 1
    done.clear()
    right.drop(2).to_csv(copy / "pictures.csv", index=False)
    assert main(commands.prepare(copy, out)) == 0
    assert done == []
    assert main(commands.prepare(copy, tmp_path / "fresh")) == 0
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("write_records", 3),  # of 23 finished pictures
        ("write_json", 1),  # all are copied, and nothing says so yet
        ("write_json", 2),  # parts are in place; items.json, then settings.json are not
        ("write_json", 3),
        ("_relabel", 1),
    ],
)
def test_stopped_anywhere_the_rerun_gives_the_same_bytes(
    folder, prepared, tmp_path, monkeypatch, name, call
):
    copy, out = tmp_path / "copy", tmp_path / "out"
    names = pd.read_csv(folder / "pictures.csv").picture_id
    with_typing_errors(folder, copy, (names[0],))
    assert main(commands.prepare(copy, out)) == 1
    shutil.copy(folder / "pictures.csv", copy)
    with killed_at(monkeypatch, data_prep.correction, name, call):
        main(commands.prepare(copy, out))
    assert main(commands.prepare(copy, out)) == 0
    assert contents(out) == contents(prepared)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop(5), "P02-right, which is finished, is not among them"),
        (lambda table: table.assign(file=table.file.values[::-1]), "other files for P00-left"),
    ],
)
def test_a_table_of_another_cohort_is_refused(folder, tmp_path, capsys, change, told):
    copy, out = tmp_path / "copy", tmp_path / "out"
    right = with_typing_errors(folder, copy, ())
    assert main(commands.prepare(copy, out)) == 0
    before = contents(out)
    change(right).to_csv(copy / "pictures.csv", index=False)
    assert main(commands.prepare(copy, out)) == 1
    error = capsys.readouterr().err
    assert "the cohort's tables have other contents: " in error
    assert told in error
    assert "Give another --out" in error
    assert contents(out) == before


def test_a_folder_of_an_earlier_version_resumes_with_the_same_table_only(
    folder, prepared, tmp_path, capsys
):
    copy, out = tmp_path / "copy", tmp_path / "out"
    right = with_typing_errors(folder, copy, ())
    shutil.copytree(prepared, out)
    (out / "items.json").unlink()
    right.assign(width_px="7").to_csv(copy / "pictures.csv", index=False)
    assert main(commands.prepare(copy, out)) == 1
    assert "the cohort's tables have other contents. Give" in capsys.readouterr().err
    shutil.copy(folder / "pictures.csv", copy)
    assert main(commands.prepare(copy, out)) == 0
    assert contents(out) == contents(prepared)
