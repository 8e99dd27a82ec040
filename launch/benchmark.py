"""Measure a part on this machine: median, spread, environment and peers in one run.

Example:
  osteojax benchmark texture --json texture.json
"""

from __future__ import annotations

import argparse
import importlib

BENCHMARKS = {
    "texture": "texture maps: voxels/s against PyRadiomics",
    "conv3d": "3D convolution and ResNet34-3D: this build's lowering against XLA's and PyTorch",
    "storage": "texture pools on disk: bytes, errors, and vertebrae/s that training reads",
    "online": "textures made in the training step: seconds a step, bytes saved, against offline",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME")
    for name, head in BENCHMARKS.items():
        sub = names.add_parser(name, help=head, description=head)
        importlib.import_module(f"launch.benchmarks.{name}").add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    return importlib.import_module(f"launch.benchmarks.{args.benchmark}").run(args)
