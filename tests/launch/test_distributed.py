"""Two processes on this machine give the numbers of one; flags and clusters are understood."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from launch import cli, distributed, train
from launch.distributed import Group, find_group
from osteojax.checkpoints import load_variables
from osteojax.errors import UserError
from osteojax.train import loop
from osteojax.train.stop import Stopped
from tests.small_runs import CONFIGS, SMALL, load_config

LAUNCH = Path(distributed.__file__).parent
TINY = (*SMALL, "--config.model.rank=2", "--config.model.stage_sizes=(1,)")
FINE_TUNING = f"{CONFIGS / 'moe_multitask_resnet34.py'}:paper,smoke"
PRETRAINING = f"{CONFIGS / 'tp_swav_resnet34.py'}:paper,smoke"
SWAV = (*TINY, "--config.objective.queue_size=16", "--config.objective.num_prototypes=8",
        "--config.objective.freeze_prototypes_steps=2")  # fmt: skip


def start_two(workdir: Path, data: Path, path: str, overrides: tuple[str, ...], devices: int = 1):
    """launch/local.sh with two processes of some devices each."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [str(LAUNCH / "local.sh"), "2", "--config", path, *overrides]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), "--data", str(data)],
        env={**os.environ, "PATH": programs, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    return output


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({(row["step"], *row) for row in rows}) == len(rows)  # one process writes
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def assert_same_run(one: Path, other: Path, learning_rate: float) -> None:
    """To float32 rounding. Adam divides by the root of a second moment, which magnifies the
    rounding of tiny gradients: parameters are compared, as a whole, with the way that they went."""
    expected, found = losses(one), losses(other)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-3)
    (step, a), (other_step, b) = load_variables(one, "last"), load_variables(other, "last")
    assert step == other_step
    leaves = zip(jax.tree.leaves(a["params"]), jax.tree.leaves(b["params"]), strict=True)
    apart = np.concatenate([(x - y).ravel() for x, y in leaves])
    assert np.sqrt(np.mean(apart**2)) < 0.01 * step * learning_rate


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(
    fine_tuned: Path, tiny_pool: Path, tmp_path: Path
) -> None:
    rate = "--config.optim.learning_rate=0.01"  # as `fine_tuned`, which 8 devices share
    output = finished(start_two(tmp_path, tiny_pool, FINE_TUNING, (*SMALL, rate)))
    assert "on 2 cpu device(s) in 2 process(es)" in output
    assert output.count("best loss") == 1
    assert_same_run(fine_tuned, tmp_path, 0.01)
    # One process, with other devices, goes on where two stopped.
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    loop.train(load_config(FINE_TUNING, [*SMALL, rate]), tmp_path, tiny_pool)
    assert_same_run(fine_tuned, tmp_path, 0.01)


@pytest.mark.slow
def test_two_processes_pretrain_and_go_on_where_one_stopped(tiny_pool: Path, tmp_path) -> None:
    config = load_config(PRETRAINING, list(SWAV))
    loop.train(config, tmp_path / "one", tiny_pool)
    finished(start_two(tmp_path / "both", tiny_pool, PRETRAINING, SWAV, devices=2))
    assert_same_run(tmp_path / "one", tmp_path / "both", 1e-3)
    shutil.copytree(tmp_path / "one", tmp_path / "then_both")
    shutil.rmtree(tmp_path / "then_both" / "checkpoints" / "6")
    output = finished(start_two(tmp_path / "then_both", tiny_pool, PRETRAINING, SWAV, devices=2))
    assert "resuming at step 3 of 6" in output
    assert_same_run(tmp_path / "one", tmp_path / "then_both", 1e-3)


@pytest.mark.slow
def test_sigterm_stops_two_processes_at_one_step(tiny_pool: Path, tmp_path: Path) -> None:
    endless = (*TINY, "--config.optim.train_steps=100000", "--config.optim.eval_steps=100000",
               "--config.optim.save_steps=100000")  # fmt: skip
    both = start_two(tmp_path, tiny_pool, FINE_TUNING, endless)
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") > 5):
        assert both.poll() is None, both.communicate()[0][-3000:]
        time.sleep(0.2)
    both.send_signal(signal.SIGTERM)
    output, _ = both.communicate()
    assert both.returncode == 75
    step, _ = load_variables(tmp_path, "last")
    assert output.count(f"SIGTERM: stopped and saved at step {step}") == 2


@pytest.mark.slow
def test_processes_of_different_runs_do_not_train_together(tiny_pool: Path, tmp_path) -> None:
    command = [sys.executable, "-m", "launch.cli", "train", "--config", FINE_TUNING]
    command += ["--workdir", str(tmp_path / "run"), "--data", str(tiny_pool)]
    command += ["--coordinator", "localhost:18476", "--num-processes", "2"]
    both = [
        subprocess.Popen(
            [*command, "--process-id", str(index), f"--config.seed={index}"],
            env={**os.environ, "XLA_FLAGS": ""},
            stderr=subprocess.PIPE,
            text=True,
            cwd=LAUNCH.parent,
        )
        for index in range(2)
    ]
    for process in both:
        assert "started with different configs" in process.communicate()[1]
        assert process.returncode == 1
    assert not (tmp_path / "run").exists()


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    distributed.add_arguments(parser)
    return parser.parse_args(argv)


OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1"}  # fmt: skip
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}
WHERE = {"JAX_COORDINATOR_ADDRESS": "a:1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, None),  # in the batch script, or an allocation: no srun
        ({**SLURM, "SLURM_STEP_NODELIST": "n[1-2]"}, Group()),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, None),
        ({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}, Group()),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, Group("localhost:8476", 4, 3, 1)),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", **WHERE}, Group("a:1", 4, 3, 1)),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Group()),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod on its own
    ],
)
def test_the_environment_says_who_trains_together(environment: dict, expected) -> None:
    assert find_group(arguments(), environment) == expected


def test_flags_win_over_the_environment() -> None:
    flags = ("--coordinator", "host:1", "--num-processes", "2", "--process-id", "1")
    assert find_group(arguments(*flags), SLURM) == Group("host:1", 2, 1)


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        (("--process-id", "1"), {}, "belong together"),
        (("--coordinator", "h", "--num-processes", "2", "--process-id", "1"), {}, "HOST:PORT"),
        (("--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"), {}, "0 to 1"),
        ((), {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_what_is_missing_is_said(argv, environment: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_group(arguments(*argv), environment)


def test_the_exit_status_of_a_stopped_run_says_why(monkeypatch, tiny_pool: Path, capsys) -> None:
    command = ["train", "--config", FINE_TUNING, "--workdir", "w", "--data", str(tiny_pool)]
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):

        def stop(*_, number=number, **__):
            raise Stopped(12, number)

        monkeypatch.setattr(loop, "train", stop)
        assert cli.main(command) == status
        error = capsys.readouterr().err.strip()
        assert "saved at step 12; rerun the same command" in error
        assert "\n" not in error


def test_the_launchers_parse_and_call_what_there_is() -> None:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    for name in ("local.sh", "slurm.sbatch", "tpu_vm.sh"):
        subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    (jobset,) = yaml.safe_load_all((LAUNCH / "k8s_jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    script = container["command"][-1]
    host = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}:"
    assert host in script
    assert f"--num-processes {spec['completions']} " in script
    assert {word for word in script.split() if word.startswith("--")} <= known
    subprocess.run(["bash", "-n", "-c", script], check=True)
