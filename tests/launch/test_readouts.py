"""A study of frozen readouts: what it makes, resumes, shares between processes and writes again."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from data_prep.arguments import parsed
from data_prep.simulate import options
from launch import cli
from launch.configs import load_config
from launch.readouts import fits, run
from launch.readouts.encoders import Encoders
from launch.readouts.locks import Busy, alone
from launch.readouts.plan import Contrast, Encoder, Readout
from launch.readouts.rows import Rows
from launch.readouts.vertebrae import map_means, plain_numbers
from launch.studies.plan import Cohort, load_study, with_settings
from launch.studies.run import Progress, run_study
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebra_columns import BODY_NUMBERS
from osteojax.errors import UserError
from osteojax.objectives import probes
from tests.launch.stand_in_readouts import CONFIG, SETTINGS, stand_in_cohorts, structure, study

STUDIES = Path(__file__).resolve().parents[2] / "configs" / "studies"
FILE = """
from tests.launch.stand_in_readouts import study
def get_study(variant):
    return study()
"""


@pytest.fixture(scope="module")
def workdir(tiny_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir in which the study has run with one seed. `first` keeps the results of that run;
    tests may run more in it."""
    place = tmp_path_factory.mktemp("readouts") / "W"
    stand_in_cohorts(place, tiny_pool)
    run_study(study(), place, seeds=1)
    shutil.copytree(place / "results", place / "first")
    return place


def written(folder: Path) -> dict[str, bytes]:
    """Files of a folder that a page is made of, by name."""
    names = ("study.md", "scores.csv", "contrasts.csv", "study.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_the_body_is_summarised_by_its_numbers_and_by_means_of_the_maps(tiny_pool: Path) -> None:
    cohort = PreparedCohort(tiny_pool)
    numbers, means = plain_numbers(cohort), map_means(cohort)
    assert (numbers.shape, means.shape) == ((120, 11), (120, 4))
    row = 7
    body = cohort.array(row, "mask")[2]
    hu = -197.5 + 5.0 * cohort.array(row, "image").astype(np.float64)
    both = body[:, 1:] & body[:, :-1]
    squares = np.mean((hu[:, 1:] - hu[:, :-1])[both] ** 2)  # along the second axis, lag 1
    expected = [hu[body].mean(), hu[body].std(), np.log(squares)]
    np.testing.assert_allclose(numbers[row][[0, 1, 5]], expected, rtol=1e-6)
    spec = cohort.about.maps[3]
    contrast = cohort.array(row, "Contrast")[body].astype(np.float64)
    assert means[row, 2] == pytest.approx(np.mean(spec.offset + spec.step * contrast))
    flat = copy.copy(cohort)
    flat.table = cohort.table.assign(**{BODY_NUMBERS[2]: 0.5})
    assert plain_numbers(flat)[row, 2] == 0.0  # the models' floor of 1 HU^2
    lacking = copy.copy(cohort)
    lacking.table = cohort.table.assign(**dict.fromkeys(BODY_NUMBERS, np.nan))
    with pytest.raises(UserError, match="has no numbers of bodies"):
        plain_numbers(lacking)


def test_every_row_is_scored_on_held_out_and_on_new_patients(workdir: Path) -> None:
    results = json.loads((workdir / "first" / "study.json").read_text())
    assert results["failures"] == []
    assert {line["row"] for line in results["scores"]} == {row.name for row in study().rows}
    found = {
        (s["row"], s["group"], s["metric"], s["patients_fitted"]): s for s in results["scores"]
    }
    assert found["truth", "new", "r", 0]["estimate"] == pytest.approx(1.0, abs=1e-4)
    assert found["start", "new", "r", 12]["estimate"] is not None
    assert ("shuffled", "new", "r", 12) not in found
    table = pd.read_csv(workdir / "cohorts" / "main" / "pool" / "vertebrae.csv")
    assert found["start", "held", "r", 0]["n"] == (table["split"] == "test").sum()
    assert found["start", "new", "r", 0]["n"] == len(table)
    labelled = table[table["osteoporosis"].notna() & (table["split"] == "test")]
    assert found["start", "held", "AUROC", 0]["n"] == len(labelled)
    # BMD is in the image's brightness, and spacing follows it.
    assert found["start", "held", "r", 0]["estimate"] > 0.3
    assert {line["verdict"] for line in results["contrasts"]}
    for name in ("readouts.png", "contrasts.png"):
        assert (workdir / "first" / name).stat().st_size > 10_000


@pytest.mark.parametrize(("readout", "metric"), [("spacing", "r"), ("number", "r_number")])
def test_a_readout_is_ridge_regression_on_the_stored_embedding(
    workdir: Path, tiny_pool: Path, readout: str, metric: str
) -> None:
    embedded = np.load(workdir / "encoders" / "tp-seed0" / "embedding-main.npy")
    cohort = PreparedCohort(tiny_pool)
    assert embedded.shape[0] == len(cohort)
    number = cohort.table["texture_number"].to_numpy()
    log_spacing = np.log(structure(tiny_pool)["trabecular_spacing_mm"].to_numpy())
    truth = log_spacing if readout == "spacing" else number
    train, test = cohort.rows("train"), cohort.rows("test")
    x = fits.scaled(embedded, np.empty((len(cohort), 0)), train)
    patients = cohort.table["patient_id"].to_numpy()[train]
    alpha = fits.ridge(x[train], truth[train], patients).alpha
    # The features by hand: centred, and divided by one deviation.
    own = embedded.astype(np.float64)
    own = (own - own[train].mean(axis=0)) / own[train].std(axis=0).mean()
    expected = Ridge(alpha).fit(own[train], truth[train]).predict(own[test])
    predicted = pd.read_csv(workdir / "first" / "predictions" / "rows" / "tp-swav.csv")
    held = predicted[predicted["cohort"] == "main"]
    np.testing.assert_allclose(held[f"{readout}_s0"], expected, atol=6e-5)
    scores = pd.read_csv(workdir / "first" / "scores.csv")
    [line] = scores[
        (scores["row"] == "TP-SwAV") & (scores["group"] == "held") & (scores["metric"] == metric)
        & (scores["patients_fitted"] == 0)
    ].to_dict("records")  # fmt: skip
    assert line["estimate"] == pytest.approx(np.corrcoef(expected, truth[test])[0, 1], abs=1e-3)


def test_the_start_is_that_of_the_training(workdir: Path) -> None:
    """The untrained encoder's embeddings give the probes that the pre-training of that seed had
    before its first step."""
    cohort = PreparedCohort(workdir / "cohorts" / "main" / "pool")
    embedded = np.load(workdir / "encoders" / "start-seed0" / "embedding-main.npy")
    metrics = probes.frozen_probes(cohort, lambda rows: embedded[rows])
    log = (workdir / "encoders" / "tp-seed0" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log]
    [first] = [line for line in lines if line["step"] == 0 and "valid/hu_probe_r2" in line]
    for name in ("hu_probe_r2", "label_probe_auroc", "texture_probe_r"):
        assert metrics[name] == pytest.approx(first[f"valid/{name}"], abs=1e-4)


def test_the_page_is_made_again_from_its_small_tables(workdir: Path, tmp_path: Path) -> None:
    config = tmp_path / "readouts.py"
    config.write_text(FILE)
    tables = tmp_path / "benchmarks"
    shutil.copytree(workdir / "first" / "predictions", tables)
    command = ["study", str(config), "--workdir", str(tmp_path / "again")]
    assert cli.main([*command, "--predictions", str(tables)]) == 0
    assert written(tmp_path / "again" / "results") == written(workdir / "first")
    assert cli.main([*command, "--predictions", str(tmp_path)]) == 1


def test_a_folder_without_predictions_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "study",
        str(STUDIES / "paper_ladder.py"),
        "--workdir",
        str(tmp_path),
        "--predictions",
        str(tmp_path),
    ]
    assert cli.main(command) == 1
    assert "no predictions of the rows of study" in capsys.readouterr().err


def test_what_is_finished_is_kept_and_a_failure_costs_its_row_alone(workdir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/done.json")}
    told: list[Progress] = []
    encoders = {**study().encoders, "bad": Encoder(CONFIG, {"optim.nonsense": 1})}
    rows = (Readout("bad", "networks", "bad"), *study().rows)
    broken = study(encoders=encoders, rows=rows)
    outcome = run_study(broken, workdir, seeds=1, progress=told.append)
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/done.json")} == before
    assert [f["row"] for f in outcome.results.failures] == ["bad"]
    assert "no optim.nonsense" in outcome.results.failures[0]["reason"]
    assert len([line for line in told if line.failed]) == 1
    assert b"no optim.nonsense" in (workdir / "results" / "study.md").read_bytes()
    assert (workdir / "results" / "scores.csv").read_bytes() == (
        workdir / "first" / "scores.csv"
    ).read_bytes()


def test_an_encoder_of_another_plan_is_refused(workdir: Path) -> None:
    changed = {**study().encoders, "tp": Encoder(CONFIG, {**SETTINGS, "optim.warmup_steps": 1})}
    made = Encoders(study(encoders=changed), workdir)
    with pytest.raises(UserError, match=r"another version of the study \(settings differ\)"):
        made.embeddings("tp", 0, ["main"])


def test_a_process_passes_over_what_another_one_makes(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PAUSE_SECONDS", 0.01)
    rows = (Readout("busy", "a", "start", seeds=1), Readout("free", "a", ceiling="hu"))
    made, failures, ended = Rows(study(rows=rows, contrasts=()), workdir), [], []
    with contextlib.ExitStack() as other:
        other.enter_context(alone(workdir / "locks" / "start-seed0"))

        def note(progress: Progress) -> None:
            if "minutes so far" in progress.text:
                ended.append(progress.text.partition(",")[0])
                other.close()  # now it is done there

        run._make_all(made, [(row, 0) for row in rows], failures, note)
    assert ended == ["-- free", "-- busy"]
    assert not failures


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy), alone(lock):
            pass
        other.kill()
        other.wait()
        with alone(lock, wait=True):
            pass


def test_the_best_alternative_by_validation_is_taken(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_cohorts(tmp_path, tiny_pool)
    choices = ({"optim.learning_rate": 1e-3}, {"optim.learning_rate": 2e-3})
    encoders = {"tuned": Encoder(CONFIG, SETTINGS, tune=choices)}
    row = Readout("tuned", "a", "tuned", seeds=1)
    made = Encoders(study(encoders=encoders, rows=(row,), contrasts=()), tmp_path)
    trained: list[tuple[float, int]] = []
    monkeypatch.setattr(
        Encoders, "_train",
        lambda self, config, encoder, folder: trained.append(
            (config.optim.learning_rate, config.seed)
        ),
    )  # fmt: skip
    monkeypatch.setattr(Encoders, "_embed", lambda *args: None)
    monkeypatch.setattr(
        Encoders, "_validated", lambda self, encoder, folder: {"0": 0.2, "1": 0.3}[folder.name]
    )
    made.embeddings("tuned", 0, [])
    assert trained == [(1e-3, 100), (2e-3, 100), (2e-3, 0)]
    found = made.made("tuned", 0)
    assert found is not None
    assert found["chosen"] == {"optim.learning_rate": 2e-3}
    made.embeddings("tuned", 1, [])  # tuned once for all seeds
    assert trained[3:] == [(2e-3, 1)]


def test_validation_scores_an_alternative(workdir: Path) -> None:
    """The tuning criterion: r on validation patients, of a readout fitted on training patients."""
    made = Encoders(study(), workdir)
    r = made._validated(study().encoders["tp"], workdir / "encoders" / "tp-seed0")
    cohort, truth = made.cohort("main"), made.truth("main")
    train, valid = cohort.rows("train"), cohort.rows("valid")
    x = np.load(workdir / "encoders" / "tp-seed0" / "embedding-main.npy").astype(np.float64)
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0).mean()
    alpha = fits.ridge(x[train], truth.log_spacing[train], truth.patients[train]).alpha
    predicted = Ridge(alpha).fit(x[train], truth.log_spacing[train]).predict(x[valid])
    assert r == pytest.approx(np.corrcoef(predicted, truth.log_spacing[valid])[0, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": (Readout("a", "p", "start"), Readout("A", "p", "tp"))}, "two rows have one name"),
        ({"rows": (Readout("a", "p", "strat"),)}, "encoder 'strat'; choose one of start, tp"),
        ({"rows": (Readout("a", "p"),)}, "either an encoder or a ceiling"),
        ({"rows": (Readout("a", "p", "tp", ceiling="hu"),)}, "either an encoder or a ceiling"),
        ({"rows": (Readout("a", "p", ceiling="hue"),)}, "ceiling 'hue'; choose one of truth"),
        ({"rows": (Readout("a", "p", "tp", cohort="mian"),)}, "cohort 'mian'"),
        ({"rows": (Readout("a", "p", "tp", seeds=3),)}, "3 seeds of 2"),
        ({"rows": (Readout("a", "p", "tp", fine_tuning="b"),)}, "fine_tuning 'b'"),
        ({"rows": (Readout("a", "p", "tp", cohort="new", new=""),)}, "patients could leak"),
        ({"rows": (Readout("a", "p", ceiling="hu", new="main"),)}, "both fits readouts and is new"),
        ({"contrasts": (Contrast("start", "nobody"),)}, "no row 'nobody'"),
        ({"contrasts": (Contrast("start", "HU", "auroc"),)}, "metric 'auroc'; choose one of r"),
        ({"contrasts": (Contrast("start", "HU", group="test"),)}, "group 'test'"),
        ({"contrasts": (Contrast("start", "HU", patients=12),)}, "no readout of 12 patients"),
        ({"contrasts": (Contrast("start", "HU", matters=0.0),)}, "matters above 0"),
        (
            {"encoders": {**study().encoders, "t": Encoder(CONFIG, tune=({},))}, "tuning_seed": 1},
            "tuning_seed 1 is one of the reported",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    if "rows" in fields:
        fields = {"contrasts": (), **fields}
    with pytest.raises(UserError, match=message):
        study(**fields).check()


def test_an_encoder_may_be_pretrained_on_the_cohort_that_gave_the_splits() -> None:
    cohorts = {
        **study().cohorts,
        "plain": Cohort("--patients 40 --texture-signal 0", "--size 16", 7, splits_of="main"),
    }
    row = Readout("plain", "p", "tp", cohort="plain", new="")
    study(cohorts=cohorts, rows=(row,), contrasts=()).check()


def test_rows_are_chosen_by_name_folder_and_part() -> None:
    plan = study()
    assert [row.name for row in plan.chosen(["ceilings"])] == ["truth", "HU"]
    assert [row.name for row in plan.chosen(["tp-swav", "HU"])] == ["TP-SwAV", "HU"]
    assert plan.chosen([]) == list(plan.rows)
    with pytest.raises(UserError, match="no row 'nobody'"):
        plan.chosen(["nobody"])
    assert plan.seeds_of(plan.row("HU")) == (0,)
    assert plan.seeds_of(plan.row("start")) == (0, 1)


def test_shuffled_truths_are_fitted_and_true_ones_scored(workdir: Path) -> None:
    made = Rows(study(), workdir)
    shuffled, start = (made.predicted(made.study.row(name), 0) for name in ("shuffled", "start"))
    cases = pd.read_csv(workdir / "cases" / "main.csv")
    truth = cases["log_spacing"].to_numpy()
    r = [
        np.corrcoef(t.loc[t["cohort"] == "main", "spacing"], truth)[0, 1] for t in (shuffled, start)
    ]
    assert abs(r[0]) < r[1]


def test_a_cohort_without_its_truth_is_refused(tiny_pool: Path, tmp_path: Path) -> None:
    stand_in_cohorts(tmp_path, tiny_pool)
    place = tmp_path / "cohorts" / "main" / "simulated" / "truth.csv"
    structure(tiny_pool).iloc[1:].to_csv(place, index=False)
    plan = dataclasses.replace(study(), rows=study().rows[4:], contrasts=())
    outcome = run_study(plan, tmp_path)
    assert "is not in the simulator's truth.csv" in outcome.results.failures[0]["reason"]


@pytest.mark.parametrize("variant", ["", ":fine", ":full"])
def test_the_shipped_study_is_whole(variant: str) -> None:
    """Every setting is a field of its config, every row and contrast can be made, and the primary
    questions come first."""
    shipped = load_study(f"{STUDIES / 'texture_learning.py'}{variant}")
    configs = {e.config: load_config(e.config, []) for e in shipped.encoders.values()}
    for name, encoder in shipped.encoders.items():
        for choice in encoder.tune or ({},):
            config = with_settings(configs[encoder.config], {**encoder.settings, **choice}, name)
            assert config.optim.train_steps % config.optim.eval_steps == 0
    for name, tuning in shipped.fine_tunings.items():
        config = with_settings(load_config(tuning.config), tuning.settings, name)
        assert config.optim.train_steps % config.optim.eval_steps == 0
    for row in shipped.rows:  # the encoder is read into the same network
        if row.fine_tuning:
            network = {
                k: v for k, v in shipped.encoders[row.encoder].settings.items() if "model." in k
            }
            assert network.items() <= shipped.fine_tunings[row.fine_tuning].settings.items()
    used = {row.encoder for row in shipped.rows if row.encoder}
    assert used == set(shipped.encoders)
    assert all(c.primary for c in shipped.contrasts[:4])
    for text in {c.simulate for c in shipped.cohorts.values()}:
        parsed("osteojax simulate", ["--out", "x", *text.split()], options.add_arguments)


def test_the_shipped_studys_cohorts_differ_in_one_thing() -> None:
    """A control differs from the main cohort by its own option, the new cohort by its seed."""
    shipped = load_study(str(STUDIES / "texture_learning.py"))
    main, new = shipped.cohorts["main"], shipped.cohorts["new"]
    assert main.seed != new.seed
    assert "--hu-signal 0" in main.simulate
    assert main.simulate.split()[2:] == new.simulate.split()[2:]
    assert shipped.cohorts["with_hu"].simulate + " --hu-signal 0" == main.simulate
    assert len({cohort.prepare for cohort in shipped.cohorts.values()}) == 1


def test_nobody_waits_for_a_cohort_that_is_made(tiny_pool, tmp_path, monkeypatch) -> None:
    """Another process may be at the next cohort for minutes."""
    stand_in_cohorts(tmp_path, tiny_pool)

    def waiting(*_, **__):
        raise AssertionError("it waits for the lock")

    monkeypatch.setattr("launch.readouts.encoders.alone", waiting)
    made = Encoders(study(), tmp_path)
    assert len(made.cohort("main")) == len(made.cohort("new")) > 0
