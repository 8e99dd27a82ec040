"""A run that is killed again and again: `python -m tests.train.killed_runs POOL OUT KILLS STEPS`.

Trains once without being disturbed, then over again under SIGKILLs at random moments (starting,
compiling, training, saving) until it was killed KILLS times and has finished. Every run is a forked
process, so that each start costs no imports. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from osteojax.checkpoints import load_variables
from osteojax.train import loop
from tests.small_runs import fine_tuning

CONFIG = (
    "--config.model.rank=2", "--config.model.stage_sizes=(1,)", "--config.optim.ema_decay=0.9",
    "--config.optim.save_steps=1", "--config.optim.eval_steps=5",
)  # fmt: skip


def start(workdir: Path, pool: Path, steps: int) -> int:
    """A process that trains; its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open(workdir.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            loop.train(fine_tuning(*CONFIG, f"--config.optim.train_steps={steps}"), workdir, pool)
        status = 0
    finally:
        os._exit(status)


def newest(workdir: Path) -> int:
    """The newest step that is saved, 0 for none."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def killed(process: int, workdir: Path, draw: random.Random) -> bool:
    """Kills the process at a moment that is drawn; False if it had finished by itself."""
    early = draw.random() < 0.3
    deadline = time.monotonic() + (draw.uniform(0.0, 4.0) if early else 600.0)
    wanted = newest(workdir) + draw.randint(1, 3)
    while time.monotonic() < deadline and newest(workdir) < wanted:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            assert status == 0, workdir.with_suffix(".log").read_text()[-2000:]
            return False
        time.sleep(0.002)
    time.sleep(draw.uniform(0.0, 0.8))  # a step and its save take about as long
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def main(pool: Path, out: Path, kills: int, steps: int) -> dict:
    draw = random.Random(kills)
    _, status = os.waitpid(start(out / "straight", pool, steps), 0)
    assert status == 0, (out / "straight.log").read_text()[-2000:]
    done, runs, steps_at_kill = 0, 0, []
    while done < kills:
        workdir = out / f"killed-{runs}"
        runs += 1
        while done < kills and killed(start(workdir, pool, steps), workdir, draw):
            done += 1
            steps_at_kill.append(newest(workdir))
        _, status = os.waitpid(start(workdir, pool, steps), 0)
        assert status == 0, workdir.with_suffix(".log").read_text()[-2000:]
    names = ["straight", *(f"killed-{run}" for run in range(runs))]
    arrays = [saved_bytes(out / name) for name in names]
    return {
        "kills": done,
        "runs": runs,
        "newest_step_at_each_kill": steps_at_kill,
        "bit_identical": all(other == arrays[0] for other in arrays[1:]),
        "arrays": len(arrays[0]),
    }


def saved_bytes(workdir: Path) -> list[bytes]:
    """Every array of the last and of the best step."""
    import jax

    found = []
    for which in ("last", "best"):
        step, variables = load_variables(workdir, which)
        found.append(str(step).encode())
        found += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)]
    return found


if __name__ == "__main__":
    print(
        json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    )
