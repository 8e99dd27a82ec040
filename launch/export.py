"""Export a fine-tuned model to a folder that predicts without this repository.

Example:
  osteojax export --workdir finetune --out model
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="of a fine-tuning run")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")


def run(args: argparse.Namespace) -> int:
    from osteojax.export import export_model

    card = export_model(args.workdir, args.out, args.checkpoint)
    out = Path(args.out)
    for file in sorted(out.iterdir()):
        if file.name == "model.json" or file.name in card["sha256"]:
            print(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    return 0
