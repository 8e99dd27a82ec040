"""Train, or resume: self-supervised pre-training or fine-tuning.

The config says which. Any of its fields can be set as --config.FIELD=VALUE. Rerunning the same
command resumes the run. Exit status: 75 after SIGTERM and 130 after Ctrl-C; both save first.

Examples:
  osteojax train --config configs/tp_swav_resnet34.py --workdir pretrain --data pool
  osteojax train --config configs/moe_multitask_resnet34.py --workdir finetune --data pool \\
      --config.init_from=pretrain --config.batch_size=64
  launch/local.sh 2 --config ... --workdir ... --data ...     # processes; launch/ has clusters too
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from launch import distributed
from launch.configs import load_config
from osteojax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, help="a file of configs/, FILE.py or FILE.py:smoke"
    )
    parser.add_argument("--workdir", required=True, help="where the run lives; rerun to resume")
    parser.add_argument("--data", required=True, help="folder that `osteojax prepare` wrote")
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of a few steps to WORKDIR/profile"
    )
    distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    try:
        config = load_config(args.config, args.overrides)
    except UserError as error:  # exit like every wrong command line
        print(f"osteojax train: error: {error}", file=sys.stderr)
        return 2
    if config.get("init_from") and not Path(config.init_from).is_dir():
        raise UserError(f"config.init_from {config.init_from}: no such workdir.")
    if not distributed.join(args):
        return _train(args, config)
    # After any failure, leave at once, so that the other processes do not wait for this one.
    try:
        status = _train(args, config)
    except UserError as error:
        print(f"osteojax train: error: {error}", file=sys.stderr)
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    if status:
        distributed.leave(status)
    return 0


def _train(args: argparse.Namespace, config: ConfigDict) -> int:
    # Imported here, so that a wrong command line does not wait for jax.
    import jax

    from osteojax.train.loop import train
    from osteojax.train.stop import Stopped

    try:
        best = train(config, args.workdir, args.data, profile=args.profile)
    except Stopped as stopped:
        print(f"osteojax train: {stopped}", file=sys.stderr)
        return stopped.status
    if best and jax.process_index() == 0:
        name = config.checkpoint.best_metric
        at = f"step {int(best['step'])}, in {args.workdir}/best"
        print(f"last validated {at}" if name == "step" else f"best {name} {best[name]:.4f} at {at}")
    return 0
