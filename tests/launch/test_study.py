"""`osteojax study`: what it refuses, what it resumes, what it reports."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch import cli
from launch.configs import load_config
from launch.studies import cohorts as making
from launch.studies import plan
from launch.studies.cohorts import Cohorts
from launch.studies.plan import Cohort, Contrast, Row, load_study, with_settings
from launch.studies.run import Progress, run_study
from launch.studies.runs import Runs
from osteojax.data.cohort import open_cohort
from osteojax.errors import UserError
from osteojax.train.stop import Stopped
from tests.launch.stand_in_study import stand_in_cohort, study

STUDIES = Path(__file__).resolve().parents[2] / "configs" / "studies"
CEILINGS = (Row("oracle", ceiling="oracle"), Row("HU", ceiling="hu"))
FILE = """
from tests.launch.stand_in_study import study
from launch.studies.plan import Row
def get_study(variant):
    return study({})
"""


def write_study(path: Path, fields: str = "") -> str:
    path.write_text(FILE.format(fields))
    return str(path)


@pytest.mark.parametrize("name", ["paper_ladder.py", "paper_ladder.py:full", "paper_ladder_texture.py", "paper_ladder_body.py", "leave_one_device_out.py"])  # fmt: skip  # noqa: E501
def test_shipped_studies_are_whole(name: str) -> None:
    shipped = load_study(str(STUDIES / name))
    pretrain = load_config(shipped.pretrain_config, [])
    for changes in shipped.pretrainings.values():
        with_settings(pretrain, {**shipped.pretrain_settings, **changes}, name)
    finetune = load_config(shipped.finetune_config, [])
    for row in shipped.rows:
        for choice in row.tune or ({},):
            settings = {**shipped.finetune_settings, **row.settings, **choice}
            with_settings(finetune, settings, row.name)
    assert shipped.contrasts
    assert {shipped.tuning_seed}.isdisjoint(shipped.seeds)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": (Row("a", ceiling="oracle"),) * 2}, "two rows are called 'a'"),
        ({"rows": (Row("a", cohort="other"),)}, "cohort 'other'; choose one of main"),
        ({"rows": (Row("a", pretrain="swva"),)}, "pre-training 'swva'; choose one of tp"),
        ({"rows": (Row("a", ceiling="glm"),)}, "ceiling 'glm'; choose one of oracle"),
        ({"rows": (Row("a", told="wrong"),)}, "not like a trained row"),
        ({"rows": (*CEILINGS, Row("a", like="HU"))}, "which trains nothing"),
        ({"rows": (Row("a", tune=({}, {})),)}, "tuning cohort 'tuning'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan.check(study(contrasts=(), **fields))


def test_tuning_on_what_is_reported_is_refused() -> None:
    main = Cohort("--patients 40", "--size 32", 7)
    rows = (Row("a", tune=({}, {})),)
    for cohorts, seed, message in (
        ({"main": main, "tuning": main}, 100, "has the seed"),
        ({"main": main, "tuning": dataclasses.replace(main, seed=8)}, 1, "reported seeds"),
    ):
        with pytest.raises(UserError, match=message):
            plan.check(study(contrasts=(), rows=rows, cohorts=cohorts, tuning_seed=seed))


def test_pretraining_on_a_cohort_with_other_splits_is_refused() -> None:
    main = Cohort("--patients 40", "--size 32", 7)
    rows = (Row("a", "other", "tp", "main"),)
    with pytest.raises(UserError, match="patients could leak"):
        plan.check(study(contrasts=(), rows=rows, cohorts={"main": main, "other": main}))
    shared = dataclasses.replace(main, splits_of="main")
    plan.check(study(contrasts=(), rows=rows, cohorts={"main": main, "other": shared}))


def test_contrasts_are_of_rows_of_one_cohort() -> None:
    silent = Row("silent", settings={"objective.bmd_weight": 0.0})
    rows = (*CEILINGS, Row("elsewhere", "other", ceiling="hu"), silent)
    cohorts = {name: Cohort("--patients 40", "", 7) for name in ("main", "other")}
    for contrast, message in (
        (Contrast("HU", "elsewhere", "AUROC", 1, 0.02), "of two cohorts"),
        (Contrast("HU", "nowhere", "AUROC", 1, 0.02), "no row 'nowhere'"),
        (Contrast("HU", "oracle", "AUC", 1, 0.02), "metric 'AUC'; choose one of AUROC"),
        (Contrast("HU", "oracle", "MAE", 1, 0.02, unit="patient"), "MAE is of vertebrae"),
        (Contrast("HU", "silent", "MAE", 1, 0.02), "does not train its BMD head"),
        (Contrast("HU", "oracle", "AUROC", 2, 0.02), "expected is -1, 0 or 1"),
    ):
        with pytest.raises(UserError, match=message):
            plan.check(study(rows=rows, cohorts=cohorts, contrasts=(contrast,)))


def test_settings_must_be_fields_of_their_type() -> None:
    config = load_config(study().finetune_config, [])
    changed = with_settings(config, {"optim.learning_rate": 3e-3}, "row 'a'")
    assert changed.optim.learning_rate == 3e-3
    assert config.optim.learning_rate != 3e-3
    for name, value in (("optim.rate", 1.0), ("moe.num_experts.x", 1), ("batch_size", "many")):
        with pytest.raises(UserError, match=r"row 'a'.*" + name):
            with_settings(config, {name: value}, "row 'a'")


def test_a_study_of_ceilings_runs_resumes_and_tells_what_failed(
    tiny_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "W"
    stand_in_cohort(workdir, tiny_pool)
    rows = "(*study().rows[3:], Row('bad', settings={'moe.nonsense': 1}))"
    bad = f"rows={rows}, contrasts=study().contrasts[:2]"
    config = write_study(tmp_path / "small.py", bad)
    assert cli.main(["study", config, "--workdir", str(workdir)]) == 1
    assert "the config has no moe.nonsense" in capsys.readouterr().err
    results = json.loads((workdir / "results" / "study.json").read_text())
    assert [(f["row"], f["seed"]) for f in results["failures"]] == [("bad", 0), ("bad", 1)]
    assert {line["row"] for line in results["scores"]} == {"oracle", "HU"}
    oracle = [s for s in results["scores"] if s["row"] == "oracle" and s["group"] == "internal"]
    assert next(s["estimate"] for s in oracle if s["metric"] == "AUROC") == 1.0
    # The patients are few: no interval is made up, and no difference is called.
    for line in results["contrasts"]:
        assert line["low"] is None
        assert line["verdict"] == "not computed: no interval from 8 patients (needs 10)"
    markdown = (workdir / "results" / "study.md").read_text()
    assert "the config has no moe.nonsense" in markdown
    assert "they say nothing of patients" in markdown
    # The page from the tables of predictions alone is the same.
    kept, again = workdir / "results" / "predictions", tmp_path / "again"
    arguments = ["study", config, "--workdir", str(again), "--predictions", str(kept)]
    assert cli.main(arguments) == 0
    same = json.loads((again / "results" / "study.json").read_text())
    assert {n: same[n] for n in ("scores", "contrasts")} == {
        n: results[n] for n in ("scores", "contrasts")
    }
    arguments[-1] = str(tmp_path)
    assert cli.main(arguments) == 1
    assert "no predictions of the rows" in capsys.readouterr().err
    # Again: nothing that is finished is done again, and a mended study has no failures.
    done = workdir / "rows" / "oracle-seed0" / "done.json"
    written = done.stat().st_mtime_ns
    config = write_study(tmp_path / "small.py", "rows=study().rows[3:], contrasts=()")
    assert cli.main(["study", config, "--workdir", str(workdir)]) == 0
    assert done.stat().st_mtime_ns == written
    assert cli.main(["study", config, "--workdir", str(workdir), "--rows", "hu"]) == 0
    assert cli.main(["study", config, "--workdir", str(workdir), "--rows", "hue"]) == 1
    assert cli.main(["study", config, "--workdir", str(workdir), "--seeds", "3"]) == 1


def test_a_notebook_runs_a_study_without_a_word(
    tiny_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in_cohort(tmp_path, tiny_pool)
    told: list[Progress] = []
    rows = (Row("HU", ceiling="hu"), Row("bad", settings={"moe.nonsense": 1}))
    outcome = run_study(study(rows=rows, contrasts=(), seeds=(0,)), tmp_path, progress=told.append)
    assert capsys.readouterr() == ("", "")
    assert [failure["row"] for failure in outcome.results.failures] == ["bad"]
    assert {line["row"] for line in outcome.results.scores} == {"HU"}
    assert [line.text.partition(",")[0] for line in told if line.failed] == ["failed: bad"]
    assert outcome.grids[0].rows[0][:3] == ("HU", "main", "1")
    assert outcome.stopped is None
    with pytest.raises(UserError, match="--seeds 2: the study has 1"):
        run_study(study(rows=rows, contrasts=(), seeds=(0,)), tmp_path, seeds=2)


def test_a_row_of_another_study_is_not_taken_for_this_ones(
    tiny_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "W"
    stand_in_cohort(workdir, tiny_pool)
    first = "rows=(Row('HU', ceiling='hu'),), contrasts=(), seeds=(0,)"
    config = write_study(tmp_path / "small.py", first)
    assert cli.main(["study", config, "--workdir", str(workdir)]) == 0
    write_study(tmp_path / "small.py", first.replace("'hu'", "'hu_age'"))
    assert cli.main(["study", config, "--workdir", str(workdir)]) == 1
    assert "was made by another version of the study (ceiling differ)" in capsys.readouterr().err
    assert not json.loads((workdir / "results" / "study.json").read_text())["scores"]


def test_an_unforeseen_error_costs_its_row_alone(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "W"
    stand_in_cohort(workdir, tiny_pool)
    config = write_study(tmp_path / "small.py", "rows=study().rows[3:], contrasts=(), seeds=(0,)")
    do = Runs.do

    def broken(self: Runs, row: Row, seed: int) -> None:
        if row.name == "oracle":
            raise ZeroDivisionError("none to divide by")
        do(self, row, seed)

    monkeypatch.setattr(Runs, "do", broken)
    assert cli.main(["study", config, "--workdir", str(workdir)]) == 1
    results = json.loads((workdir / "results" / "study.json").read_text())
    assert [f["reason"].partition(" (")[0] for f in results["failures"]] == [
        "ZeroDivisionError: none to divide by"
    ]
    assert "broken" in (workdir / "rows" / "oracle-seed0" / "error.txt").read_text()
    assert {line["row"] for line in results["scores"]} == {"HU"}


def test_told_to_stop_it_reports_what_it_has(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "W"
    stand_in_cohort(workdir, tiny_pool)
    config = write_study(tmp_path / "small.py", "rows=study().rows[3:], contrasts=(), seeds=(0,)")
    do = Runs.do

    def stopped(self: Runs, row: Row, seed: int) -> None:
        if row.name == "HU":
            raise Stopped(3, signal.SIGTERM)
        do(self, row, seed)

    monkeypatch.setattr(Runs, "do", stopped)
    assert cli.main(["study", config, "--workdir", str(workdir)]) == 75
    results = json.loads((workdir / "results" / "study.json").read_text())
    assert {line["row"] for line in results["scores"]} == {"oracle"}
    assert not results["failures"]


def _fake_verbs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """simulate and prepare that write tables alone; the commands they were given."""
    commands: list[list[str]] = []

    def done(verb: str, words: list[str]) -> None:
        command = [verb, *words]
        commands.append(command)
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        if command[0] == "simulate":
            ids = [f"P{number}" for number in range(4)]
            paths = {"ct": [f"ct/{i}" for i in ids], "mask": [f"mask/{i}" for i in ids]}
            pd.DataFrame({"patient_id": ids, **paths}).to_csv(out / "cohort.csv", index=False)
            devices = {"patient_id": ids[:3], "device": ["hologic", "medix", "hologic"]}
            pd.DataFrame(devices).to_csv(out / "dxa.csv", index=False)
            (out / "truth.csv").write_text("patient_id,scan_id,level\n")
        else:
            splits = {"patient_id": ["P0", "P1", "P2"], "split": ["train", "valid", "test"]}
            pd.DataFrame(splits).to_csv(out / "vertebrae.csv", index=False)
            (out / "manifest.json").write_text("{}")

    for verb in ("simulate", "prepare"):
        monkeypatch.setattr(making, verb, lambda words, _, verb=verb: done(verb, words))
    return commands


def test_cohorts_share_people_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = _fake_verbs(monkeypatch)
    main = Cohort("--patients 4", "--size 32", 7)
    cohorts = {
        "main": main,
        "plain": Cohort("--patients 4 --texture-signal 0", "--size 32", 7, splits_of="main"),
        "left": dataclasses.replace(main, hold_out_device="medix"),
        "none": dataclasses.replace(main, hold_out_device="norland"),
    }
    made = Cohorts(study(cohorts=cohorts), tmp_path)
    plain = pd.read_csv(made.pool("plain").parent / "cohort.csv", keep_default_na=False)
    assert plain["split"].tolist() == ["train", "valid", "test", ""]
    assert Path(plain["ct"][0]) == tmp_path / "cohorts/plain/simulated/ct/P0"
    left = pd.read_csv(made.pool("left").parent / "cohort.csv", keep_default_na=False)
    assert left["split"].tolist() == ["", "external", "", ""]
    simulated = [command[2] for command in commands if command[0] == "simulate"]
    assert [Path(p).parent.name for p in simulated] == ["plain", "main"]
    before = len(commands)
    made.pool("left")
    assert len(commands) == before  # finished ones are not made again
    with pytest.raises(UserError, match="'norland'; the cohort's devices are hologic, medix"):
        made.pool("none")
    changed = {**cohorts, "main": dataclasses.replace(main, prepare="--size 64")}
    with pytest.raises(UserError, match="made with other options"):
        Cohorts(study(cohorts=changed), tmp_path).pool("main")


def test_a_wrong_option_of_a_cohort_names_it(tmp_path: Path) -> None:
    wrong = {"main": Cohort("--patient 4", "", 7), "few": Cohort("--patients 0", "", 7)}
    for name, message in (("main", "cohort main: .*required: --patients"), ("few", "at least 1")):
        with pytest.raises(UserError, match=message):
            Cohorts(study(cohorts=wrong), tmp_path).pool(name)


@pytest.mark.slow
def test_a_cohort_is_simulated_and_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = Cohort("--patients 4 --levels L1-L4 --spacing-mm 3.0", "--size 32 --seed 3", 7)
    told: list[str] = []
    made = Cohorts(study(cohorts={"main": few}), tmp_path, told.append)
    opened = open_cohort(made.pool("main"))
    assert len(opened.table) == 16
    assert opened.manifest.settings["seed"] == 3
    assert {"bmd_g_cm2_hologic"} <= set(made.truth("main").columns)
    assert [line.split()[:2] for line in told] == [["osteojax", v] for v in ("simulate", "prepare")]
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_killed_study_goes_on_as_if_it_had_not_been(tiny_pool: Path, tmp_path: Path) -> None:
    """Killed while it trains; then what it lacks is made, and is what it would have been."""
    config = write_study(tmp_path / "small.py", "seeds=(0,)")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for workdir in (whole, killed):
        stand_in_cohort(workdir, tiny_pool)
    assert cli.main(["study", config, "--workdir", str(whole)]) == 0
    command = [sys.executable, "-m", "launch.cli", "study", config, "--workdir", str(killed)]
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        command, cwd=root, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if list(killed.glob("pretrain/*/checkpoints/[12]")):
            break
        time.sleep(0.05)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert (killed / "rows" / "scratch-seed0" / "done.json").is_file()
    assert not (killed / "rows" / "experts-seed0" / "done.json").is_file()
    assert cli.main(["study", config, "--workdir", str(killed)]) == 0
    for name in ("rows/experts-seed0/predictions.csv", "rows/experts-seed0/told.csv"):
        assert (whole / name).read_text() == (killed / name).read_text()
    first, second = (
        json.loads((workdir / "results" / "study.json").read_text()) for workdir in (whole, killed)
    )
    assert first["scores"] == second["scores"]
    assert [swap["row"] for swap in first["device_swap"]] == ["experts"] * len(first["device_swap"])
    wrong = [s for s in first["scores"] if s["row"] == "experts, wrong"]
    assert all(np.isfinite(s["estimate"]) for s in wrong if s["estimate"] is not None)
    assert wrong
    # The last checkpoints of finished runs are gone, and what a row starts from is kept.
    assert not list(whole.glob("*/*/checkpoints"))
    assert list(whole.glob("pretrain/tp@main-seed0/best/*"))
