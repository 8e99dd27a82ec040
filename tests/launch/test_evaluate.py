"""The verb on a small run: what a fine-tuned model is reported with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch import cli
from launch.evaluation.run import Run
from osteojax.data.cohort import PreparedCohort
from osteojax.evaluation import baselines, predictions
from osteojax.evaluation.statistics import ood
from osteojax.evaluation.vertebrae import in_volume
from tests.tiny_cohort import write_tiny_cohort


@pytest.fixture(scope="module")
def evaluated(fine_tuned: Path, tiny_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluation of the session's small run."""
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    command = ["evaluate", "--workdir", str(fine_tuned), "--data", str(tiny_pool)]
    assert cli.main([*command, "--out", str(out)]) == 0
    return out


def test_baselines_are_fitted_on_training_and_stand_beside_the_model(evaluated, tiny_pool):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    cohort = PreparedCohort(tiny_pool)
    models, notes = baselines.fit(cohort.table.iloc[cohort.rows("train", labelled=True)])
    # All patients of the tiny cohort are 60 years old.
    assert "age is the same" in notes["hu_age"]
    assert any("No baseline HU + age" in warning for warning in metrics["warnings"])
    table = predictions.read(evaluated / "predictions.csv")
    np.testing.assert_allclose(table["baseline_hu"], models["hu"].probability(table), rtol=1e-9)
    assert metrics["context"]["baselines"]["hu"] == models["hu"].as_json()
    assert metrics["baselines"]["hu"]["internal"]["patient"]["n"] > 0


def test_slices_reach_the_subgroups(evaluated, tiny_pool):
    table = predictions.read(evaluated / "predictions.csv")
    assert set(table["slice_mm"]) == {1.0, 3.0}
    rows = pd.read_csv(evaluated / "tables" / "subgroups.csv")
    found = rows[(rows["group"] == "slice thickness") & (rows["unit"] == "vertebra")]
    test = table[table["split"] == "test"]
    assert dict(zip(found["value"], found["n"], strict=True)) == {
        "up to 1.25 mm": (test["slice_mm"] == 1).sum(),
        "2.5-5 mm": (test["slice_mm"] == 3).sum(),
    }


def test_the_distance_from_training_is_stored_for_prediction(evaluated, fine_tuned, tiny_pool):
    stats = ood.load(evaluated / ood.FILE)
    run = Run.open(fine_tuned, tiny_pool, "best")
    rows = run.cohort.rows("train", "valid", "test", labelled=True)
    split = run.cohort.table["split"].to_numpy()[rows]
    embeddings = run.predict(rows)["embedding"]
    expected = ood.fit(embeddings[split == "train"], embeddings[split == "valid"])
    for name, value in expected.items():
        np.testing.assert_allclose(stats[name], value, rtol=1e-3, atol=1e-4)
    table = predictions.read(evaluated / "predictions.csv")
    reported = table[table["split"] == "test"]["ood_distance"]
    distance = ood.ood_distance(embeddings[split == "test"], expected)
    np.testing.assert_allclose(sorted(reported), sorted(distance), rtol=1e-3)


def test_pictures_show_the_stored_volume_under_its_heat(fine_tuned, tiny_pool):
    run = Run.open(fine_tuned, tiny_pool, "best")
    chosen = run.cohort.table.iloc[[7, 3]]
    pictures = run.evaluation.pictures
    variables = {"params": run.params, **run.model_state}
    for picture, row in zip(pictures(variables, chosen), (7, 3), strict=True):
        codes = run.cohort.members(row, ["image"])[0]
        np.testing.assert_array_equal(picture.hu, run.cohort.about.maps[0].decode(codes))
        np.testing.assert_array_equal(picture.mask, run.cohort.array(row, "mask")[0])
        assert picture.heat.shape == picture.hu.shape
        assert picture.heat.min() >= 0


def test_the_heat_of_a_2d_model_lies_in_the_plane_it_saw():
    volume = in_volume(np.ones((4, 4), np.float32), np.zeros((4, 4, 4), np.float32))
    assert volume[..., 2].all()
    assert volume.sum() == 16


def test_errors_are_pictured_in_the_report(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    if metrics["fitted"]["vertebra"]["threshold"] is None:
        pytest.fail("the tiny cohort has both classes in validation")
    shown = [(evaluated / f"{kind}.png").exists() for kind in ("missed", "false_alarms", "hits")]
    assert any(shown)
    assert sum(shown) + 6 == (evaluated / "report.html").read_text().count("data:image/png")


def test_predictions_of_another_cohort_are_refused(fine_tuned, tmp_path, capsys):
    """The same vertebrae, prepared at another size."""
    other = write_tiny_cohort(tmp_path / "pool", patients=10, size=8)
    assert cli.main(["evaluate", "--workdir", str(fine_tuned), "--data", str(other)]) == 1
    assert "was trained on another cohort" in capsys.readouterr().err


def test_a_cohort_without_validation_labels_is_refused(fine_tuned, tiny_pool, tmp_path, capsys):
    pool = tmp_path / "pool"
    shutil.copytree(tiny_pool, pool)
    table = pd.read_csv(pool / "vertebrae.csv")
    table.loc[table["split"] == "valid", ["osteoporosis", "bmd_g_cm2", "device"]] = np.nan
    table.to_csv(pool / "vertebrae.csv", index=False)
    assert cli.main(["evaluate", "--workdir", str(fine_tuned), "--data", str(pool)]) == 1
    assert "no labelled vertebrae in valid to fit thresholds on" in capsys.readouterr().err
