"""Predicts with an exported model: needs jax, safetensors and numpy, and nothing of OsteoJAX.

    python examples/evaluate_exported.py MODEL ROIS.npy DEVICE

ROIS.npy: float32[N, D, H, W] HU, one vertebra each, in the frame that MODEL/model.json describes.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file


def main(model: Path, rois: Path, device: str) -> None:
    card = json.loads((model / "model.json").read_text())
    weights = load_file(model / "weights.safetensors")
    program = jax.export.deserialize(bytearray((model / "program.jaxexport").read_bytes()))
    hu = np.load(rois, allow_pickle=False).astype(np.float32)
    devices = np.full(len(hu), card["devices"].index(device), np.int32)
    outputs = jax.jit(program.call)(weights, hu, devices)
    print(json.dumps({name: np.asarray(value).tolist() for name, value in outputs.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
