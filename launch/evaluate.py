"""Evaluate a fine-tuned run: metrics by site and device, figures, one report.

Thresholds and calibration are fitted on the validation split; the test split and the external
sites are reported, beside baselines on HU and with the most confident errors pictured.

Example:
  osteojax evaluate --workdir finetune --data pool --split test
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="of a fine-tuning run")
    parser.add_argument("--data", required=True, help="the prepared folder it was trained on")
    parser.add_argument(
        "--split", choices=("test", "external"), default="test",
        help="test also reports the external sites",
    )  # fmt: skip
    parser.add_argument("--out", help="folder of the results (default: WORKDIR/evaluation)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--all-levels", action="store_true", help="unlabelled vertebrae as well")


def run(args: argparse.Namespace) -> int:
    from launch.evaluation.run import evaluate
    from osteojax.evaluation.report.terminal import rendered

    report = evaluate(
        args.workdir,
        args.data,
        split=args.split,
        out=args.out,
        checkpoint=args.checkpoint,
        all_items=args.all_levels,
    )
    console = Console()
    for shown in report.tables:
        console.print(rendered(shown))
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    for name in ("report", "metrics", "predictions", "roc"):
        if name in report.paths:
            print(f"{name}: {report.paths[name]}")
    return 0
