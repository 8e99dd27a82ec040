"""`osteojax benchmark boxes`: bytes and places of prepared folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from launch.benchmarks.boxes import place_rows
from launch.cli import main
from osteojax.data.cohort import PreparedCohort
from tests.tiny_cohort import write_tiny_cohort

EDGES = ("12", "18", "72")


def test_bytes_and_places_of_two_folders(tmp_path: Path, capsys) -> None:
    plain = write_tiny_cohort(tmp_path / "plain", 2)
    wide = write_tiny_cohort(tmp_path / "wide", 2, shape=(18, 20, 22), margin=2)
    out = tmp_path / "boxes.json"
    argv = ["benchmark", "boxes", str(plain), str(wide), "--edges-mm", *EDGES]
    assert main([*argv, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    stored = {row["folder"]: row for row in rows if row["kind"] == "bytes"}
    assert stored["plain"]["bytes_stored"] == stored["plain"]["bytes_shown"]
    assert stored["wide"]["shown"] == [14, 16, 18]
    # The volumes are noise: five bytes a voxel, the planes, and what the file format adds.
    for row in stored.values():
        for which in ("stored", "shown"):
            assert 2.5 < row[f"bytes_{which}"] / np.prod(row[which]) < 12
    text = out.with_suffix(".md").read_text()
    assert "| wide | T12 | 2 |" in text
    assert "none, share" in text
    assert "Places for crops" in capsys.readouterr().out


def test_places_are_counted_in_the_shown_window_and_cut_vertebrae_left_out(tmp_path: Path) -> None:
    folder = write_tiny_cohort(tmp_path / "pool", 2, shape=(18, 20, 22), margin=2)
    table = folder / "vertebrae.csv"
    lines = table.read_text().splitlines()
    place = lines[0].split(",").index("truncated")
    cells = lines[1].split(",")
    cells[place] = "1"  # the first patient's T12
    table.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    cohort = PreparedCohort(folder)
    rows = place_rows(cohort, (18.0,))
    assert [(row["level"], row["vertebrae"]) for row in rows] == [("T12", 1), ("L1", 2), ("L2", 2)]
    for row in rows:
        own = cohort.table["level"] == row["level"]
        assert row["places_max"] == cohort.table.loc[own, "body_places"].max()
        assert row["with_place"] == row["vertebrae"]


def test_a_folder_without_bodies_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    folder = write_tiny_cohort(tmp_path / "pool", 1, body=False)
    assert main(["benchmark", "boxes", str(folder)]) == 1
    assert "Prepare the cohort again" in capsys.readouterr().err
