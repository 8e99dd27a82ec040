"""The small rooms of training: log, stopwatch, schedule."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from osteojax.errors import UserError
from osteojax.train.optim import adamw_direction, duration_steps, schedule
from osteojax.train.timing import Stopwatch
from osteojax.train.writer import Writer
from tests.small_runs import CONFIGS, fine_tuning, load_config


def test_lines_past_the_restored_step_are_forgotten(tmp_path) -> None:
    writer = Writer(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": float(step), "bad": float("nan")})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    Writer(tmp_path, 2).close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0] == {"step": 1, "train/loss": 1.0, "train/bad": None}


def test_the_stopwatch_counts_training_only(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch(batch_size=10, num_devices=2)
    assert watch.report() == {}
    now[0] = 100.0  # compilation
    watch.tick(50.0)
    for _ in range(4):
        now[0] += 1.0
        watch.tick(0.25)
    with watch.pause():
        now[0] += 500.0
    report = watch.report()
    assert report["img/s/device"] == pytest.approx(4 * 10 / 4.0 / 2)
    assert report["data_wait_share"] == pytest.approx(0.25)
    assert watch.report() == {}


def test_the_stopwatch_counts_the_steps_of_a_dispatch(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch(batch_size=10, num_devices=1)
    with watch.pause():
        now[0] += 7.0  # before the first step: nobody's
    now[0] += 50.0  # compiles eight steps
    watch.tick(1.0, 8)
    for _ in range(2):
        now[0] += 8.0
        watch.tick(2.0, 8)
    with watch.pause():
        now[0] += 100.0
    now[0] += 40.0  # compiles one step
    watch.tick(1.0, 1)
    now[0] += 1.0
    watch.tick(0.5, 1)
    report = watch.report()
    assert report["img/s/device"] == pytest.approx(17 * 10 / 17.0)
    assert report["data_wait_share"] == pytest.approx(4.5 / 17.0)


def test_the_papers_schedules() -> None:
    for name, rate, train, warmup in (
        ("tp_swav_resnet34", 1e-4, 300, 100),
        ("moe_multitask_resnet34", 1e-5, 400, 150),
    ):
        config = load_config(str(CONFIGS / f"{name}.py"), [])
        assert (config.batch_size, config.optim.weight_decay) == (32, 0.1)
        assert (config.optim.beta1, config.optim.beta2) == (0.9, 0.999)
        examples = 3200
        rates = schedule(config, examples)
        steps = 100  # an epoch
        assert duration_steps(config, "train", examples) == train * steps
        assert float(rates(0)) == 0.0
        assert float(rates(warmup * steps // 2)) == pytest.approx(rate / 2)
        assert float(rates(warmup * steps)) == pytest.approx(rate)
        middle = (warmup + (train - warmup) / 2) * steps
        assert float(rates(middle)) == pytest.approx(rate / 2, rel=1e-3)
        assert float(rates(train * steps)) == pytest.approx(0.0, abs=1e-12)


def test_steps_win_over_epochs_and_a_warm_up_must_end() -> None:
    config = fine_tuning("--config.optim.train_steps=7", "--config.optim.train_epochs=1000.0")
    assert duration_steps(config, "train", 50) == 7
    with pytest.raises(UserError, match="before the run of 7 steps"):
        schedule(fine_tuning("--config.optim.train_steps=7", "--config.optim.warmup_steps=7"), 50)


def test_adamw_against_its_definition() -> None:
    config = fine_tuning()
    direction = adamw_direction(config)
    params = {"w": np.array([2.0, -1.0], np.float32)}
    state = direction.init(params)
    m = v = np.zeros(2)
    for t in range(1, 4):
        gradient = np.array([0.3 * t, -2.0], np.float32)
        updates, state = direction.update({"w": gradient}, state, params)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.astype(float) ** 2
        expected = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.1 * params["w"]
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-4)
