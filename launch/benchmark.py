"""Measure a part on this machine: median, spread, environment and peers in one run.

Example:
  osteojax benchmark texture --json texture.json
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

BENCHMARKS = {
    "train": "a training step: images/s/device, utilisation, its floor, hours for the paper's run",
    "scaling": "1 to N devices, weak and strong: images/s/device, work, bytes in collectives",
    "input": "the training stream: samples/s cold from disk, from page cache, from device memory",
    "texture": "texture maps: voxels/s against PyRadiomics",
    "conv3d": "3D convolution and ResNet34-3D: our lowering against XLA's and PyTorch",
    "storage": "texture pools on disk: bytes, errors, and vertebrae/s that training reads",
    "online": "textures made in the training step: seconds a step, bytes saved, against offline",
    "gpu": "all that is claimed about a GPU, in nine minutes, beside PyTorch and the compiler",
    "boxes": "prepared folders: bytes a vertebra, and places for crops in bodies by level",
    "texture_survival": "simulated trabecular texture: how much is left at each slice thickness",
}


class _Parser(argparse.ArgumentParser):
    """The parser of one benchmark, which is imported only if it is chosen, because each needs other
    libraries."""

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        name = self.prog.split()[-1]
        importlib.import_module(f"launch.benchmarks.{name}").add_arguments(self)
        return super().parse_known_args(*args, **options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(
        dest="benchmark", required=True, metavar="NAME", parser_class=_Parser
    )
    for name, head in BENCHMARKS.items():
        names.add_parser(name, help=head, description=head)


def run(args: argparse.Namespace) -> int:
    return importlib.import_module(f"launch.benchmarks.{args.benchmark}").run(args)
