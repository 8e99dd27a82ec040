"""Committed figures of compiled programs are ceilings: the same command may not need more.

They are of a compiler's version; with another one they are not compared. The environment of the
compilers is made by `make compile-env`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from launch.benchmarks.experiment import Experiment, stand_in_cohort
from launch.compiled.environment import PYTHON
from launch.configs import SHIPPED, load_config
from osteojax.train.collectives import expected_bytes
from osteojax.train.costs import step_cost

CEILINGS = sorted((SHIPPED / "benchmarks" / "compiled").glob("*.json"))
SMALL = SHIPPED / "benchmarks" / "compiled" / "h200x8_small.json"
SMALL_MAPS = SHIPPED / "benchmarks" / "compiled" / "h200_textures_small.json"
SLACK = 1.02
VERSIONS = ("jax", "jax-cuda12-plugin", "libtpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return again(SMALL, tmp_path_factory.mktemp("small"))


def again(ceiling: Path, folder: Path) -> dict[str, Any]:
    """The result of the command that wrote a committed file."""
    python = Path(os.environ.get(PYTHON) or SHIPPED / ".venv-compile" / "bin" / "python")
    if not python.exists():
        pytest.skip("no compilers: run `make compile-env`")
    program = json.loads(ceiling.read_text())["program"]
    flags = ("topology", "config", "textures", "radius", "size", "batch", "devices")
    named = [f"--{name}={program[name]}" for name in flags if name in program]
    out = folder / ceiling.name
    command = [*named, *program.get("overrides", ()), f"--json={out}"]
    plain = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-m", "launch.cli", "compile", *command],
        env=plain, cwd=SHIPPED, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert not run.stderr.strip()  # what the compilers say of absent drivers is left out
    return json.loads(out.read_text())


def check_ceiling(found: dict[str, Any], committed: dict[str, Any]) -> None:
    """Fails if a figure grew, with both numbers; skips if the compiler is another one."""
    had, has = (result["environment"]["versions"] for result in (committed, found))
    if any(had[name] != has[name] for name in VERSIONS):
        pytest.skip(f"the committed figures are of {had}, this compiler is of {has}")
    for name in ("bytes_moved", "peak_bytes", "estimate_ms"):
        was, now = committed["figures"][name], found["figures"][name]
        if was is not None:
            assert now <= SLACK * was, f"{name} grew from {was:,.6g} to {now:,.6g}"
            assert was <= SLACK * now, (
                f"{name} fell from {was:,.6g} to {now:,.6g}: commit the new file"
            )


def test_the_small_step_moves_as_many_bytes_as_committed(small: dict[str, Any]) -> None:
    check_ceiling(small, json.loads(SMALL.read_text()))


def test_what_must_be_exact_in_the_small_step(small: dict[str, Any]) -> None:
    figures, program = small["figures"], small["program"]
    config = load_config(program["config"], program["overrides"])
    with config.unlocked():
        config.batch_size = program["batch"] // program["devices"]
    cohort = stand_in_cohort(program["size"])
    one = Experiment(config, cohort, 1)
    batch = one.batch_shapes()
    assert figures["flops"] == step_cost(config, cohort, batch).flops
    assert set(figures["convolutions"]) == {"bf16"}
    # A convolution is 3 products, the stem's 2; of a matrix product XLA makes its own kernel.
    layers = [p.layer for p in step_cost(config, cohort, batch).products]
    assert figures["convolutions"]["bf16"] == sum("backbone" in layer for layer in layers)
    assert figures["wide_arrays"] == 0
    assert figures["large_copies"] == []
    with config.unlocked():
        config.batch_size = program["batch"]
    eight = Experiment(config, cohort, 8)
    state = jax.eval_shape(lambda: eight.initial_state(eight.batch_shapes()))
    expected = expected_bytes(eight.objective, state.params, state.model_state, 8)
    assert {row["kind"] for row in figures["collectives"]} <= {"all-reduce", "all-gather"}
    assert sum(row["bytes"] for row in figures["collectives"]) == sum(expected.values())
    behind = sum(row["overlapped_bytes"] for row in figures["collectives"])
    assert behind >= 0.98 * expected["gradients"]


def test_small_texture_maps_move_as_many_bytes_as_committed(tmp_path: Path) -> None:
    check_ceiling(again(SMALL_MAPS, tmp_path), json.loads(SMALL_MAPS.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in CEILINGS if p not in (SMALL, SMALL_MAPS)], ids=lambda path: path.stem
)
def test_what_is_shipped_needs_no_more_than_committed(path: Path, tmp_path: Path) -> None:
    check_ceiling(again(path, tmp_path), json.loads(path.read_text()))


def test_a_figure_that_grew_fails_with_both_numbers(small: dict[str, Any]) -> None:
    less = json.loads(json.dumps(small))
    less["figures"]["bytes_moved"] = small["figures"]["bytes_moved"] // 2
    with pytest.raises(AssertionError, match=r"bytes_moved grew from .* to "):
        check_ceiling(small, less)
