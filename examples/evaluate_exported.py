"""Predicts with an exported model; needs jax, but not OsteoJAX.

    python examples/evaluate_exported.py MODEL ROIS.npz

ROIS.npz: `hu` float32[N, D, H, W], one vertebra each, in the frame that MODEL/model.json describes;
`body` bool[N, D, H, W], the vertebral bodies, where model.json lists it among the inputs; and
`device`, N names of DXA scanners.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np


def read_safetensors(path: Path) -> dict:
    data = memoryview(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(bytes(data[8:start])).items():
        if name != "__metadata__":
            part = data[start:][slice(*entry["data_offsets"])]
            tensors[name] = np.frombuffer(part, np.float32).reshape(entry["shape"])
    return tensors


def main(model: Path, rois: Path) -> None:
    card = json.loads((model / "model.json").read_text())
    program = jax.export.deserialize(bytearray((model / "program.jaxexport").read_bytes()))
    data = np.load(rois, allow_pickle=False)
    device = np.array([card["devices"].index(name) for name in data["device"]], np.int32)
    weights = read_safetensors(model / "weights.safetensors")
    images = [data[name] for name in ("hu", "body") if name in card["inputs"]]
    outputs = jax.jit(program.call)(weights, *images, device)
    print(json.dumps({name: np.asarray(value).tolist() for name, value in outputs.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
