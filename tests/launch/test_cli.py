"""The command line: help, exit statuses, one line for a user's mistake."""

from __future__ import annotations

import ast
import errno

import pytest

import launch.inspect
from launch import cli
from tests.small_runs import CONFIGS, load_config


def run(*argv: str) -> int:
    try:
        return cli.main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys) -> None:
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    assert "usage: osteojax" in text
    assert f"osteojax {verb} " in text.partition("xample")[2]


def test_the_list_of_verbs(capsys) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("prepair",),
        ("prepare",),
        ("prepare", "--cohort", "x.csv", "--out", "o", "--nonsense"),
        ("prepare", "--cohort", "x.csv", "--out", "o", "--size", "50"),
        ("evaluate", "--workdir", "w", "--data", "d", "--split", "train"),
        ("train", "--config", "absent.py", "--workdir", "w", "--data", "d"),
        ("train", "--config", "configs/tp_swav_resnet34.py:smok", "--workdir", "w", "--data", "d"),
        ("train", "--config", "configs/tp_swav_resnet34.py", "--workdir", "w", "--data", "d",
         "--config.batchsize=3"),
        ("train", "--config", "configs/tp_swav_resnet34.py", "--workdir", "w", "--data", "d",
         "--config.batch_size=many"),
        ("train", "--config", "configs/tp_swav_resnet34.py", "--workdir", "w", "--data", "d",
         "--nonsense"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_status_2(argv: tuple[str, ...], capsys) -> None:
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert "error" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("inspect", "nowhere"), "no manifest.json"),
        (("prepare", "--cohort", "nowhere.csv", "--out", "o"), "nowhere.csv"),
        (("train", "--config", "configs/tp_swav_resnet34.py", "--workdir", "w",
          "--data", "nowhere"), "no manifest.json"),
        (("train", "--config", "configs/moe_multitask_resnet34.py", "--workdir", "w",
          "--data", "nowhere", "--config.init_from=nowhere"), "no such workdir"),
        (("evaluate", "--workdir", "nowhere", "--data", "nowhere"), "no config.json"),
        (("export", "--workdir", "nowhere", "--out", "o"), "no config.json"),
        (("predict", "--model", "nowhere", "--ct", "x", "--mask", "y", "--out", "o"),
         "no model.json"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line_and_status_1(argv, message: str, capsys) -> None:
    assert run(*argv) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_full_disk_is_one_line_and_status_1(monkeypatch, capsys) -> None:
    def full(args):
        raise OSError(errno.ENOSPC, "No space left on device", "pool/parts/3")

    monkeypatch.setattr(launch.inspect, "run", full)
    assert run("inspect", "pool") == 1
    error = capsys.readouterr().err.strip()
    assert "pool/parts/3: No space left on device" in error
    assert "rerun" in error
    assert "\n" not in error


@pytest.mark.parametrize("when", ["add_arguments", "run"])
def test_an_interrupt_says_how_to_go_on(when: str, monkeypatch, capsys) -> None:
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.inspect, when, stopped)
    assert run("inspect", "pool") == 130
    assert "rerun" in capsys.readouterr().err


@pytest.mark.parametrize(
    "second", ["--config.model.stage_sizes=(2,)", "--config.model.stage_sizes=(1,1)"]
)
def test_a_field_that_is_set_twice_takes_its_last_value(second: str) -> None:
    path = f"{CONFIGS / 'tp_swav_resnet34.py'}:smoke"
    config = load_config(path, ["--config.model.stage_sizes=(1,1)", second])
    assert config.model.stage_sizes == ast.literal_eval(second.partition("=")[2])
