"""Predict on one CT or a table of them: tables, JSON, a one-page picture each, DICOM results.

examples:
  osteojax predict --model model --ct ct.nii.gz --mask mask.nii.gz --device hologic --out result
  osteojax predict --model model --ct dicom_folder --segment --dicom-out --out result
  osteojax predict --model model --ct scans.csv --out results

scans.csv  scan_id, ct, mask; optionally label_scheme, device, and contrast, fracture, implant,
           poor_quality, which are repeated as flags. Paths are relative to the table's folder.

Rerunning the same command resumes and tries failed scans again. Exit status 1 if failures.csv has a
row.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

from osteojax.choices import chosen_module
from osteojax.export.card import CARD, VERTEBRAE, read_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder that `osteojax export` wrote")
    parser.add_argument("--out", required=True, type=Path, help="folder of the results")


def add_kind_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """The options of the kind of data that `--model` takes; without a model those of vertebrae."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--model", default="")
    model = Path(peek.parse_known_args(argv)[0].model)
    module = _module_of(model) if (model / CARD).is_file() else _module(VERTEBRAE)
    module.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return _module_of(args.model).run(args)


def _module_of(model: str | Path) -> ModuleType:
    """The module that predicts with a model; it has `add_arguments(parser)` and `run(args) -> exit
    status`."""
    card, _ = read_card(model)
    return _module(card.get("kind", VERTEBRAE))


def _module(kind: str) -> ModuleType:
    """launch/prediction/<kind>.py; of a kind outside this repository, <kind>.prediction."""
    name = f"{kind}.prediction" if "." in kind else kind
    return chosen_module("kind", name, "launch.prediction", "run")
