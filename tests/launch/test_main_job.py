"""The demo's own commands from simulated CTs to a prediction, with fewer patients and layers and
larger voxels."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from launch import cli, demo
from launch.readouts import rise
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import POOL
from tests.small_runs import SMALL

CHOICE = ("--config.checkpoint.best_metric=loss", "--config.checkpoint.best_mode=min")
"""So few patients may leave validation with one class."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole demo."""
    folder = tmp_path_factory.mktemp("demo")
    for command in demo.commands(folder, patients=14, seed=1):
        if command[0] == "prepare":
            command[command.index("--size") + 1] = "32"
        if command[0] == "train":
            command += [*SMALL, "--config.model.stage_sizes=(1,)"]
            if "moe_multitask" in command[2]:
                command += CHOICE
        if command[0] == "predict":
            command = demo.with_files(command)
        assert cli.main(command) == 0, command
    return folder


def test_the_cohort_is_prepared_by_patient(out: Path) -> None:
    cohort = PreparedCohort(out / "pool")
    assert cohort.manifest.settings["simulated"] is True
    assert (cohort.table.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(cohort.table.loc[cohort.table["site"] == "D", "split"]) == {"external"}
    assert not cohort.table.loc[cohort.table["split"] == "external", "site"].isin(list("ABC")).any()
    assert cohort.members(0, list(POOL)).std(axis=(1, 2, 3)).min() > 0


def test_fine_tuning_starts_from_the_last_step(out: Path) -> None:
    last = max(int(path.name) for path in (out / "pretrain" / "checkpoints").iterdir())
    assert [path.name for path in (out / "pretrain" / "best").iterdir()] == [str(last)]


def test_the_readout_of_texture_is_told_before_and_after(out: Path) -> None:
    """The start is rebuilt from the seed: its embeddings give the probe that the run logged."""
    found = rise.rises(out / "pretrain", out / "pool", out / "cohort")
    assert [one.number for one in found] == ["texture number", "true spacing"]
    table = PreparedCohort(out / "pool").table
    trained = set(table.loc[table["split"] == "train", "patient_id"])
    assert {one.patients for one in found} == {len(set(table["patient_id"]) - trained)}
    shown = rise.table(found)
    assert [row[0] for row in shown.rows] == ["texture number", "true spacing"]
    assert shown.rows[1][1].startswith(f"{found[1].start[0]:.2f}")


def test_the_evaluation_is_whole(out: Path) -> None:
    folder = out / "finetune" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["context"]["simulated"] is True
    assert set(metrics["diagnosis"]) >= {"vertebra", "patient"}
    predictions = pd.read_csv(folder / "predictions.csv")
    assert set(predictions["split"]) == {"valid", "test", "external"}
    report = (folder / "report.html").read_text()
    assert "simulated" in report.lower()
    assert "data:image/png;base64" in report
    assert 'src="http' not in report
    assert (folder / "roc.png").stat().st_size > 5000


def test_the_export_carries_what_was_fitted(out: Path) -> None:
    card = json.loads((out / "model" / "model.json").read_text())
    metrics = json.loads((out / "finetune" / "evaluation" / "metrics.json").read_text())
    assert card["fitted"] == metrics["fitted"]
    assert card["simulated_training_data"] is True


def test_the_unseen_patient_gets_an_answer(out: Path) -> None:
    answer = json.loads((out / "prediction" / "prediction.json").read_text())
    levels = {row["level"] for row in answer["vertebrae"]}
    assert {"L1", "L2", "L3", "L4"} <= levels
    assert answer["patient"]["probability"] is not None
    assert "This model was trained on simulated CTs." in answer["patient"]["notes"]


def test_another_cohort_is_refused(out: Path, tiny_pool: Path, capsys) -> None:
    workdir = str(out / "finetune")
    assert cli.main(["evaluate", "--workdir", workdir, "--data", str(tiny_pool)]) == 1
    assert "another cohort" in capsys.readouterr().err
    assert cli.main(
        ["evaluate", "--workdir", str(out / "pretrain"), "--data", str(out / "pool")]
    ) == 1  # fmt: skip
    assert "no heads" in capsys.readouterr().err
