"""Run all verbs on a small simulated cohort, in minutes on two CPU cores.

simulate -> prepare -> pre-train -> fine-tune -> evaluate -> export -> predict on an unseen CT, each
with the same `osteojax` commands that a user's own cohort needs. Rerunning resumes.

Example:
  osteojax demo --out demo
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from pathlib import Path

from rich.console import Console

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXTERNAL_SITE = "D"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", help="folder of everything (default: %(default)s)")
    parser.add_argument("--patients", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the cohort (default: %(default)s)")


def commands(out: Path, patients: int, seed: int) -> list[list[str]]:
    """The verbs of the main job, with their arguments."""
    cohort, pool, model = out / "cohort", out / "pool", out / "model"
    pretrain, finetune, unseen = out / "pretrain", out / "finetune", out / "unseen"
    ct = unseen / "ct"
    return [
        ["simulate", "--out", str(cohort), "--patients", str(patients), "--seed", str(seed),
         "--workers", str(os.cpu_count() or 1)],
        [
            "prepare", "--cohort", str(cohort / "cohort.csv"), "--dxa", str(cohort / "dxa.csv"),
            "--out", str(pool), "--size", "64", "--box", "vertebra",  # voxels of 1.5 mm
            "--external-sites", EXTERNAL_SITE,
            "--split-fractions", "0.5,0.2,0.3",  # few patients: a larger share for validation
        ],
        ["inspect", str(pool), "--out", str(out / "contact_sheet.png")],
        [
            "train", "--config", f"{CONFIGS / 'tp_swav_resnet34.py'}:smoke",
            "--workdir", str(pretrain), "--data", str(pool),
        ],
        [
            "train", "--config", f"{CONFIGS / 'moe_multitask_resnet34.py'}:smoke",
            "--workdir", str(finetune), "--data", str(pool), f"--config.init_from={pretrain}",
        ],
        ["evaluate", "--workdir", str(finetune), "--data", str(pool), "--split", "test"],
        ["export", "--workdir", str(finetune), "--out", str(model)],
        ["simulate", "--out", str(unseen), "--patients", "1", "--sites", "A",
         "--seed", str(seed + 1000)],
        [
            "predict", "--model", str(model), "--ct", str(ct), "--mask", str(unseen / "mask"),
            "--device", "hologic", "--out", str(out / "prediction"),
        ],
    ]  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from launch.cli import main

    console, out = Console(), Path(args.out)
    start = time.perf_counter()
    for command in commands(out, args.patients, args.seed):
        if command[0] == "predict":
            command = with_files(command)
        console.rule(f"osteojax {shlex.join(command)}", align="left")
        if status := main(command):
            return status
    minutes = (time.perf_counter() - start) / 60
    console.rule(f"done in {minutes:.1f} minutes")
    _summary(console, out)
    return 0


def with_files(command: list[str]) -> list[str]:
    """Replaces the folders of the unseen patient by the paths of its CT and mask."""
    return [
        str(next(Path(word).glob("*.nii.gz"))) if Path(word).name in ("ct", "mask") else word
        for word in command
    ]


def _summary(console: Console, out: Path) -> None:
    """Prints the metrics and the paths of all results."""
    from launch.readouts import rise
    from osteojax.evaluation.report import terminal

    evaluation = out / "finetune" / "evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    for shown in terminal.main_tables(metrics):
        console.print(terminal.rendered(shown))
    found = rise.rises(out / "pretrain", out / "pool", out / "cohort")
    console.print(terminal.rendered(rise.table(found)))
    places = {
        "report": evaluation / "report.html",
        "figures": evaluation / "*.png",
        "metrics": evaluation / "metrics.json",
        "texture pool": out / "contact_sheet.png",
        "exported model": out / "model",
        "prediction": out / "prediction" / "prediction.png",
    }
    for name, path in places.items():
        print(f"{name:<15} {path}")
    print("The cohort is simulated: the numbers say that the pipeline works, nothing of patients.")
