"""Committed pages of studies say what their committed predictions say.

benchmarks/<study>.md is the page of configs/studies/<study>.py, benchmarks/<study>/ its tables.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from launch.readouts.plan import ReadoutStudy
from launch.readouts.run import page_again as page_of_readouts
from launch.studies.plan import load_study
from launch.studies.run import page_again

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = {
    path.parents[1]: load_study(str(ROOT / "configs" / "studies" / f"{path.parents[1].name}.py"))
    for path in sorted(ROOT.glob("benchmarks/*/cases/main.csv"))
}
OF_READOUTS = [path for path, study in COMMITTED.items() if isinstance(study, ReadoutStudy)]
OTHERS = [path for path in COMMITTED if path not in OF_READOUTS]
CELL = re.compile(r"\| (-?\d\.\d{3})")


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def compared_rows(made: Path, committed: Path, rows: set[str]) -> set[str]:
    """Rows of a page whose numbers, without the intervals, are on the committed page too."""
    written = committed.read_text(encoding="utf-8")
    found = {(line.split("|")[1], *CELL.findall(line)) for line in lines_of(written)}
    compared = set()
    for line in lines_of(made.read_text(encoding="utf-8")):
        name = line.split("|")[1]
        if name.strip() in rows:
            assert (name, *CELL.findall(line)) in found
            compared.add(name.strip())
    return compared


@pytest.mark.parametrize("folder", OF_READOUTS, ids=lambda path: path.name)
def test_primary_rows_are_those_of_the_committed_predictions(folder: Path, tmp_path: Path) -> None:
    """Without the intervals, whose bootstrap takes minutes."""
    study = COMMITTED[folder]
    some = tuple(row for row in study.questioned if row.encoder)
    quick = dataclasses.replace(study, rows=some, contrasts=(), resamples=2)
    page_of_readouts(quick, folder, tmp_path)
    names = {row.name for row in some}
    assert compared_rows(tmp_path / "study.md", folder.with_suffix(".md"), names) == names


@pytest.mark.parametrize("folder", OTHERS, ids=lambda path: path.name)
def test_rows_are_those_of_the_committed_predictions(folder: Path, tmp_path: Path) -> None:
    quick = dataclasses.replace(COMMITTED[folder], contrasts=(), resamples=2)
    page_again(quick, folder, tmp_path)
    names = {row.name for row in quick.rows}
    assert compared_rows(tmp_path / "study.md", folder.with_suffix(".md"), names) == names


@pytest.mark.slow
@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_a_committed_page_is_made_of_its_predictions(folder: Path, tmp_path: Path) -> None:
    again = page_of_readouts if folder in OF_READOUTS else page_again
    outcome = again(COMMITTED[folder], folder, tmp_path)
    written = lines_of(folder.with_suffix(".md").read_text(encoding="utf-8"))
    for grid in outcome.grids:
        assert set(lines_of(grid.markdown())) <= set(written), grid.title
