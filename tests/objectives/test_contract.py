"""Every objective keeps the contract of `osteojax.objectives`. Nothing here names one: a new module
with a shipped config is found and tested by existing."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.benchmarks.experiment import Experiment, stand_in_cohort
from launch.benchmarks.scaling import traceable_step
from osteojax import objectives
from osteojax.checkpoints import load_variables
from osteojax.choices import choices
from osteojax.data.cohort import PreparedCohort
from osteojax.export.load import ExportedModel
from osteojax.export.write import export_model
from osteojax.train import loop
from tests.small_runs import CONFIGS, on_devices, small
from tests.train.test_parallel import check_gradients


def variants() -> dict[str, str]:
    """Name of each file in configs/ that trains -> its objective: "FILE:paper" and "FILE:body" of
    those that can see whole boxes and crops of the body."""
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        if hasattr(module, "get_config"):
            for variant in regions(module.get_config):
                name = ":".join(filter(None, (path.stem, variant)))
                found[name] = module.get_config(variant).objective.name
    return found


def regions(get_config: Callable[[str], ConfigDict]) -> tuple[str, ...]:
    """Variants of a config by what they see; one without a name where it has none."""
    try:
        get_config("paper")
    except ValueError:
        return ("",)
    return ("paper", "body")


VARIANTS = variants()
ON_CROPS = [name for name in VARIANTS if name.endswith(":body")]
SHIPPED = {name: objective for name, objective in VARIANTS.items() if name not in ON_CROPS}
each = pytest.mark.parametrize("name", SHIPPED)
first_and_slowly_each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != min(SHIPPED))) for n in VARIANTS]
)
each_and_slowly_on_crops = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ON_CROPS)) for n in VARIANTS]
)


def flat(name: str) -> ConfigDict:
    """What compiles fastest: four steps of one block on the mid-sagittal slice."""
    config = small(
        name, "--config.optim.train_steps=4", "--config.optim.eval_steps=2",
        "--config.optim.save_steps=2", "--config.eval_at_start=false",
    )  # fmt: skip
    with config.unlocked():
        config.model.rank = 2
        if "stage_sizes" in config.model:
            config.model.stage_sizes = (1,)
    return config


class Killed(BaseException):
    pass


def train(name: str, workdir: Path, pool: Path, killed_at: int | None = None) -> None:
    """On one device, so that it compiles fast; killed while it writes the metrics of a step."""
    write = loop.Writer.write

    def die(self, step, prefix, metrics):
        if step == killed_at:
            raise Killed
        write(self, step, prefix, metrics)

    with on_devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Writer, "write", die)
        loop.train(flat(name), workdir, pool)


def log_of(workdir: Path) -> list[dict]:
    """Metrics that are the same in every run of a config."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("img/s/device", "data_wait_share", "_s", "_gib")
    rows = [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows]
    return [row for row in rows if set(row) != {"step"}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_pool: Path):
    """name of a config -> workdir of a finished run, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("contract"), {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = root / name
            train(name, made[name], tiny_pool)
        return made[name]

    return run


def test_every_objective_has_a_shipped_config() -> None:
    assert set(SHIPPED.values()) == set(choices("osteojax.objectives"))


@pytest.mark.parametrize("name", VARIANTS)
def test_its_step_and_its_exports_need_no_shards(name: str) -> None:
    """A manifest is enough; the state keeps its structure; outputs are described."""
    config, cohort = flat(name), stand_in_cohort(16, 8)
    described = objectives.Described(cohort.manifest, Path("nowhere"))
    objective = objectives.load(config, described)
    experiment = Experiment(config, cohort, 2)
    batch = experiment.synthetic_batch()
    step, state = traceable_step(experiment, batch)
    after, metrics = jax.eval_shape(step, state, batch, experiment.key)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
    assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {()}
    objective.check_devices(1)
    assert all(isinstance(count, int) for count in objective.exchanged_bytes(2).values())
    assert objective.diverges_above(2.0) > 2.0
    exports = objective.exports()
    assert exports
    for export in exports.values():
        variables = export.variables(state.params, state.model_state)
        inputs = [
            jax.ShapeDtypeStruct((3, *entry["shape"][1:]), jnp.dtype(entry["dtype"]))
            for entry in export.inputs.values()
            if isinstance(entry, dict) and "dtype" in entry
        ]
        outputs = jax.eval_shape(export.programs["program"], variables, *inputs)
        assert {leaf.shape[0] for leaf in outputs.values()} == {3}
        assert all(export.describe(output) for output in outputs)


@each_and_slowly_on_crops
def test_it_trains_and_validates(name: str, runs) -> None:
    rows = log_of(runs(name))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert [row["step"] for row in rows if any(k.startswith("valid/") for k in row)] == [2, 4]


@first_and_slowly_each  # of pairs, in the fast suite: tests/train/test_loop.py
def test_it_resumes_to_the_bit(name: str, runs, tiny_pool: Path, tmp_path) -> None:
    """From the checkpoint of step 2, as if the run had ended after it."""
    straight, workdir = runs(name), tmp_path / "resumed"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    train(name, workdir, tiny_pool)
    assert log_of(workdir) == log_of(straight)
    assert_same(straight, workdir, "last")


@pytest.mark.slow
@each
def test_a_killed_run_resumes_to_the_bit(name: str, runs, tiny_pool: Path, tmp_path) -> None:
    """Saved at step 2, killed in step 3."""
    with pytest.raises(Killed):
        train(name, tmp_path, tiny_pool, killed_at=3)
    assert max(row["step"] for row in log_of(tmp_path)) == 2
    train(name, tmp_path, tiny_pool)
    assert log_of(tmp_path) == log_of(runs(name))
    for which in ("last", "best"):
        assert_same(runs(name), tmp_path, which)


def assert_same(one: Path, other: Path, which: str) -> None:
    (step, expected), (other_step, found) = (load_variables(run, which) for run in (one, other))
    assert step == other_step
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)


@first_and_slowly_each
def test_four_devices_are_one(name: str, tiny_pool: Path) -> None:
    check_gradients(flat(name), PreparedCohort(tiny_pool), [("shard_map", 4)])


@first_and_slowly_each
def test_what_it_says_it_exports_is_loaded_and_predicts(name: str, runs, tmp_path: Path) -> None:
    workdir = runs(name)
    cohort = stand_in_cohort(16, 8)
    for what in objectives.load(flat(name), cohort).exports():
        card = export_model(workdir, tmp_path / what, what=what)
        model = ExportedModel(tmp_path / what, what)
        inputs = [
            np.ones((2, *entry["shape"][1:]), entry["dtype"])
            for entry in card["inputs"].values()
            if isinstance(entry, dict) and "shape" in entry and entry["shape"][0] == "b"
        ]
        outputs = model.predict(*inputs)
        assert set(outputs) == set(card["outputs"])
        assert all(np.isfinite(value).all() for value in outputs.values())
