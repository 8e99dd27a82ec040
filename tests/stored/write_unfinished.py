"""Writes tests/stored/unfinished/<version>.tar.xz: runs that later versions must continue.

    python -m tests.stored.write_unfinished

Run it once for a version that trains differently from those stored already, and commit the new
file. Never rewrite or remove an older one: it stands for a user's run.

It holds `finetune` and `pretrain`, each with its checkpoint of step 3 of 6, and `finetune.npz` and
`pretrain.npz`: the parameters of step 6, and the training metrics of the steps 4 to 6, as that
version computed them. 0.2.0 has random crops in both, so that the geometry of every view is pinned
by its random key, and group normalisation in `finetune`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from osteojax import __version__
from osteojax.checkpoints import load_variables
from osteojax.train import loop
from tests.small_runs import fine_tuning, pretraining
from tests.stored import UNFINISHED, pack
from tests.tiny_cohort import write_tiny_cohort

SIZE, PATIENTS, STOPPED, LAST = 16, 20, 3, 6
TINY = (
    "--config.model.width=3",
    f"--config.optim.train_steps={LAST}",
    f"--config.optim.eval_steps={LAST}",
    f"--config.optim.save_steps={STOPPED}",
    "--config.data.augment.crop_min_volume=0.14",
)
FINE_TUNING = (
    "--config.model.norm=group", "--config.moe.expert_dim=8", "--config.moe.gate_dim=8",
    "--config.optim.learning_rate=0.01",
)  # fmt: skip
PRE_TRAINING = (
    "--config.objective.projector_dim=8", "--config.objective.prototype_dim=4",
    "--config.checkpoint.best_metric=hu_probe_r2",
)  # fmt: skip


def main() -> int:
    target = UNFINISHED / f"{__version__}.tar.xz"
    if target.exists():
        print(f"{target} is there already: raise the version, or leave it.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pool = write_tiny_cohort(scratch / "pool", patients=PATIENTS, size=SIZE)
        content = scratch / "content"
        for verb, config in (
            ("pretrain", pretraining(*TINY, *PRE_TRAINING)),
            ("finetune", fine_tuning(*TINY, *FINE_TUNING)),
        ):
            workdir = content / verb
            loop.train(config, workdir, pool)
            np.savez_compressed(content / f"{verb}.npz", **end_of(workdir))
            (workdir / "metrics.jsonl").unlink()
            for folder in ("tensorboard", "best", f"checkpoints/{LAST}"):
                shutil.rmtree(workdir / folder)
        pack(content, target)
    return 0


def end_of(workdir: Path) -> dict[str, np.ndarray]:
    """ "params/..." of the last step, and "metrics/..." f64[steps] of every step after `STOPPED`;
    without those of time and memory."""
    step, variables = load_variables(workdir, "last")
    assert step == LAST
    found = {
        f"params/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row and row["step"] > STOPPED]
    assert [row["step"] for row in rows] == list(range(STOPPED + 1, LAST + 1))
    names = [name for name in rows[0] if name.startswith("train/") and name in rows[-1]]
    for name in names:
        if name not in ("train/img/s/device", "train/data_wait_share"):
            found[f"metrics/{name.removeprefix('train/')}"] = np.array([row[name] for row in rows])
    return found


if __name__ == "__main__":
    sys.exit(main())
