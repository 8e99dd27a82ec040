"""Converts weights.safetensors to ONNX through PyTorch, and checks it at two batch sizes.

    python examples/export_onnx.py MODEL OUT.onnx

MODEL: exported folder (model.json, weights.safetensors). Inputs of the ONNX model: `hu` float32
[batch, D, H, W] and, for a whole model, `device` int64[batch], an index into `devices` of
model.json; outputs by the names of model.json. Needs torch, onnx, onnxscript, onnxruntime, numpy
and safetensors.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from resnet3d_pytorch import load

TOLERANCE = 1e-4


def example(model, batch: int) -> tuple:
    space = model.card["inputs"]["hu"]["shape"][1:]
    hu = torch.empty(batch, *space).uniform_(-200, 1000)
    device = torch.arange(batch) % len(model.card["devices"])
    return (hu, device) if model.experts is not None else (hu,)


def convert(model, out: Path) -> list[str]:
    """Writes the ONNX file; returns the names of its outputs."""
    inputs = example(model, 2)
    with torch.no_grad():
        names = list(model(*inputs))
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model,
        inputs,
        str(out),
        input_names=["hu", "device"][: len(inputs)],
        output_names=names,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return names


def check(model, out: Path, names: list[str], batch: int) -> float:
    """Largest difference between onnxruntime and PyTorch over all outputs."""
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    inputs = example(model, batch)
    feed = {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
    found = dict(zip(names, session.run(names, feed), strict=True))
    with torch.no_grad():
        expected = model(*inputs)
    return max(float(np.abs(found[n] - expected[n].numpy()).max()) for n in names)


def main(folder: Path, out: Path) -> None:
    model = load(folder)
    torch.manual_seed(0)
    names = convert(model, out)
    for batch in (1, 5):
        difference = check(model, out, names, batch)
        print(f"batch {batch}: largest difference from PyTorch {difference:.1e}")
        if not difference <= TOLERANCE:
            out.unlink()
            raise SystemExit(f"{out} differs by more than {TOLERANCE}: removed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
