"""`osteojax benchmark scaling`: work and bytes of a step on 1, 2 and 4 devices; its arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import cli
from launch.benchmarks import scaling
from launch.benchmarks.scaling_plan import INPUTS, Run, tables
from osteojax.train.collectives import Collective
from osteojax.train.parallel import DataParallel
from tests.small_runs import fine_tuning, pretraining

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def eight_devices() -> None:
    """JAX makes its devices before the command can: there are as many for every other test."""
    assert jax.device_count() == 8


@pytest.fixture
def quick_compiler() -> Iterator[None]:
    """Programs that are counted and never run need no fast code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def measured(config, stage_sizes: tuple[int, ...], repeats: int = 0) -> dict:
    """Rows by (scaling, devices)."""
    config.model.rank, config.model.stage_sizes = 2, stage_sizes
    rows = scaling.measure_scaling(config, 8, 4, (1, 2, 4), repeats)
    return {(row["scaling"], row["num_devices"]): row for row in rows}


def check_work(rows: dict[tuple[str, int], dict], same_everywhere: int) -> None:
    """A device of N has an Nth of the examples and the whole optimiser (about 20 FLOP a parameter,
    less than 30), strong; the work of one device alone, weak. `same_everywhere`: of the model's
    products those that no device shares."""
    strong = {count: rows["strong", count] for count in (1, 2, 4)}
    one, two, four = (row["flops_per_device"] for row in strong.values())
    optimiser = (4 * four - one) / 3
    parameters = strong[2]["collective_bytes_expected_parts"]["gradients"] / 4
    assert 10 * parameters < optimiser < 30 * parameters
    assert two == pytest.approx((one + optimiser) / 2, rel=0.02)
    shared = strong[1]["model_flops_per_device"] - same_everywhere
    for count, row in strong.items():
        assert row["model_flops_per_device"] == shared / count + same_everywhere
        assert row["flops_share"] == row["flops_per_device"] / one
    for count in (2, 4):
        assert rows["weak", count]["batch_size"] == 4 * count
        assert strong[count]["batch_size"] == 4


def check_bytes(rows: dict[tuple[str, int], dict]) -> None:
    """What the method needs, less the gradients of two biases that XLA finds to be one sum."""
    for (_, count), row in rows.items():
        if count == 1:
            assert row["collectives"] == row["collective_bytes"] == row["wire_bytes"] == 0
            continue
        counted, expected = row["collective_bytes"], row["collective_bytes_expected"]
        assert expected - 4 * 2 * row["width"] <= counted <= expected
        assert row["wire_bytes"] == pytest.approx(2 * (count - 1) / count * counted)
        assert expected == sum(row["collective_bytes_expected_parts"].values())


def test_work_and_bytes_of_a_fine_tuning_step(quick_compiler) -> None:
    rows = measured(fine_tuning(), (1,))
    check_work(rows, same_everywhere=0)
    check_bytes(rows)
    weak = [rows["weak", count]["flops_per_device"] for count in (1, 2, 4)]
    np.testing.assert_allclose(weak, weak[0], rtol=0.02)


@pytest.mark.slow
def test_work_and_bytes_of_a_pretraining_step() -> None:
    config = pretraining()
    rows = measured(config, (1, 1), repeats=1)
    # Prototype diversity: K x K cosines of D numbers, forward and the gradients of both sides.
    settings = config.objective
    check_work(rows, 3 * 2 * settings.num_prototypes**2 * settings.prototype_dim)
    check_bytes(rows)
    for (_, count), row in rows.items():
        shown = row["images_per_second_per_device"] * count * row["step_seconds"]
        assert shown == pytest.approx(row["batch_size"])
        assert row["collective_seconds"] > 0
        assert row["efficiency"] > 0
        queue = 4 * 2 * row["batch_size"] * settings.prototype_dim
        assert count == 1 or row["collective_bytes_expected_parts"]["queue"] == queue


def test_collectives_alone_are_made_one_after_another() -> None:
    """Every kind, among four devices: as many in the program as were asked for."""
    devices = DataParallel.create("shard_map", 4)
    kinds = ("all-reduce", "all-reduce", "all-gather", "reduce-scatter", "all-to-all")
    asked = [Collective(kind, 64, 4) for kind in kinds]
    asked.append(Collective("collective-permute", 64, 2))
    assert np.isfinite(scaling.collectives_alone(asked, devices)())
    program, buffers = scaling.collectives_program(asked, devices)
    text = program.lower(buffers).compile().as_text()
    assert scaling.compiled_collectives(text, 4) == asked


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys) -> None:
    out = tmp_path / "scaling.json"
    argv = ["--devices", "1,2", "--size", "8", "--width", "4", "--batch", "2", "--repeats", "1"]
    assert cli.main(["benchmark", "scaling", *argv, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["scaling"], row["num_devices"]) for row in rows] == [
        ("weak", 1), ("strong", 1), ("weak", 2), ("strong", 2)
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "fake devices" in said
    assert said.count("collectives alone") == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--devices", "2,4"), "must start at 1"),
        (("--devices", "1,x"), "1,2,4"),
        (("--devices", "1,3"), "--batch 8 does not divide over 3"),
        (("--devices", "1,16", "--batch", "16"), "at most 8"),
        (("--width", "0"), "--width 0"),
        (("--plan", "--assume", "hosts=3"), "choose one of vertebrae"),
        (("--plan", "--assume", "vertebrae=many"), "above 0"),
    ],
)
def test_a_wrong_command_is_one_line(argv: tuple[str, ...], message: str, capsys) -> None:
    assert cli.main(["benchmark", "scaling", *argv]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_the_page_shows_the_plan() -> None:
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    for table in tables(INPUTS):
        assert table in page, "paste the tables of `osteojax benchmark scaling --plan`"


def test_the_plan_takes_other_machines(capsys) -> None:
    argv = ["--plan", "--assume", "accelerators=8", "--assume", "vertebrae=30256"]
    assert cli.main(["benchmark", "scaling", *argv]) == 0
    said = capsys.readouterr().out
    assert "| global batch | accelerators x batch | 256 |" in said
    assert "| sums, between hosts | 2 x (hosts - 1)/hosts sum_bytes / network_gb_s | 0 ms |" in said


def test_the_arithmetic_of_a_machine_done_by_hand() -> None:
    """Two hosts of four accelerators; 1 GB of sums, 10 s of writing, a failure every 20 hours."""
    values = {name: entry.value for name, entry in INPUTS.items()} | {
        "accelerators": 8, "accelerators_per_host": 4, "link_gb_s": 100, "network_gb_s": 10,
        "sum_bytes": 1e9, "batch": 4, "steps_per_s": 2, "vertebrae": 6400, "epochs": 9,
        "state_bytes": 1e9, "checkpoint_mb_s": 100, "mtbf_hours": 160, "volume_bytes": 1e6,
    }  # fmt: skip
    run = Run(values)
    assert (run.batch, run.steps, run.epoch_s, run.hours) == (32, 1800, 100, 0.25)
    # A ring of four sends 3/4 twice, one of two 1/2 twice.
    assert run.sum_inside_s == pytest.approx(2 * 0.75 * 1 / 100)
    assert run.sum_between_s == pytest.approx(2 * 0.5 * 1 / 10)
    assert run.gather_gb == pytest.approx(0.064)
    assert run.gather_s == pytest.approx(0.064 * (0.75 / 100 + 0.5 / 10))
    assert run.shown_s == pytest.approx(4 * 8e-3 * 0.5 / 10)
    assert run.mtbf_h == 20
    # Of 10 s a save and T between two, 10/T + T/2/20 h is lost: least where its slope is nought.
    hours = np.linspace(0.2, 0.5, 3001)
    lost = 10 / 3600 / hours + hours / 2 / 20
    assert run.interval_h == pytest.approx(hours[lost.argmin()], abs=1e-3)
    assert math.isclose(run.pool_gb, 5 * 6400 * 1e6 / 8 / 1e9)
