"""Rows that are fine-tuned: whom they train on, what they start from, what they answer."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import Ridge

from launch.configs import load_config
from launch.readouts import fine_tuning, fits
from launch.readouts.encoders import Encoders
from launch.readouts.few_patients import rows_of_few
from launch.readouts.plan import Encoder, FineTuning, Readout, ReadoutStudy
from launch.readouts.rows import Rows
from osteojax import objectives
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from osteojax.objectives.multitask import Multitask
from tests.launch.stand_in_readouts import CONFIG as PRE_TRAINING
from tests.launch.stand_in_readouts import SETTINGS, stand_in_cohorts, study
from tests.small_runs import CONFIGS

CONFIG = str(CONFIGS / "studies" / "fine_tuning.py")
FLAT = {"model.rank": 2, "model.stage_sizes": (1,), "model.width": 4}
RUN = {
    **FLAT,
    "batch_size": 8,
    "data.views.edge_mm": 12.0,
    "data.views.readout_crops": 2,
    "log_every_steps": 1,
    "moe.expert_dim": 8,
    "moe.gate_dim": 8,
    "optim.learning_rate": 1e-9,
    "optim.train_steps": 2,
    "optim.warmup_steps": 1,
    "optim.eval_steps": 2,
    "optim.save_steps": 2,
}
"""What compiles fastest, and hardly moves."""


def test_it_trains_on_the_patients_of_the_frozen_readout(tiny_pool: Path) -> None:
    cohort = PreparedCohort(tiny_pool)
    settings = ["--config.objective.patients=12", "--config.seed=3"]
    objective = objectives.load(load_config(CONFIG, settings), cohort)
    training = cohort.rows("train")
    patients = cohort.table["patient_id"].to_numpy(str)[training]
    positive = cohort.labels.osteoporosis[training] == 1
    expected = training[fits.few_patients(patients, positive, 12, [3, 2])]
    np.testing.assert_array_equal(objective.training_rows(), expected)
    assert len(cohort.table.iloc[expected]["patient_id"].unique()) == 12
    everyone = objectives.load(load_config(CONFIG), cohort)
    np.testing.assert_array_equal(everyone.training_rows(), training)
    np.testing.assert_array_equal(rows_of_few(cohort, 0, 3), training)


def plan(row: Readout) -> ReadoutStudy:
    """One fine-tuned row of the stand-in study, whose encoder sees crops of the body."""
    body = {"data.views.region": "body", "data.statistics": "body", "data.views.edge_mm": 12.0}
    own = {**SETTINGS, **FLAT, **body, "eval_at_start": False}
    encoders = {
        "tp": Encoder(PRE_TRAINING, own),
        "start": Encoder(PRE_TRAINING, own, trained=False),
    }
    tunings = {"tuned": FineTuning(CONFIG, RUN)}
    made = study(encoders=encoders, rows=(row,), contrasts=(), fine_tunings=tunings)
    made.check()
    return made


def test_spacing_is_read_from_the_embedding_and_the_label_is_the_models_own(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_cohorts(tmp_path, tiny_pool)
    row = Readout("tuned", "a", "tp", fine_tuning="tuned", few=True, seeds=1)
    made, trained = Rows(plan(row), tmp_path), []
    cohort = made.encoders.cohort("main")
    generator, size = np.random.default_rng(0), (len(cohort), 5)
    answers = [
        {
            "embedding": generator.normal(size=size),
            "probability": generator.random(len(cohort)),
            "bmd_g_cm2": generator.random(len(cohort)),
            "gate": generator.random(len(cohort)),
        }
        for _ in range(4)
    ]  # all patients: main, new; 12 patients: main, new
    given = iter(answers)
    monkeypatch.setattr(fine_tuning, "train_alone", lambda config, *_: trained.append(config))
    monkeypatch.setattr(fine_tuning, "_predicted", lambda *_: next(given))
    monkeypatch.setattr(Encoders, "embeddings", lambda *_: [])
    made.do(row, 0)
    assert [config.objective.patients for config in trained] == [0, 12]
    start = made.folder(row, 0) / "start"
    assert {config.init_from for config in trained} == {str(start)}
    assert (start / "best").readlink() == made.encoders.folder("tp", 0) / "checkpoints"

    predicted = made.predicted(row, 0)
    readouts = {"spacing", "label", "bmd", "spacing12", "label12"}
    assert set(predicted) == {"cohort", "case", *readouts}
    held, new = (predicted[predicted["cohort"] == name] for name in ("main", "new"))
    test, few = cohort.rows("test"), rows_of_few(cohort, 12, 0)
    known = held["label12"].notna().to_numpy()
    label, bmd = answers[2]["probability"][test], answers[1]["bmd_g_cm2"]
    np.testing.assert_allclose(held["label12"][known], label[known], atol=6e-5)
    np.testing.assert_allclose(new["bmd"].dropna(), bmd[new["bmd"].notna()], atol=6e-5)
    truth, train = made.encoders.truth("main"), cohort.rows("train")
    both = [out["embedding"] for out in answers[2:]]
    x, of_new = (
        (e - both[0][train].mean(axis=0)) / both[0][train].std(axis=0).mean() for e in both
    )
    alpha = fits.ridge(x[few], truth.log_spacing[few], truth.patients[few]).alpha
    ridge = Ridge(alpha).fit(x[few], truth.log_spacing[few])
    np.testing.assert_allclose(held["spacing12"], ridge.predict(x[test]), atol=6e-5)
    np.testing.assert_allclose(new["spacing12"], ridge.predict(of_new), atol=6e-5)

    made.do(row, 0)  # nothing is trained or predicted again
    assert len(trained) == 2
    pd.testing.assert_frame_equal(made.predicted(row, 0), predicted)


def test_from_scratch_starts_from_nothing(tiny_pool: Path, tmp_path: Path) -> None:
    row = Readout("scratch", "a", "start", fine_tuning="tuned", seeds=1)
    study_of_it = plan(row)
    encoders = Encoders(study_of_it, tmp_path)
    config = fine_tuning._config(study_of_it, encoders, row, 4, 36, tmp_path / "row")
    assert config.init_from is None
    assert (config.seed, config.objective.patients, config.data.sees) == (4, 36, "body")
    assert not (tmp_path / "row").exists()


@pytest.mark.slow
def test_a_row_is_fine_tuned_from_the_last_step_of_its_encoder(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_cohorts(tmp_path, tiny_pool)
    row = Readout("tuned", "a", "tp", fine_tuning="tuned", seeds=1)
    made, found = Rows(plan(row), tmp_path), []
    train = fine_tuning.train_alone

    def trained(config: ConfigDict, folder: Path, data: Path) -> dict[str, float]:
        best = train(config, folder, data)
        found.append(load_variables(folder, "last")[1]["params"]["backbone"])
        return best

    monkeypatch.setattr(fine_tuning, "train_alone", trained)
    made.do(row, 0)
    step, source = load_variables(made.encoders.folder("tp", 0), "last")
    assert step == SETTINGS["optim.train_steps"]
    wanted = source["params"]["backbone"]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found[0], wanted)
    with np.load(made.folder(row, 0) / "0-patients" / "answers-new.npz") as stored:
        assert stored["embedding"].shape == (len(made.encoders.cohort("new")), 4)
    assert not (made.folder(row, 0) / "0-patients" / "checkpoints").exists()
    assert np.isfinite(made.predicted(row, 0)["spacing"]).all()


def test_a_frozen_row_depends_on_what_it_did_before_there_was_fine_tuning(tmp_path: Path) -> None:
    made = Rows(study(), tmp_path)
    with_it = dataclasses.replace(made.study, fine_tunings={"tuned": FineTuning(CONFIG, RUN)})
    for row in made.study.rows:
        assert "fine_tuning" not in made._made_with(row, 0)
        assert Rows(with_it, tmp_path)._made_with(row, 0) == made._made_with(row, 0)
    tuned = Readout("tuned", "a", "tp", fine_tuning="tuned")
    asked = Rows(with_it, tmp_path)._made_with(tuned, 0)
    assert asked["fine_tuning"] == {"config": CONFIG, "settings": RUN}


def test_another_cohort_is_seen_with_the_statistics_of_the_run(tiny_pool: Path) -> None:
    own, other = PreparedCohort(tiny_pool), PreparedCohort(tiny_pool)
    moved = {r: [[m + 1, s] for m, s in v] for r, v in other.manifest.about["statistics"].items()}
    about = {**other.manifest.about, "statistics": moved}
    other.manifest = dataclasses.replace(other.manifest, about=about)
    config = load_config(CONFIG)

    def scale(cohort: PreparedCohort) -> np.ndarray:
        objective: Multitask = objectives.load(config, cohort)  # type: ignore[assignment]
        return objective._sight.sight.known.map_affine("body")

    assert not np.allclose(scale(other), scale(own))
    np.testing.assert_array_equal(scale(fine_tuning.as_seen_by(own, other)), scale(own))
    about = {**about, "spacing_mm": 3.5}
    other.manifest = dataclasses.replace(other.manifest, about=about)
    with pytest.raises(UserError, match=r"spacing_mm is 3\.5"):
        fine_tuning.as_seen_by(own, other)
