"""Writes tests/stored/<version>.tar.xz: small workdirs that every later version must open.

    python -m tests.stored.write_workdirs

Run it once for a version whose checkpoints or configs differ from those stored already, and commit
the new file. Never rewrite or remove an older one: it stands for a user's workdir.

It holds `finetune` (with averaged weights) and `pretrain`, without their logs, and `expected.npz`:
HU of three vertebrae, and the outputs of that version's models for them. 0.1.0 has batch
normalisation and volumes of 8^3. 0.2.0 has group normalisation: with 3 and 6 channels the groups
hold three channels each, and 16^3 leaves 2^3 voxels at the last stage, of which the mean is not
zero.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from osteojax.data.manifest import load_manifest
from osteojax.data.vertebrae import about

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from osteojax import __version__
from osteojax.checkpoints import load_variables
from osteojax.objectives.multitask import build_model
from osteojax.train import loop
from tests.small_runs import fine_tuning, pretraining
from tests.stored import STORED, pack
from tests.tiny_cohort import write_tiny_cohort

SIZE = 16
TINY = (
    "--config.model.width=3",
    "--config.model.norm=group",
    "--config.optim.train_steps=4",
    "--config.optim.eval_steps=2",
    "--config.optim.save_steps=2",
    "--config.checkpoint.keep=1",
)
FINE_TUNING = (
    "--config.moe.expert_dim=8", "--config.moe.gate_dim=8", "--config.optim.ema_decay=0.5",
    "--config.optim.learning_rate=0.01",
)  # fmt: skip
PRE_TRAINING = (
    "--config.objective.projector_dim=8", "--config.objective.prototype_dim=4",
    "--config.optim.learning_rate=0.01",
    "--config.checkpoint.best_metric=hu_probe_r2",
)  # fmt: skip


def main() -> int:
    target = STORED / f"{__version__}.tar.xz"
    if target.exists():
        print(f"{target} is there already: raise the version, or leave it.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pool = write_tiny_cohort(scratch / "pool", patients=20, size=SIZE)
        content = scratch / "content"
        for verb, config in (
            ("pretrain", pretraining(*TINY, *PRE_TRAINING)),
            ("finetune", fine_tuning(*TINY, *FINE_TUNING)),
        ):
            loop.train(config, content / verb, pool)
            (content / verb / "metrics.jsonl").unlink()
            shutil.rmtree(content / verb / "tensorboard")
        np.savez_compressed(content / "expected.npz", **_expected(content))
        pack(content, target)
    return 0


def _expected(content: Path) -> dict[str, np.ndarray]:
    """Outputs of Flax, computed from codes: of the fine-tuned model with averaged and with raw
    weights, and of the encoder of the pre-training run with its statistics of images."""
    manifest = load_manifest(content / "finetune")
    config = fine_tuning(*TINY, *FINE_TUNING)
    image = about(manifest).maps[0]
    codes = np.random.default_rng(0).integers(0, image.codes, (3, SIZE, SIZE, SIZE))
    scale, shift = image.affine()
    x = jnp.asarray(codes * scale + shift, jnp.float32)[..., None]
    device = np.arange(3, dtype=np.int32)
    expected = {"hu": image.decode(codes.astype(np.uint8)), "device": device}
    model = build_model(config, len(about(manifest).devices), None)
    for which, kind in (("best", "ema_params"), ("last", "params")):
        _, variables = load_variables(content / "finetune", which)
        inner = {"params": variables[kind], "batch_stats": variables["model_state"]["batch_stats"]}
        outputs = model.apply(inner, x, device, train=False)
        name = f"{which}_{kind}"
        expected[f"{name}_probability"] = jax.nn.softmax(outputs["logits"])[:, 1]
        expected[f"{name}_bmd_g_cm2"] = (
            outputs["bmd"] * about(manifest).bmd_std + about(manifest).bmd_mean
        )
        expected[f"{name}_gate"] = outputs["gate"]
        expected[f"{name}_embedding"] = outputs["embedding"]
    _, variables = load_variables(content / "pretrain", "best")
    statistics = variables["model_state"]["image_batch_stats"]
    encoder = {
        "params": variables["params"]["backbone"],
        "batch_stats": statistics.get("backbone", {}),  # group normalisation has none
    }
    features = model.backbone.apply(encoder, x, train=False)
    expected["pretrain_embedding"] = features["pooled"]
    expected["pretrain_stage1"] = features["stage1"].mean((1, 2, 3))
    return {name: np.asarray(value) for name, value in expected.items()}


if __name__ == "__main__":
    sys.exit(main())
