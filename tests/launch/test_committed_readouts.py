"""Committed pages of readout studies say what their committed predictions say.

benchmarks/<study>.md is the page of configs/studies/<study>.py, benchmarks/<study>/ its tables.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from launch.readouts import page
from launch.readouts.run import page_again
from launch.studies.plan import load_study

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted(path.parent.parent for path in ROOT.glob("benchmarks/*/cases/main.csv"))
CELL = re.compile(r"\| (-?\d\.\d{3})")


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_primary_rows_are_those_of_the_committed_predictions(folder: Path, tmp_path: Path) -> None:
    """Without the intervals, whose bootstrap takes minutes."""
    study = load_study(str(ROOT / "configs" / "studies" / f"{folder.name}.py"))
    some = tuple(row for row in study.questioned if row.encoder)
    quick = dataclasses.replace(study, rows=some, contrasts=(), resamples=2)
    page_again(quick, folder, tmp_path)
    written = folder.with_suffix(".md").read_text(encoding="utf-8")
    found = {(line.split("|")[1], *CELL.findall(line)) for line in lines_of(written)}
    made = lines_of((tmp_path / "study.md").read_text(encoding="utf-8"))
    compared = set()
    for line in made:
        name = line.split("|")[1]
        if name.strip() in {row.name for row in some}:
            assert (name, *CELL.findall(line)) in found
            compared.add(name)
    assert len(compared) == len(some)


@pytest.mark.slow
@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_a_committed_page_is_made_of_its_predictions(folder: Path, tmp_path: Path) -> None:
    study = load_study(str(ROOT / "configs" / "studies" / f"{folder.name}.py"))
    outcome = page_again(study, folder, tmp_path)
    written = lines_of(folder.with_suffix(".md").read_text(encoding="utf-8"))
    assert isinstance(outcome.results, page.Results)
    for grid in outcome.grids:
        assert set(lines_of(grid.markdown())) <= set(written), grid.title
