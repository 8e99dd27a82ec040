"""`osteojax benchmark input`: what is read, from where, and the folder that stands in for one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.vertebrae.texture import TextureSettings
from launch import cli
from launch.benchmarks import input as benchmark
from launch.benchmarks import stand_in_folder
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import IMAGE_ONLY, POOL
from tests.tiny_cohort import write_tiny_cohort

TEXTURE = TextureSettings(kernel_radius=1)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No cubes, and with a margin."""
    folder = tmp_path_factory.mktemp("input") / "images"
    return write_tiny_cohort(
        folder, 8, texture=TEXTURE, stored=IMAGE_ONLY, shape=(14, 16, 18), margin=1
    )


def test_every_stream_a_folder_can_serve(image_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "input.json"
    argv = ["--folder", str(image_folder), "--batch", "8", "--repeats", "1", "--json", str(out)]
    assert cli.main(["benchmark", "input", *argv]) == 0
    assert "swav, offline: not measured" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    found = {(row["objective"], row["textures"], row["data"]): row for row in rows}
    assert found.keys() == {
        (*stream, data)
        for stream in (("swav", "online"), ("multitask", "offline"))
        for data in ("cold", "cached", "resident")
    }
    for row in rows:
        assert row["code_bytes_per_sample"] == 14 * 16 * 18
        assert row["image_shape"] == [14, 16, 18]
        assert row["samples_per_second"] > 0
        assert row["samples_an_epoch"] % 8 == 0
    assert 0 <= found["swav", "online", "cold"]["share_in_cache_when_cold"] <= 1
    assert found["swav", "online", "cached"]["share_in_cache_when_cold"] is None


def test_each_epoch_reads_every_batch_and_cold_ones_forget_first(tmp_path: Path, monkeypatch):
    """The order of forgetting and reading, and how many vertebrae an epoch reads, by counting."""
    events: list[str] = []
    cohort = PreparedCohort(write_tiny_cohort(tmp_path / "pool", 8, texture=TEXTURE))
    experiment = benchmark._experiment(cohort, "swav", "offline", batch_size=8)
    rows = len(experiment.objective.training_rows())
    monkeypatch.setattr(benchmark, "drop_from_cache", lambda path: bool(events.append("drop")) or 1)
    monkeypatch.setattr(benchmark, "share_in_cache", lambda path: 0.25)
    read = benchmark._from_disk(experiment, rows // 8)
    monkeypatch.setattr(
        benchmark, "_from_disk", lambda *_: lambda: (events.append("epoch"), read())[0]
    )
    row = benchmark._row(experiment, "cold", repeats=2)
    assert row is not None
    assert events == ["drop"] + ["drop", "epoch"] * 3
    assert row["share_in_cache_when_cold"] == 0.25
    assert row["code_bytes_per_sample"] == 2 * 16**3
    assert row["samples_an_epoch"] == rows // 8 * 8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch", "0"], "--batch 0"),
        (["--folder", "x", "--vertebrae", "3"], "leave out --folder"),
        (["--folder", "nowhere"], "no manifest.json"),
        (["--size", "48"], "96, 64, 32"),
    ],
)
def test_a_users_mistake_is_one_line(argv: list[str], message: str, capsys) -> None:
    assert cli.main(["benchmark", "input", *argv]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_too_few_vertebrae_for_a_batch_are_said(image_folder: Path, capsys) -> None:
    argv = ["--folder", str(image_folder), "--batch", "64"]
    assert cli.main(["benchmark", "input", *argv]) == 1
    assert "Give a smaller --batch" in capsys.readouterr().err


@pytest.mark.slow
def test_the_stand_in_folder_is_a_prepared_one(tmp_path: Path) -> None:
    """More vertebrae than were simulated, each with records of its own that are the original's."""
    cohort = PreparedCohort(stand_in_folder.write_stand_in_folder(tmp_path, 32, vertebrae=15))
    original = PreparedCohort(tmp_path / "prepared")
    assert len(cohort) == 15 > len(original) == 12
    assert cohort.about.texture == original.about.texture
    for row in (0, 14):
        np.testing.assert_array_equal(
            cohort.members(row, list(POOL)), original.members(row % 12, list(POOL))
        )
    assert cohort.table["patient_id"].nunique() == 3
    assert len(cohort.rows("train")) == 15
    assert len(cohort.rows("train", labelled=True)) > 0
