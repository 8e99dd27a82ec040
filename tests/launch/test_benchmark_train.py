"""`osteojax benchmark train`: its config, its floor, its rows, and where nothing is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from launch import cli
from launch.benchmarks import experiment, feeding, floor, measure, peaks, plain_config
from launch.benchmarks import train as benchmark
from osteojax.data.augment import flips_alone
from osteojax.train import costs
from osteojax.train.parallel import DataParallel
from tests.small_runs import fine_tuning, pretraining

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    "measurement", "engine", "data", "image_size", "batch_size", "dtype", "step_seconds",
    "images_per_second_per_device", "model_flops_utilization",
}  # fmt: skip


def small_config(objective: str):
    return pretraining() if objective == "swav" else fine_tuning()


def small_experiment(objective: str, num_devices: int = 1) -> experiment.Experiment:
    cohort = experiment.stand_in_cohort(16, vertebrae=24)
    return experiment.Experiment(small_config(objective), cohort, num_devices)


@pytest.fixture(scope="module")
def swav_cost() -> costs.StepCost:
    """Of one step of `small_experiment("swav")`."""
    one = small_experiment("swav")
    return one.cost(one.synthetic_batch())


# ---------------------------------------------------------------- the config


@pytest.mark.parametrize("objective", ["swav", "multitask"])
def test_settings_without_ml_collections_are_the_shipped_ones(objective, monkeypatch) -> None:
    real = plain_config.shipped_config(objective)
    for name in ("ml_collections", "ml_collections.config_dict"):
        monkeypatch.setitem(sys.modules, name, None)
    shipped = [name for name in sys.modules if name.startswith("configs.")]
    for name in shipped:  # `from configs import shared` finds a module by either of the two
        if name.count(".") == 1:
            monkeypatch.delattr(configs, name.removeprefix("configs."))
        monkeypatch.delitem(sys.modules, name)
    plain = plain_config.shipped_config(objective)
    for name in shipped:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert type(plain) is plain_config.ConfigDict
    assert type(real) is not plain_config.ConfigDict
    assert plain.to_dict() == real.to_dict()
    assert plain.objective.name == objective
    whole = plain_config.shipped_config(objective, "paper")
    assert (whole.data.statistics, real.data.statistics) == ("box", "body")
    if objective == "swav":
        flips = [flips_alone(config.data.augment) for config in (plain, real)]
        assert flips[0].to_dict() == flips[1].to_dict() != plain.data.augment.to_dict()
    assert plain.to_dict() == real.to_dict()  # the augmentation for crops is another one
    with pytest.raises(AttributeError, match="no 'bath_size' among seed"):
        plain.bath_size


# ---------------------------------------------------------------- cost and floor


def test_cost_of_a_swav_step(swav_cost: costs.StepCost) -> None:
    """Both views; the queue's scores have no gradient; a state of parameters and two moments."""
    one = small_experiment("swav")
    batch, cost = one.synthetic_batch(), swav_cost
    parts: dict[str, list[costs.Product]] = {}
    for product in cost.products:
        parts.setdefault(product.layer, []).append(product)
    settings = one.config.objective
    dim, count, queue = settings.prototype_dim, settings.num_prototypes, settings.queue_size
    views = 2 * one.config.batch_size
    scores = sum(p.flops for p in parts["prototypes"])
    assert scores == 2 * dim * count * (3 * views + 2 * queue)
    assert [p.part for p in parts["backbone/stem"]] == ["forward", "kernel_gradient"]
    assert parts["backbone/stem"][0].operands[0] == (views, 16, 16, 16, 1)
    hidden = settings.projector_dim
    assert {p.flops for p in parts["projector/output"]} == {2 * views * hidden * dim}
    state = jax.eval_shape(lambda: one.new_state(batch))
    assert cost.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert cost.gradient_bytes == 4 * cost.num_parameters
    assert 3 * cost.gradient_bytes < cost.state_bytes
    assert cost.batch_bytes == sum(array.nbytes for array in batch.values())


def test_a_step_on_crops_costs_what_boxes_of_their_size_cost() -> None:
    """18 mm are 6 voxels of 3 mm; what is read stays the whole box."""

    def cost(size: int, region: str) -> costs.StepCost:
        config = pretraining()
        with config.unlocked():
            config.data.views.region = config.data.statistics = region
        one = experiment.Experiment(config, experiment.stand_in_cohort(size, vertebrae=8), 1)
        return one.cost(one.synthetic_batch())

    crops, whole = cost(32, "body"), cost(6, "box")
    assert crops.products == whole.products
    assert crops.batch_bytes > 2 * 8 * 32**3 > whole.batch_bytes


def test_work_is_shared_by_devices_and_not_changed_by_remat() -> None:
    one = small_experiment("multitask")
    batch = one.synthetic_batch()
    whole = experiment.step_cost(one.config, one.cohort, batch)
    half = experiment.step_cost(one.config, one.cohort, batch, num_devices=2)
    assert 2 * half.flops == whole.flops
    assert half.state_bytes == whole.state_bytes
    remat = fine_tuning("--config.model.remat=true")
    assert experiment.step_cost(remat, one.cohort, batch).flops == whole.flops


def test_the_floor_adds_up(swav_cost: costs.StepCost) -> None:
    """Each product at the slower of its two rates; every product in exactly one row."""
    cost = swav_cost
    rates = floor.Rates(flops_per_second=1e9, bytes_per_second=1e8)
    rows = floor.floor_rows(cost, rates)
    assert sum(row["flops"] for row in rows) == cost.flops
    assert sum(row["bytes"] for row in rows) == cost.bytes
    total = floor.floor_seconds(cost, rates)
    assert sum(row["floor_seconds"] for row in rows) == pytest.approx(total)
    bound = [max(p.flops / 1e9, p.bytes / 1e8) for p in cost.products]
    assert total == pytest.approx(sum(bound) + cost.state_and_batch_bytes / 1e8)
    names = [row["layer"] for row in rows]
    assert names[:2] == ["backbone/stem", "backbone/stage1, 2 alike"]
    assert len(floor.floor_table(rows).splitlines()) == 2 + len(rows)


def test_peaks_count_every_device() -> None:
    """Twice the work of half the devices in the same time is twice the rate: seconds are told."""
    mesh = DataParallel.create("shard_map", 2).mesh
    told = iter([0.5, 0.25])

    def seconds_per_call(call, repeats):
        call()
        return {"min": next(told)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "seconds_per_call", seconds_per_call)
        patch.setitem(peaks.MATRIX_EDGE, "cpu", 64)
        patch.setitem(peaks.COPY_BYTES, "cpu", 4096)
        assert peaks.matrix_flops_per_second(mesh, "bfloat16", 1) == 2 * 2 * 64**3 / 0.5
        assert peaks.copy_bytes_per_second(mesh, 1) == 2 * 2 * 4096 / 0.25


def test_a_window_is_divided_by_its_calls(monkeypatch) -> None:
    calls = []
    clock = iter(range(1000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) * 0.1)
    found = measure.seconds_per_call(lambda: calls.append(1), repeats=2)
    # A call is taken to last 0.1 s: ten fill a window of a second; the clock ticks once for each.
    assert len(calls) == 1 + 1 + 2 * 10
    assert found["median"] == pytest.approx(0.1 / 10)
    assert found["first"] == pytest.approx(0.1)


def test_windows_in_turn_tell_the_ratio_of_neighbours(monkeypatch) -> None:
    """Both calls slow down in the second half: their times double and their ratio stays."""
    order, now = [], [0.0]
    lasts = {"slow": 1.5, "quick": 0.5}
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def call(name: str):
        def once() -> None:
            now[0] += lasts[name] * (2 if len(order) >= 8 else 1)
            order.append(name)

        return once

    slow, quick = measure.seconds_in_turn([call("slow"), call("quick")], 4, window_seconds=0.1)
    assert order == ["slow", "slow", "quick", "quick", *["slow", "quick"] * 4]
    assert (slow["min"], slow["max"]) == (1.5, 3.0)
    assert (quick["of_first"], quick["of_first_min"], quick["of_first_max"]) == (3, 3, 3)
    assert "of_first" not in slow


# ---------------------------------------------------------------- feeding and rows


def test_rows_and_hours(swav_cost: costs.StepCost) -> None:
    cost = swav_cost
    feed = feeding.Feed(lambda: None, steps_per_call=4, waited_s=[9.0, 9.0, 0.4, 0.4])
    settings = {"objective": "swav", "batch_size": 32, "devices": 2}
    timing = {"median": 2.0, "min": 1.0, "max": 4.0, "first": 20.0}
    rates = floor.Rates(1e12, 1e9)
    row = benchmark._step_row("shard_map", "resident", feed, timing, settings, cost, rates)
    assert row["step_seconds"] == 0.5
    assert row["images_per_second_per_device"] == 32
    assert row["model_flops_utilization"] == pytest.approx(cost.flops / 0.5 / 1e12)
    assert row["data_wait_seconds"] == pytest.approx(0.1)
    assert row["paper_pretraining_hours"] == pytest.approx(30_256 * 300 / 32 * 0.5 / 3600)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch", "0"], "--batch 0"),
        (["--steps-per-dispatch", "0"], "--steps-per-dispatch 0"),
        (["--steps-per-dispatch", "4"], "need --data resident"),
        (["--data", "resident", "--engine", "pmap"], "--engine shard_map"),
        (["--peers", "tensorflow"], "choose from pytorch"),
        (["--peers", "pytorch", "--objective", "multitask"], "--objective swav"),
        (["--folder", "x", "--size", "32"], "leave it out with --folder"),
        (["--folder", "nowhere"], "no manifest.json"),
        (["--devices", "99"], "this machine shows 8"),
        (["--data", "disk", "--size", "48"], "96, 64, 32"),
    ],
)
def test_a_users_mistake_is_one_line(argv: list[str], message: str, capsys) -> None:
    assert cli.main(["benchmark", "train", *argv]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_the_floor_is_printed_and_no_step_taken(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "config_of", lambda args: small_config(args.objective))
    monkeypatch.setattr(peaks, "matrix_flops_per_second", lambda *_: 1e12)
    monkeypatch.setattr(peaks, "copy_bytes_per_second", lambda *_: 1e11)
    monkeypatch.setattr(benchmark, "_measured", lambda *_: pytest.fail("took a step"))
    argv = ["--objective", "multitask", "--devices", "1", "--json", str(tmp_path / "f.json")]
    assert cli.main(["benchmark", "train", "--floor", *argv]) == 0
    assert "without padding" in capsys.readouterr().out
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert sum(row["flops"] for row in rows[1:]) == rows[0]["flops_per_step"]
    assert rows[0]["image_size"] == 32


@pytest.mark.slow
@pytest.mark.parametrize("data", ["disk", "resident"])
def test_the_whole_benchmark(data: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "config_of", lambda args: small_config(args.objective))
    monkeypatch.setitem(peaks.MATRIX_EDGE, "cpu", 256)
    argv = ["--data", data, "--batch", "8", "--width", "4", "--repeats", "1", "--vertebrae", "24"]
    out = tmp_path / "train.json"
    assert cli.main(["benchmark", "train", *argv, "--json", str(out)]) == 0
    results = json.loads(out.read_text())
    steps = [row for row in results["rows"] if row["measurement"] == "step"]
    assert [row["data"] for row in steps] == ["synthetic", data]
    for row in steps:
        assert row.keys() >= ROW
        assert 0 < row["model_flops_utilization"] < 1
        assert row["step_seconds_min"] <= row["step_seconds"] <= row["step_seconds_max"]
    assert results["environment"]["versions"]["jax"] == jax.__version__


# ---------------------------------------------------------------- a machine with next to nothing

REFUSED = (
    "grain", "array_record", "ml_collections", "pandas", "sklearn", "SimpleITK", "tqdm",
    "matplotlib", "distributed", "jinja2", "safetensors", "statsmodels", "tensorboardX",
)  # fmt: skip
"""Of our dependencies; jax, flax, optax and orbax bring numpy, scipy, absl and rich."""

BARE = """
    import importlib.abc, sys

    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.partition(".")[0] in {refused!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Refuse())
    from launch import cli
    from launch.benchmarks import peaks, experiment, train
    peaks.MATRIX_EDGE["cpu"], peaks.COPY_BYTES["cpu"] = 64, 4096
    config_of = experiment.config_of

    def small(args):
        config = config_of(args)
        config.model.stage_sizes = (1,)
        config.objective.queue_size = 16
        return config

    train.config_of = small
    for objective in ("swav", "multitask"):
        argv = ["--objective", objective, "--size", "16", "--width", "4", "--devices", "1"]
        argv += ["--data", "resident", "--batch", "2", "--repeats", "1"]
        status = cli.main(["benchmark", "train", *argv])
        assert status == 0
    found = set(sys.modules) & {refused!r}
    assert not found, found
"""


@pytest.mark.slow
def test_compute_and_resident_run_with_jax_flax_optax_and_orbax_alone() -> None:
    script = textwrap.dedent(BARE).format(refused=set(REFUSED))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" resident ") == 2


def test_the_step_is_imported_with_jax_flax_optax_and_orbax_alone() -> None:
    """The fast half of the test above: imports, configs and the command line."""
    script = textwrap.dedent(BARE).format(refused=set(REFUSED)).partition("    train.config_of")[0]
    script = script.partition("def small")[0] + (
        "experiment.shipped_config('swav'), experiment.shipped_config('multitask')\n"
        "import osteojax.objectives.swav, osteojax.objectives.multitask\n"
        "assert cli.main(['benchmark', 'train', '--batch', '0']) == 1\n"
        f"assert not set(sys.modules) & {set(REFUSED)!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--batch 0" in done.stderr


# ---------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("form", ["shipped", "0.1"])
def test_pytorch_takes_the_same_step(form: str) -> None:
    """The peer's network from our parameters: as many of them, and the same loss for a batch."""
    torch = pytest.importorskip("torch")
    from launch.benchmarks import peer_pytorch

    config = small_config("swav")
    if form == "0.1":
        with config.unlocked():
            del config.model.shortcut
    one = experiment.Experiment(config, experiment.stand_in_cohort(16, vertebrae=24), 1)
    one.config.data.augment.max_shift_voxels, one.config.data.augment.flip_probability = 0, 0.0
    batch = one.synthetic_batch()
    cost = one.cost(batch)
    affine = one.cohort.about.map_affine()
    peer = peer_pytorch.SwAV(one.config, affine)
    assert sum(p.numel() for p in peer.parameters()) == cost.num_parameters
    state = one.new_state(batch)
    queue = np.random.default_rng(0).standard_normal(state.model_state["queue"].shape, np.float32)
    queue /= np.linalg.norm(queue, axis=-1, keepdims=True)
    model_state = state.model_state | {
        "queue": jnp.asarray(queue),
        "queue_filled": jnp.int32(len(queue)),
    }
    state = state.replace(model_state=model_state)
    _give_parameters(torch, peer, state.params)
    peer.queue.copy_(torch.as_tensor(queue))
    theirs = peer(torch.as_tensor(batch["codes"]), torch.as_tensor(batch["map_ids"]).long())
    program, placed = one.program(lambda data, batch: batch), one.on_devices(batch)
    _, metrics = program(one.devices.replicate(state), None, placed, one.key)
    assert float(theirs.detach()) == pytest.approx(float(metrics["loss"][0]), rel=1e-4)
    once = peer_pytorch.swav_step(one.config, batch, affine, "cpu")
    jax.block_until_ready(once())
    forms = dict(peer_pytorch.swav_steps(one.config, batch, affine, "cpu"))
    jax.block_until_ready(forms["eager"]())


def _give_parameters(torch, peer, params) -> None:
    """Ours in the order of theirs: convolutions, norms, dense layers, prototypes."""

    def convolution(layer, kernel) -> None:
        layer.weight.data = torch.as_tensor(np.asarray(kernel)).permute(4, 3, 0, 1, 2).contiguous()

    def norm(layer, scope) -> None:
        scope = scope.get("norm", scope)
        layer.weight.data = torch.as_tensor(np.asarray(scope["scale"]))
        layer.bias.data = torch.as_tensor(np.asarray(scope["bias"]))

    backbone = params["backbone"]
    convolution(peer.encoder[0], backbone["stem"]["kernel"])
    norm(peer.encoder[1], backbone["stem_norm"])
    blocks = [layer for layer in peer.encoder if type(layer).__name__ == "Block"]
    names = sorted(name for name in backbone if "_block" in name)
    for block, name in zip(blocks, names, strict=True):
        ours = backbone[name]
        convolution(block.branch[0], ours["conv1"]["kernel"])
        norm(block.branch[1], ours["norm1"])
        convolution(block.branch[3], ours["conv2"]["kernel"])
        norm(block.branch[4], ours["norm2"])
        if "projection" in ours:
            convolution(block.shortcut[-2], ours["projection"]["kernel"])
            norm(block.shortcut[-1], ours["projection_norm"])
    projector = params["projector"]
    peer.projector[0].weight.data = torch.as_tensor(np.asarray(projector["hidden"]["kernel"]).T)
    norm(peer.projector[1], projector["norm"])
    peer.projector[3].weight.data = torch.as_tensor(np.asarray(projector["output"]["kernel"]).T)
    peer.projector[3].bias.data = torch.as_tensor(np.asarray(projector["output"]["bias"]))
    peer.prototypes.data = torch.as_tensor(np.asarray(params["prototypes"]["vectors"]))


def test_an_absent_pytorch_is_said(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "launch.benchmarks.peer_pytorch", raising=False)
    with pytest.raises(benchmark.UserError, match="PyTorch is not installed"):
        benchmark._pytorch(SimpleNamespace(), {})
