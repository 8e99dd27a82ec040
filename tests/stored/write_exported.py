"""Writes tests/stored/exported/<version>.tar.xz: exported folders that later versions must read.

    python -m tests.stored.write_exported

Run it once for a version whose exported folders differ from those stored already. Never rewrite or
remove an older one: it stands for a user's model.

It holds `model` (with what `evaluate` fits, made up here) and `features`, both exported from the
newest stored workdirs, and `expected.npz`: HU of three vertebrae, and the models' outputs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from osteojax import __version__
from osteojax.checkpoints import load_variables
from osteojax.evaluation.statistics import ood
from osteojax.export.load import ExportedModel
from osteojax.export.write import export_model
from osteojax.files import write_json
from tests.stored import EXPORTED, VERSIONS, pack, unpack


def main() -> int:
    target = EXPORTED / f"{__version__}.tar.xz"
    if target.exists():
        print(f"{target} is there already: raise the version, or leave it.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        stored, content = unpack(VERSIONS[-1], Path(name)), Path(name) / "content"
        _pretend_evaluated(stored / "finetune")
        export_model(stored / "finetune", content / "model")
        export_model(stored / "pretrain", content / "features", what="features")
        np.savez_compressed(content / "expected.npz", **_expected(stored, content))
        pack(content, target)
    return 0


def _pretend_evaluated(workdir: Path) -> None:
    """Writes thresholds and embedding statistics in the form of `osteojax evaluate`."""
    step, _ = load_variables(workdir)
    unit = {"n": 9, "patients": 5, "positives": 4, "threshold": 0.25, "temperature": 1.5}
    vertebra, patient = {**unit, "notes": {}}, {**unit, "threshold": 0.375, "notes": {}}
    residual = {"n": 9, "quantiles": {"0.05": -0.1, "0.95": 0.1}, "notes": {}}
    fitted = {
        "vertebra": vertebra, "patient": patient, "patient_mean": vertebra,
        "bmd_residual_g_cm2": residual,
    }  # fmt: skip
    folder = workdir / "evaluation"
    write_json(folder / "metrics.json", {"context": {"checkpoint_step": step}, "fitted": fitted})
    rng = np.random.default_rng(0)
    statistics = ood.fit(rng.normal(size=(40, 8)), rng.normal(size=(30, 8)))
    ood.save(folder / ood.FILE, statistics, {"checkpoint_step": step})


def _expected(stored: Path, content: Path) -> dict[str, np.ndarray]:
    """Outputs of the programs for the vertebrae of the stored workdirs."""
    with np.load(stored / "expected.npz", allow_pickle=False) as arrays:
        hu, device = arrays["hu"], arrays["device"]
    model = ExportedModel(content / "model")
    found = {f"model_{name}": value for name, value in model.predict(hu, device).items()}
    found["model_attention"] = model.attention(hu, device)
    encoder = ExportedModel(content / "features", "features")
    found |= {f"features_{name}": value for name, value in encoder.embed(hu).items()}
    return {"hu": hu, "device": device, **found}


if __name__ == "__main__":
    sys.exit(main())
