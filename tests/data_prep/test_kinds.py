"""`--kind` finds a recipe; a mistake says what to write."""

from __future__ import annotations

import sys

import pytest

import data_prep.vertebrae.recipe
from data_prep.kinds import known_kinds, recipe_module
from launch.cli import main


def test_kinds_are_the_folders_that_have_a_recipe():
    assert "vertebrae" in known_kinds()
    assert "simulate" not in known_kinds()
    assert recipe_module("vertebrae") is data_prep.vertebrae.recipe
    assert recipe_module("data_prep.vertebrae") is data_prep.vertebrae.recipe


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("vertebra", "--kind vertebra: choose from vertebrae, or give the dotted name"),
        ("../vertebrae", "choose from vertebrae"),
        ("tests.pixtures", "no module tests.pixtures"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, kind, told):
    assert main(["prepare", "--kind", kind, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1


def test_help_shows_the_options_of_the_kind(tmp_path, capsys, monkeypatch):
    (tmp_path / "lab" / "stones").mkdir(parents=True)
    (tmp_path / "lab" / "stones" / "recipe.py").write_text(
        '"""Stones -> shards.\n\nbring   stones.csv\n"""\n\n'
        "def add_arguments(group):\n    group.add_argument('--weight')\n\n"
        "def recipe(args): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shown = {}
    for kind in ("vertebrae", "lab.stones"):
        with pytest.raises(SystemExit):
            main(["prepare", f"--kind={kind}", "--help"])
        shown[kind] = capsys.readouterr().out
    assert "--kernel-radius" in shown["vertebrae"]
    assert "dxa.csv     patient_id, level, device" in shown["vertebrae"]
    assert "--weight" in shown["lab.stones"]
    assert "bring   stones.csv" in shown["lab.stones"]
    assert "--kernel-radius" not in shown["lab.stones"]
    for text in shown.values():
        assert "--scans-per-shard" in text
        assert "Rerunning the same command resumes" in text
    sys.modules.pop("lab.stones.recipe")
