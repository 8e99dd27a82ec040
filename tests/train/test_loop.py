"""Runs end, resume, refuse and stop as they should."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from osteojax import objectives
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import training_batches
from osteojax.data.views import Supervised
from osteojax.errors import UserError
from osteojax.train import loop
from osteojax.train.stop import Stopped
from tests import small_runs
from tests.small_runs import on_devices
from tests.tiny_cohort import write_tiny_cohort

SLICE = ("--config.model.rank=2", "--config.model.stage_sizes=(1,)")
"""One block on the mid-sagittal slice: it compiles fast; nothing here needs more."""


def pretraining(*overrides: str) -> ConfigDict:
    return small_runs.pretraining(*SLICE, *overrides)


def fine_tuning(*overrides: str) -> ConfigDict:
    return small_runs.fine_tuning(*SLICE, *overrides)


@pytest.fixture(scope="module")
def pool(tiny_pool: Path) -> Path:
    return tiny_pool


@pytest.fixture(scope="module")
def pretrained(pool: Path, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("pretrained")
    loop.train(pretraining(), workdir, pool, profile=True)
    return workdir


def log_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def same(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in leaves)


def test_pretraining_leaves_what_it_should(pretrained: Path) -> None:
    rows = log_of(pretrained)
    train_steps = [row["step"] for row in rows if "train/loss" in row]
    valid = [row for row in rows if "valid/nmi_map" in row]
    assert train_steps == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in valid] == [0, 3, 6]
    assert rows[-1]["valid/ln_k"] == pytest.approx(np.log(8))
    for key in ("label_probe_auroc", "hu_probe_r2", "volume_probe_r2", "prototype_perplexity"):
        assert f"valid/{key}" in valid[-1]
    assert any("train/img/s/device" in row for row in rows)
    assert list((pretrained / "tensorboard").iterdir())
    assert list((pretrained / "profile").rglob("*.xplane.pb"))
    (start,) = [row for row in rows if "start/compile_s" in row]
    assert 0.0 < start["start/compile_s"] < start["start/time_to_first_step_s"]
    _, variables = load_variables(pretrained)
    stats = variables["model_state"]
    assert not same(stats["batch_stats"], stats["image_batch_stats"])


RESIDENT = "--config.data.placement=resident"


@pytest.mark.parametrize(
    ("killed", "rerun"),
    [
        ((RESIDENT, "--config.steps_per_dispatch=3"), ("--config.data.placement=disk",)),
        pytest.param((), (RESIDENT,), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_bit_identical(
    killed: tuple[str, ...], rerun: tuple[str, ...], pretrained: Path, pool: Path, tmp_path: Path
) -> None:
    """Wherever its volumes lay before it was killed, and lie after."""

    class Killed(BaseException):
        pass

    workdir = tmp_path / "resumed"
    write = loop.Writer.write

    def die_at_five(self, step, prefix, metrics):
        if step == 5:
            raise Killed
        write(self, step, prefix, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Writer, "write", die_at_five)
        with pytest.raises(Killed):
            loop.train(pretraining(*killed), workdir, pool)
    assert 4 in {row["step"] for row in log_of(workdir)}
    loop.train(pretraining(*rerun), workdir, pool)
    for which in ("last", "best"):
        (step, straight), (other_step, resumed) = (
            load_variables(pretrained, which), load_variables(workdir, which),
        )  # fmt: skip
        assert step == other_step
        assert same(straight, resumed)
    losses = {row["step"]: row["train/loss"] for row in log_of(workdir) if "train/loss" in row}
    expected = {row["step"]: row["train/loss"] for row in log_of(pretrained) if "train/loss" in row}
    assert losses == expected


@pytest.mark.parametrize(
    ("stop_at", "dispatched", "overrides"),
    [
        pytest.param(3, 3, (), marks=pytest.mark.slow),  # with a validation due
        (4, 4, ()),
        # Dispatches end at 2, 3, 5 and 6; what was sent in the third one is heard after it.
        pytest.param(5, 3, (RESIDENT, "--config.steps_per_dispatch=2"), marks=pytest.mark.slow),
    ],
)
def test_sigterm_saves_and_the_rerun_is_bit_identical(
    stop_at: int, dispatched: int, overrides, pretrained: Path, pool: Path, tmp_path: Path
) -> None:
    put = loop.DataParallel.put_steps
    left = iter(range(dispatched - 1, -1, -1))

    def told_to_stop(self, batches):
        if next(left, None) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(self, batches)

    config = pretraining("--config.eval_at_start=false", *overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.DataParallel, "put_steps", told_to_stop)
        with pytest.raises(Stopped) as stopped:
            loop.train(config, tmp_path, pool)
    assert (stopped.value.step, stopped.value.status) == (stop_at, 75)
    assert load_variables(tmp_path, "last")[0] == stop_at
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    loop.train(config, tmp_path, pool)
    (_, straight), (_, resumed) = (
        load_variables(pretrained, "last"),
        load_variables(tmp_path, "last"),
    )
    assert same(straight["params"], resumed["params"])
    validated = [row["step"] for row in log_of(tmp_path) if "valid/nmi_map" in row]
    assert validated == [3, 6]


def test_fine_tuning_takes_the_encoder(pretrained: Path, pool: Path, tmp_path, capsys) -> None:
    config = fine_tuning(
        f"--config.init_from={pretrained}", "--config.optim.learning_rate=0.0",
        "--config.optim.ema_decay=0.9",
    )  # fmt: skip
    with on_devices(1):
        best = loop.train(config, tmp_path / "run", pool)
    assert 0.0 <= best["auroc"] <= 1.0
    assert "took" in capsys.readouterr().out
    _, source = load_variables(pretrained)
    _, tuned = load_variables(tmp_path / "run")
    assert same(tuned["params"]["backbone"], source["params"]["backbone"])
    for a, b in zip(*map(jax.tree.leaves, (tuned["ema_params"], tuned["params"])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_warm_start_takes_the_statistics_of_images(pretrained: Path, pool: Path) -> None:
    """Those of the mixed members are for pre-training alone."""
    cohort = PreparedCohort(pool)
    objective = objectives.load(fine_tuning(), cohort)
    batch = next(
        training_batches(cohort, objective.training_rows(), Supervised(), batch_size=8, seed=0)
    )
    fresh = objective.init(jax.random.key(0), batch)
    _, model_state = loop._take_encoder(str(pretrained), *fresh)
    _, source = load_variables(pretrained)
    source = source["model_state"]
    taken = model_state["batch_stats"]["backbone"]
    assert same(taken, source["image_batch_stats"]["backbone"])
    assert not same(taken, source["batch_stats"]["backbone"])


@pytest.mark.slow
def test_group_normalisation_keeps_no_statistics_and_trains_too(pool: Path, tmp_path: Path) -> None:
    norm = "--config.model.norm=group"
    loop.train(pretraining(norm), tmp_path / "pre", pool)
    tuning = fine_tuning(norm, f"--config.init_from={tmp_path / 'pre'}")
    metrics = loop.train(tuning, tmp_path / "fine", pool)
    assert np.isfinite(metrics["loss"])


def test_the_image_signal_is_learnt(pool: Path, tmp_path: Path) -> None:
    config = fine_tuning(
        "--config.optim.train_steps=60", "--config.optim.eval_steps=60",
        "--config.optim.save_steps=60", "--config.optim.learning_rate=0.01",
    )  # fmt: skip
    with on_devices(1):
        best = loop.train(config, tmp_path / "run", pool)
    assert best["auroc"] > 0.9
    assert best["bmd_mae_g_cm2"] < 0.1  # predicting the mean gives 0.17


def test_another_config_or_cohort_is_refused(pretrained: Path, pool: Path, tmp_path) -> None:
    with pytest.raises(UserError, match=r"optim\.learning_rate was 0\.001, is 0\.5"):
        loop.train(pretraining("--config.optim.learning_rate=0.5"), pretrained, pool)
    other = write_tiny_cohort(tmp_path / "pool", patients=20)
    with pytest.raises(UserError, match="another cohort"):
        loop.train(pretraining(), pretrained, other)


def test_a_run_of_an_older_version_goes_on(pretrained: Path, pool: Path, tmp_path, caplog) -> None:
    """Its checkpoints lack hashes and all of the position but the step."""
    workdir = tmp_path / "old"
    shutil.copytree(pretrained, workdir)
    for hashes in workdir.rglob("hashes.json"):
        hashes.unlink()
    with caplog.at_level(logging.WARNING):
        loop.train(pretraining(), workdir, pool)
    assert "damaged" not in caplog.text


def test_a_loss_that_is_not_finite_stops_the_run(pool: Path, tmp_path: Path) -> None:
    config = fine_tuning("--config.optim.learning_rate=1e30", "--config.optim.save_steps=1")
    message = r"loss is (nan|inf) at step [23]"
    with on_devices(1), pytest.raises(UserError, match=message) as error:
        loop.train(config, tmp_path, pool)
    last, _ = load_variables(tmp_path, "last")
    assert f"last good checkpoint is step {last}" in str(error.value)
    (path,) = (tmp_path / "evidence").iterdir()
    assert str(path) in str(error.value)
    evidence = json.loads(path.read_text())
    assert evidence["step"] == last + 1
    assert [row["step"] for row in evidence["metrics"]] == list(range(1, last + 2))
    assert any(name.startswith("params.") for name in evidence["not_finite"])
    assert len(set(evidence["rows_of_the_batch"])) == config.batch_size


@pytest.mark.slow
def test_the_first_bad_step_of_a_dispatch_is_named(pool: Path, tmp_path: Path) -> None:
    config = fine_tuning(
        "--config.optim.learning_rate=1e30", RESIDENT, "--config.steps_per_dispatch=3"
    )
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step [23] .*No step was saved"):
        loop.train(config, tmp_path, pool)
    (path,) = (tmp_path / "evidence").iterdir()
    evidence = json.loads(path.read_text())
    assert evidence["step"] in (2, 3)
    assert [row["step"] for row in evidence["metrics"]] == list(range(1, evidence["step"] + 1))
    cohort = PreparedCohort(pool)
    batches = training_batches(
        cohort, cohort.rows("train"), Supervised().draw, batch_size=8, seed=config.seed,
        first_step=evidence["step"] - 1,
    )  # fmt: skip
    assert evidence["rows_of_the_batch"] == next(batches)["index"].tolist()


def test_what_cannot_run_says_why(pool: Path, tmp_path: Path) -> None:
    cases = {
        "0 vertebrae to train on .* batch_size is 8": ("pool_without_unlabelled", ()),
        "60 vertebrae to train on .* batch_size is 64": (None, ("--config.batch_size=64",)),
        "choose one of": (None, ("--config.checkpoint.best_metric=accuracy",)),
        "queue_size 4 is below": (None, ("--config.objective.queue_size=4",)),
        "before the run": (None, ("--config.optim.warmup_steps=9",)),
        "multiple of 8": (None, ("--config.batch_size=12",)),
        "multitask, simclr, swav": (None, ("--config.objective.name=simcrl",)),
    }
    for number, (message, (special, overrides)) in enumerate(cases.items()):
        data = pool
        if special:
            data = write_tiny_cohort(tmp_path / special, patients=1)
            overrides = ("--config.data.labelled_too=false",)
            table = data / "vertebrae.csv"
            table.write_text(table.read_text().replace(",train,", ",test,"))
        with pytest.raises(UserError, match=message):
            loop.train(pretraining(*overrides), tmp_path / f"run{number}", data)
