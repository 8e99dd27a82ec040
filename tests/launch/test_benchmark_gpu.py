"""`osteojax benchmark gpu`: parts that fail or hang, the time left, the page, a bare machine."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import cli
from launch.benchmarks import device_checks, feeding, gpu, gpu_machine, gpu_page, gpu_process
from launch.benchmarks.gpu_part import SMOKE, Absent
from launch.benchmarks.traces import longest_kernels

ROOT = Path(__file__).resolve().parents[2]

ENVIRONMENT = {
    "measurement": "environment", "platform": "gpu", "device": "NVIDIA H200", "date": "2026-12-01",
    "cpu": "a CPU", "cpu_cores": 16, "python": "3.12.1", "card": "NVIDIA H200, 570.1",
    "versions": {"jax": "0.11.0", "torch": "absent"},
}  # fmt: skip

PROCESS = """
import json, os, pathlib, signal, subprocess, sys, time
path, rows = pathlib.Path(sys.argv[1]), []
def row(**values):
    rows.append({"measurement": "row", **values})
    say("failed")
def say(state, reason=""):
    path.write_text(json.dumps({"state": state, "reason": reason, "rows": rows}))
"""
"""A part without JAX: its script follows."""


@pytest.fixture
def stand_ins(monkeypatch):
    """A function that replaces all parts by scripts; each part may take ten seconds."""

    def replace(scripts: dict[str, str], **limits: float) -> None:
        machine = f"rows.append(json.loads({json.dumps(ENVIRONMENT)!r})); say('measured')"
        scripts = {"machine": machine, **scripts}
        parts = [gpu.Part(name, "none", limits.get(name, 10.0)) for name in scripts]
        monkeypatch.setattr(gpu, "PARTS", tuple(parts))
        monkeypatch.setattr(
            gpu,
            "command",
            lambda part, path, smoke: [
                *(sys.executable, "-S", "-c", PROCESS + scripts[part.name], str(path))
            ],
        )

    return replace


def run(out: Path, *argv: str) -> int:
    return cli.main(["benchmark", "gpu", "--out", str(out), *argv])


def results(out: Path) -> dict:
    found = json.loads((out / "gpu.json").read_text())
    return {**found, "states": {part["part"]: part["state"] for part in found["parts"]}}


# ---------------------------------------------------------------- parts that end badly


def test_what_was_measured_survives_a_part_that_fails(stand_ins, tmp_path, capsys) -> None:
    stand_ins(
        {
            "raises": "row(n=1); print('all the rest'); raise ValueError('no room')",
            "killed": "row(n=2); os.kill(os.getpid(), signal.SIGSEGV)",
            "hangs": "row(n=3); subprocess.Popen(['sleep', '76.31']); time.sleep(60)",
            "lacks": "say('absent', 'torch is not installed')",
            "after": "row(before=json.loads((path.parent.parent / 'gpu.json').read_text())"
            "['parts']); say('measured')",
        },
        hangs=1.0,
    )
    assert run(tmp_path) == 1
    found = results(tmp_path)
    assert found["states"] == {
        "machine": "measured", "raises": "failed", "killed": "failed", "hangs": "timed out",
        "lacks": "absent", "after": "measured",
    }  # fmt: skip
    reasons = {part["part"]: part["reason"] for part in found["parts"]}
    assert reasons["raises"] == "ValueError: no room"
    assert "signal 11" in reasons["killed"]
    assert reasons["hangs"] == "ended after 1 s"
    assert [row["n"] for row in found["rows"] if "n" in row] == [1, 2, 3]
    assert len(found["rows"][-1]["before"]) == 5  # on disk before the last part began
    assert "| hangs | timed out | 1 | ended after 1 s |" in (tmp_path / "gpu.md").read_text()
    assert "ValueError: no room" in capsys.readouterr().out
    assert not sleeping("76.31")


def sleeping(seconds: str) -> bool:
    """Whether a `sleep` of a part is left."""
    commands = (path for path in Path("/proc").glob("[0-9]*/cmdline"))
    wanted = f"sleep\0{seconds}\0".encode()
    for path in commands:
        try:
            if path.read_bytes() == wanted:
                return True
        except OSError:
            continue
    return False


def test_an_absent_package_is_no_failure(stand_ins, tmp_path) -> None:
    stand_ins({"lacks": "say('absent', 'torch is not installed')"})
    assert run(tmp_path) == 0
    assert "| lacks | absent | " in (tmp_path / "gpu.md").read_text()


def test_without_time_left_no_part_begins(stand_ins, tmp_path, monkeypatch) -> None:
    stand_ins({"slow": "time.sleep(60)", "late": "row(); say('measured')"})
    monkeypatch.setattr(gpu, "BUDGET_SECONDS", 2.0)
    monkeypatch.setattr(gpu, "SHORTEST_SECONDS", 0.5)
    start = time.monotonic()
    assert run(tmp_path) == 1
    assert time.monotonic() - start < 5
    found = results(tmp_path)
    assert found["states"] == {"machine": "measured", "slow": "timed out", "late": "no time left"}
    assert found["parts"][-1]["reason"] == "rerun with --parts late"


def test_a_machine_without_a_gpu_is_one_line(stand_ins, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(ENVIRONMENT, "platform", "cpu")
    stand_ins({"never": "row()"})
    assert run(tmp_path) == 1
    error = capsys.readouterr().err.strip()
    assert "no GPU: jax 0.11.0 runs on cpu" in error
    assert "pip install 'jax[cuda12]'" in error
    assert "\n" not in error
    assert run(tmp_path, "--smoke") == 1  # runs, and "never" does not say that it was measured
    assert results(tmp_path)["states"]["never"] == "failed"


def test_a_machine_without_jax_and_a_wrong_part_are_one_line(stand_ins, tmp_path, capsys) -> None:
    stand_ins({"machine": "say('absent', 'jax is not installed')"})
    assert run(tmp_path) == 1
    assert "JAX does not start here: jax is not installed" in capsys.readouterr().err
    assert run(tmp_path, "--parts", "machine,boxes") == 1
    assert "--parts boxes: unknown; choose from machine." in capsys.readouterr().err


def test_every_part_is_a_function_of_its_module() -> None:
    for part in gpu.PARTS:
        module = importlib.import_module(f"launch.benchmarks.{part.module}")
        assert callable(getattr(module, part.name))


# ---------------------------------------------------------------- the process of a part


def test_what_a_parts_process_says(tmp_path, monkeypatch) -> None:
    def yields(sizes):
        yield {"edge": sizes.large}

    def lacks(sizes):
        yield {"edge": 0}
        import a_package_that_is_not_there  # noqa: F401

    def lacks_ours(sizes):
        yield {}
        import launch.benchmarks.not_there  # noqa: F401

    def has_nothing(sizes):
        raise Absent("no kernel")
        yield

    def fails(sizes):
        yield {}
        raise ValueError("first\nsecond")

    module = ModuleType("parts_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    expected = {
        yields: (0, "measured", "", 1),
        lacks: (0, "absent", "a_package_that_is_not_there is not installed", 1),
        lacks_ours: (1, "failed", "No module named 'launch.benchmarks.not_there'", 1),
        has_nothing: (0, "absent", "no kernel", 0),
        fails: (1, "failed", "ValueError: first", 1),
    }
    for function, (status, state, reason, rows) in expected.items():
        vars(module)["part"] = function
        path = tmp_path / f"{function.__name__}.json"
        assert gpu_process.main(module.__name__, "part", path, SMOKE) == status
        found = json.loads(path.read_text())
        assert (found["state"], found["reason"], len(found["rows"])) == (state, reason, rows)


def test_a_wrong_result_of_the_device_is_told_after_all_checks(monkeypatch) -> None:
    def nothing() -> float:
        return float("nan")

    monkeypatch.setattr(device_checks, "CHECKS", (device_checks.assignments, nothing))
    monkeypatch.setitem(device_checks.LIMITS, "nothing", 1.0)
    rows = []
    with pytest.raises(RuntimeError, match="nothing is nan off"):
        rows.extend(row for row in gpu_machine.checks(SMOKE))
    checks = gpu_machine.checks(SMOKE)
    found = [next(checks), next(checks)]
    assert found[0]["error"] < 1e-5
    assert found[1]["error"] is None
    ours = device_checks.sinkhorn
    monkeypatch.setattr(device_checks, "sinkhorn", lambda scores: 1.001 * ours(scores))
    assert device_checks.assignments() == pytest.approx(1e-3, rel=0.01)


def test_batches_from_the_hosts_memory_are_the_drawn_members(monkeypatch) -> None:
    """The step sees the codes of the drawn vertebrae and members, in their order."""
    seen = []
    pool = np.arange(5 * 3, dtype=np.uint8).reshape(5, 3, 1, 1, 1)
    monkeypatch.setattr(feeding, "random_codes", lambda *shape: pool)
    rows = []

    def draws(chosen, rng):
        rows.append(chosen)
        return {"map_ids": np.stack([[row % 3, (row + 1) % 3] for row in chosen])}

    experiment = SimpleNamespace(
        objective=SimpleNamespace(view=SimpleNamespace(members=("a", "b", "c"), key="codes")),
        cohort=SimpleNamespace(about=SimpleNamespace(shape=(1, 1, 1))),
        config=SimpleNamespace(batch_size=4),
        devices=SimpleNamespace(put_steps=lambda batch: batch),
        draws=draws,
        synthetic_batch=dict,
        new_state=lambda batch: None,
        program=lambda gather: lambda state, data, batch, key: (None, seen.append(batch)),
        key=None,
    )
    feed = feeding.from_host_memory(experiment, vertebrae=5)
    feed.call()
    feed.call()
    assert len(feed.waited_s) == 2
    for batch, chosen in zip(seen, rows, strict=True):
        codes = batch["codes"][0, :, :, 0, 0, 0]
        assert codes.tolist() == [[3 * r + r % 3, 3 * r + (r + 1) % 3] for r in chosen]


# ---------------------------------------------------------------- traces


def test_the_longest_kernels_of_a_gpus_trace(tmp_path) -> None:
    """Kernels of both streams, by name and operation; neither the host's nor the groups."""

    def named(kind, pid, name, tid=None):
        found = {"ph": "M", "pid": pid, "name": kind, "args": {"name": name}}
        return found if tid is None else {**found, "tid": tid}

    def ran(pid, tid, name, dur, **args):
        return {"ph": "X", "pid": pid, "tid": tid, "ts": 0, "dur": dur, "name": name, "args": args}

    events = [
        named("process_name", 1, "/device:GPU:0"),
        named("process_name", 7, "/host:CPU"),
        named("thread_name", 1, "Stream #13(Compute)", 13),
        named("thread_name", 1, "Stream #14(MemcpyD2D)", 14),
        named("thread_name", 1, "XLA Modules", 99),
        named("thread_name", 7, "python", 13),
        ran(1, 99, "jit_steps", 1000.0),
        ran(7, 13, "wait", 5000.0, hlo_op="fusion.1"),
        ran(1, 13, "loop_fusion", 20.0, hlo_op="fusion.1"),
        ran(1, 13, "loop_fusion", 22.0, hlo_op="fusion.1"),
        ran(1, 13, "loop_fusion", 30.0, hlo_op="fusion.2"),
        ran(1, 14, "memcpy", 5.0),
        {"ph": "C", "pid": 1, "name": "counter"},
    ]
    folder = tmp_path / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as stream:
        json.dump({"traceEvents": events}, stream)
    rows, busy = longest_kernels(tmp_path, count=2)
    assert busy == pytest.approx(77e-6)
    assert [(r["kernel"], r["operation"], r["runs"]) for r in rows] == [
        ("loop_fusion", "fusion.1", 2), ("loop_fusion", "fusion.2", 1),
    ]  # fmt: skip
    assert rows[0]["seconds"] == pytest.approx(42e-6)


def test_a_trace_that_this_jax_writes_can_be_read(tmp_path) -> None:
    run = jax.jit(lambda x: jnp.sin(x @ x))
    x = jnp.ones((64, 64))
    run(x).block_until_ready()
    with pytest.raises(RuntimeError, match="the profiler wrote no"):
        longest_kernels(tmp_path, 3)
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            run(x).block_until_ready()
    rows, busy = longest_kernels(tmp_path, 3)
    assert rows[0]["runs"] == 3
    assert 0 < rows[0]["seconds"] <= busy


# ---------------------------------------------------------------- the page

STEP = {
    "measurement": "step", "image_size": 96, "region": "box", "batch_size": 32,
    "dtype": "bfloat16", "engine": "osteojax", "data": "one batch", "steps_per_dispatch": 1,
    "seconds": 0.016, "seconds_min": 0.015, "seconds_max": 0.018, "first_call_seconds": 41.0,
    "device_memory_gib": 6.5,
}  # fmt: skip
ROWS = [
    ENVIRONMENT,
    {"measurement": "matrix product", "dtype": "float32", "flops_per_second": 3e14},
    {"measurement": "matrix product", "dtype": "bfloat16", "flops_per_second": 7e14},
    {"measurement": "copy", "bytes_per_second": 4e12},
    STEP,
    {**STEP, "measurement": "cost", "flops": 7.0e12, "least_bytes": 10.8e9},
    {**STEP, "data": "device memory", "steps_per_dispatch": 8, "seconds": 0.0145},
    {**STEP, "engine": "PyTorch, compiled", "seconds": 0.02, "peak_bytes": 2**33},
    {
        "measurement": "memory", "image_size": 96, "batch_size": 32, "compile_seconds": 3.2,
        "peak_bytes_in_use": 5 * 2**30, "compiler_peak_bytes": 2**32, "argument_bytes": 2**30,
        "temporary_bytes": None,
    },
    {"measurement": "busy", "seconds": 0.0136},
    {"measurement": "program", "image_size": 96, "bytes_moved": 28e9, "kernels": 805},
    {
        "measurement": "kernel", "kernel": "a|b", "operation": "fusion", "pass": "backward",
        "layer": "backbone/stem_norm", "runs": 1.0, "seconds": 0.00068, "bytes": 2_040_000_000,
    },
    {
        "measurement": "textures", "name": "four maps of whole boxes", "seconds": 0.0035,
        "seconds_min": 0.0034, "seconds_max": 0.004, "voxels": 28_311_552, "voxel_bytes": 17,
        "textures": "box", "image_size": 96, "batch_size": 32, "kernel_radius": 3,
    },
    {
        "measurement": "sinkhorn", "name": "1056 x 128", "seconds": 5e-5, "seconds_min": 5e-5,
        "seconds_max": 6e-5, "least_bytes": 1_081_344,
    },
    {"measurement": "check", "check": "texture maps", "error": 3e-7, "limit": 2e-6},
    {"measurement": "check", "check": "assignments", "error": None, "limit": 1e-5},
]  # fmt: skip


def page_of(rows: list[dict], **environment) -> dict[str, list[list[str]]]:
    """Title -> lines of the table below it, as cells; all as long as the head."""
    known = {
        "smoke": False,
        "environment": {**ENVIRONMENT, **environment},
        "parts": [{"part": "disk", "state": "absent", "seconds": 3.0, "reason": "no grain"}],
        "rows": [{**ENVIRONMENT, **environment}, *rows[1:]],
    }
    tables: dict[str, list[list[str]]] = {}
    title = ""
    for line in gpu_page.page(known).splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("|"):
            cells = line.replace("\\|", "!").strip("|").split("|")
            tables.setdefault(title, []).append([cell.strip() for cell in cells])
    for lines in tables.values():
        assert {len(line) for line in lines} == {len(lines[0])}
    return tables


def test_the_page_has_measured_beside_bounds_and_pytorch() -> None:
    tables = page_of(ROWS)
    steps = tables["The step: boxes of 96^3, batch 32, bfloat16"][2:]
    assert [line[0] for line in steps] == ["osteojax", "osteojax", "PyTorch, compiled"]
    assert steps[0][3:] == ["16 (15-18)", "2,000", "62.5%", "41", "6.50"]
    assert steps[2][-1] == "8.00"
    bound = tables["Our fastest step beside its bounds"][2]
    assert bound[1:5] == ["14.5", "10", "2.7", "7"]
    committed = json.loads((gpu_page.COMPILED / "h200_paper_96.json").read_text())["figures"]
    assert bound[5:] == [f"{committed[f'{of}_bound_ms']:.3g}" for of in ("flop", "byte")]
    memory = dict(tables["Memory: the step on boxes of 96^3, batch 32"][2:])
    assert memory["measured, most in use"] == "5.00"
    assert memory["this compiler: temporary"] == "not told"
    assert memory["committed, of jax 0.10.2: peak"] == f"{committed['peak_bytes'] / 2**30:.2f}"
    kernel = tables["Longest kernels of the step (13.6 ms of all kernels)"][2]
    assert kernel[0] == "`a!b`"
    assert kernel[3:] == ["0.68", "5.0%", "3,000"]
    maps = tables["Texture maps"][2]
    assert maps[2:] == ["8.09", "235", f"{texture_bound() / 1e9:.3g}"]
    assert tables["What ran"][2] == ["disk", "absent", "3", "no grain"]
    wrong = {line[0]: line[3] for line in tables["Results beside the CPU's"][2:]}
    assert wrong == {"texture maps": "", "assignments": "**wrong**"}


def texture_bound() -> float:
    committed = json.loads((gpu_page.COMPILED / "h200_textures_box.json").read_text())
    return committed["figures"]["bound_voxels_per_second"]


def test_another_card_or_step_has_no_committed_bound() -> None:
    other = page_of(ROWS, device="NVIDIA A100-SXM4-80GB")
    assert other["Our fastest step beside its bounds"][2][5:] == ["none", "none"]
    for name, value in (("batch_size", 16), ("dtype", "float32"), ("image_size", 64)):
        assert gpu_page.committed("NVIDIA H200", {**STEP, name: value}) is None
    assert other["Texture maps"][2][-1] == "none"
    maps = next(row for row in ROWS if row["measurement"] == "textures")
    assert gpu_page.committed_textures("NVIDIA H200", {**maps, "kernel_radius": 2}) is None
    body = gpu_page.committed("NVIDIA H200", {**STEP, "region": "body"})
    assert body is not None
    assert body["program"]["config"] == "configs/tp_swav_resnet34.py"


@pytest.mark.parametrize("count", range(len(ROWS) + 1))
def test_there_is_a_page_after_every_row(count: int) -> None:
    results = {"smoke": True, "environment": {}, "parts": [], "rows": ROWS[:count]}
    assert "Tiny sizes" in gpu_page.page(results)


# ---------------------------------------------------------------- a machine with next to nothing

REFUSED = (
    "grain", "array_record", "ml_collections", "pandas", "sklearn", "SimpleITK", "tqdm",
    "matplotlib", "distributed", "jinja2", "safetensors", "statsmodels", "tensorboardX", "pydicom",
    "highdicom", "radiomics", "flatbuffers", "threadpoolctl", "torch", "tensorflow",
)  # fmt: skip
"""Of our dependencies and peers; jax, flax, optax and orbax bring numpy, scipy, absl and rich."""

REFUSE = """
    import importlib.abc, sys

    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.partition(".")[0] in {refused!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])

    sys.meta_path.insert(0, Refuse())
"""


PATIENT = """
import dataclasses, sys
from launch import cli
from launch.benchmarks import gpu
gpu.BUDGET_SECONDS = 3600.0
gpu.PARTS = tuple(dataclasses.replace(part, seconds=1200.0) for part in gpu.PARTS)
sys.exit(cli.main())
"""
"""The command, on a machine that may be busy."""


def bare(tmp_path: Path, *argv: str) -> tuple[int, dict]:
    """Exit status and results of the command where nothing else can be imported, in its parts'
    processes neither: Python runs sitecustomize.py in each of them."""
    refuse = textwrap.dedent(REFUSE).format(refused=set(REFUSED))
    (tmp_path / "sitecustomize.py").write_text(refuse)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = ["--smoke", "--out", str(tmp_path / "out"), *argv]
    done = subprocess.run(
        [sys.executable, "-c", PATIENT, "benchmark", "gpu", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, results(tmp_path / "out")


def test_the_command_runs_with_jax_flax_optax_and_orbax_alone(tmp_path) -> None:
    status, found = bare(tmp_path, "--parts", "assignments")
    assert status == 0
    assert found["states"] == {"machine": "measured", "assignments": "measured"}
    assert found["environment"]["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_all_parts_run_with_jax_flax_optax_and_orbax_alone(tmp_path, monkeypatch) -> None:
    status, found = bare(tmp_path)
    assert status == 0, found["parts"]
    reasons = {part["reason"] for part in found["parts"]}
    assert reasons >= {"torch is not installed", "pandas is not installed"}
    lacking = {"pytorch_96", "pytorch_64", "pallas", "disk"}
    assert found["states"] == {
        part.name: "absent" if part.name in lacking else "measured" for part in gpu.PARTS
    }
    steps = [row for row in found["rows"] if row["measurement"] == "step"]
    boxes = [row for row in steps if row["part"] == "boxes_96"]
    assert [(row["data"], row["steps_per_dispatch"]) for row in boxes] == [
        ("one batch", 1), ("device memory", 1), ("device memory", 8), ("host memory", 1),
    ]  # fmt: skip
    assert all(row["error"] == 0 for row in found["rows"] if row.get("check") == "texture maps")
