"""Export a trained model to a folder that predicts without this repository.

Example:
  osteojax export --workdir finetune --out model
  osteojax export --workdir pretrain --out encoder --what encoder
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="of a training run")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--format", default="stablehlo,safetensors",
        help="with commas (default: %(default)s); weights.safetensors is written in any case",
    )  # fmt: skip
    parser.add_argument(
        "--what", default="model",
        help="model; encoder: the embedding of a vertebra; features: that and the mean of every "
        "stage; the last two from a pre-training run too (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument(
        "--weights", choices=("auto", "averaged", "raw"), default="auto",
        help="averaged: moving average (EMA); raw: as the optimiser left them; auto: averaged "
        "where the run kept them, as evaluate does (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from osteojax.export.write import export_model

    formats = tuple(name.strip() for name in args.format.split(",") if name.strip())
    card = export_model(
        args.workdir,
        args.out,
        args.checkpoint,
        formats=formats,
        what=args.what,
        weights=args.weights,
    )
    for name in ("model.json", *card["sha256"]):
        file = Path(args.out) / name
        print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    return 0
