"""Doubts of `osteojax prepare`: kept, counted and listed, or failures with `--doubts fail`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from data_prep.parts import load_report
from launch.cli import main
from osteojax.data.cohort import open_cohort
from osteojax.data.manifest import load_manifest
from osteojax.errors import UserError
from tests.data_prep.prepared import contents
from tests.pictures import commands, recipe

OF_SCAN = ("P01-left", "its stripes are 40 px wide.", "Look at the picture.")
OF_TABLE = ("P09", "its line has two widths.", "Keep one of them.")


@pytest.fixture
def doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind doubts one picture and one row of the table."""
    prepare, read = recipe.Recipe.prepare, recipe.read

    def prepare_doubting(self, item, complete):
        report, records = prepare(self, item, complete)
        if item.case == OF_SCAN[0]:
            report = dataclasses.replace(report, doubts=[OF_SCAN])
        return report, records

    monkeypatch.setattr(recipe.Recipe, "prepare", prepare_doubting)
    monkeypatch.setattr(
        recipe, "read", lambda args: dataclasses.replace(read(args), doubts=[OF_TABLE])
    )


def rows(path: Path) -> list[tuple[str, ...]]:
    return [tuple(row) for row in pd.read_csv(path, dtype=str).itertuples(index=False)]


def test_doubts_alone_are_kept_counted_and_listed(folder, prepared, doubtful, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(commands.prepare(folder, out)) == 0
    assert rows(out / "doubts.csv") == [OF_TABLE, OF_SCAN]
    assert rows(out / "failures.csv") == []
    assert load_manifest(out).doubts == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"osteojax prepare: 2 doubts, all listed in {out}/doubts.csv" in told
    assert "doubt: P01-left: its stripes are 40 px wide. Look at the picture." in told
    # Records and settings are those of a folder without doubts, and a rerun changes nothing.
    found = contents(out)
    for name, content in contents(prepared).items():
        if name.startswith("shards/") or name == "settings.json":
            assert found[name] == content
    assert len(open_cohort(out)) == len(open_cohort(prepared))
    assert main(commands.prepare(folder, out)) == 0
    assert contents(out) == found


def test_doubtful_pictures_fail_if_asked(folder, prepared, doubtful, tmp_path, capsys):
    out = tmp_path / "out"
    command = [*commands.prepare(folder, out), "--doubts", "fail"]
    assert main(command) == 1
    assert rows(out / "failures.csv") == [OF_SCAN]
    assert json.loads((out / "settings.json").read_text())["doubts"] == "fail"
    assert len(open_cohort(out)) == len(open_cohort(prepared)) - 1
    assert "1 failures, all listed" in capsys.readouterr().err
    assert main(commands.prepare(folder, out)) == 1  # keeping them is another folder
    assert 'doubts was "fail", now null' in capsys.readouterr().err


def test_a_folder_without_doubts_names_none(prepared):
    assert rows(prepared / "doubts.csv") == []
    assert "doubts" not in json.loads((prepared / "manifest.json").read_text())
    assert "doubts" not in json.loads((prepared / "settings.json").read_text())
    assert load_manifest(prepared).doubts == 0


def test_a_report_of_an_earlier_version_has_no_doubts(prepared, tmp_path):
    content = json.loads((prepared / "parts" / "000000.json").read_text())
    del content["doubts"]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "000000.json").write_text(json.dumps(content))
    assert load_report(tmp_path, 0) == load_report(prepared, 0)
    assert load_report(tmp_path, 0).doubts == []


@pytest.mark.parametrize("wrong", [-1, "2", 1.5, None])
def test_a_manifest_with_a_wrong_number_of_doubts_is_refused(prepared, tmp_path, wrong):
    content = json.loads((prepared / "manifest.json").read_text()) | {"doubts": wrong}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="doubts"):
        load_manifest(tmp_path)
