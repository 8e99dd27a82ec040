"""`osteojax benchmark online`: what is saved, what is said, and the whole of it once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.vertebrae.texture import TextureSettings
from launch import cli
from launch.benchmarks import online as benchmark
from launch.benchmarks.experiment import stand_in_cohort
from osteojax.data.cohort import PreparedCohort
from osteojax.data.online import online_texture
from osteojax.data.vertebrae import IMAGE_ONLY
from tests.small_runs import pretraining
from tests.tiny_cohort import write_tiny_cohort

TEXTURE = TextureSettings(kernel_radius=1)


def test_raw_bytes() -> None:
    cohort = stand_in_cohort(96)
    texture = online_texture("online", cohort)
    assert texture is not None
    row = benchmark._saved_row(cohort, texture, batch=8)
    planes = 3 * 96**3 / 8
    assert row["disk_bytes_per_vertebra_offline"] == 5 * 96**3 + planes
    assert row["disk_bytes_per_vertebra_online"] == 96**3 + planes
    assert row["input_bytes_per_step_offline"] == 2 * row["input_bytes_per_step_online"]
    assert not row["disk_compressed"]


def test_bytes_on_disk_are_those_of_either_folder(tmp_path: Path) -> None:
    folders = {}
    for name, stored in benchmark._STORED.items():
        folders[name] = write_tiny_cohort(tmp_path / name, 4, texture=TEXTURE, stored=stored)
    for folder in folders.values():  # the folder's own kind does not matter
        cohort = PreparedCohort(folder)
        texture = online_texture("online", cohort)
        assert texture is not None
        found = benchmark._disk_bytes(cohort, texture)
        for name, other in folders.items():
            shard = next((other / "shards").iterdir())
            assert found[name] == pytest.approx(shard.stat().st_size / len(cohort), rel=0.02)


@pytest.mark.parametrize(("seconds", "use"), [(0.04, "online"), (0.06, "offline")])
def test_five_percent_decides(seconds: float, use: str) -> None:
    rows = [
        {"measurement": "maps", "lowering": "members", "seconds": seconds},
        {"measurement": "step", "textures": "offline", "step_seconds": 0.98},
        {"measurement": "step", "textures": "online", "step_seconds": 1.0},
    ]
    verdict = benchmark._verdict(rows)
    assert verdict["use"] == use
    assert verdict["step_difference"] == pytest.approx(0.02)
    assert f"textures={use}" in benchmark._line(verdict)


def test_a_wrong_number_is_one_line(capsys) -> None:
    assert cli.main(["benchmark", "online", "--batch", "0"]) == 1
    assert "--batch 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "get_config", pretraining)
    folder = write_tiny_cohort(tmp_path / "pool", 4, texture=TEXTURE, stored=IMAGE_ONLY)
    argv = ["benchmark", "online", "--data", str(folder), "--batch", "8", "--width", "4"]
    assert cli.main([*argv, "--repeats", "2", "--json", str(tmp_path / "online.json")]) == 0
    rows = json.loads((tmp_path / "online.json").read_text())["rows"]
    assert [row["measurement"] for row in rows] == ["maps"] * 4 + ["step"] * 2 + [
        "bytes",
        "verdict",
    ]
    assert all(row["image_size"] == 16 and row["kernel_radius"] == 1 for row in rows)
    utilised = [row["model_flops_utilization"] for row in rows if row["measurement"] == "step"]
    assert all(0 < share < 1 for share in utilised)
    rates = [row["map_voxels_per_second"] for row in rows if row["measurement"] == "maps"]
    assert np.isfinite(rates).all()
