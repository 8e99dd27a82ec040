"""Converts weights.safetensors to ONNX through PyTorch, and checks it at two batch sizes.

    python examples/export_onnx.py MODEL OUT.onnx

MODEL: exported folder (model.json, weights.safetensors). Inputs of the ONNX model: `hu` float32
[batch, D, H, W]; for a whole model `device` int64[batch], an index into `devices` of model.json;
and where model.json lists it `body` bool[batch, D, H, W]. Outputs by the names of model.json. Needs
torch, onnx, onnxscript, onnxruntime, numpy and safetensors.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from resnet3d_pytorch import load

TOLERANCE = 1e-4


def example(model, batch: int) -> dict:
    """Inputs by name: noise, and an ellipsoid as the body."""
    shape = model.card["inputs"]["hu"]["shape"][1:]
    inputs = {"hu": torch.empty(batch, *shape).uniform_(-200, 1000)}
    if model.experts is not None:
        inputs["device"] = torch.arange(batch) % len(model.card["devices"])
    if "body" in model.card["inputs"]:
        axes = torch.meshgrid(*(torch.linspace(-1, 1, edge) for edge in shape), indexing="ij")
        body = sum(axis**2 for axis in axes) < 0.6
        inputs["body"] = body.expand(batch, *shape).clone()
    return inputs


def convert(model, out: Path) -> list[str]:
    """Writes the ONNX file; returns the names of its outputs."""
    inputs = example(model, 2)
    with torch.no_grad():
        names = list(model(**inputs))
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model,
        (),
        str(out),
        kwargs=inputs,
        input_names=list(inputs),
        output_names=names,
        dynamic_shapes={name: {0: batch} for name in inputs},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return names


def check(model, out: Path, names: list[str], batch: int) -> float:
    """Largest difference between onnxruntime and PyTorch over all outputs, relative to the largest
    value of an output where that is above 1."""
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    inputs = example(model, batch)
    feed = {name: x.numpy() for name, x in inputs.items()}
    found = dict(zip(names, session.run(names, feed), strict=True))
    with torch.no_grad():
        expected = model(**inputs)
    wanted = {name: expected[name].numpy() for name in names}
    scales = {name: max(1.0, float(np.abs(wanted[name]).max())) for name in names}
    return max(float(np.abs(found[n] - wanted[n]).max()) / scales[n] for n in names)


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
