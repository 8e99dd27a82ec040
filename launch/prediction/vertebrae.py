"""`osteojax predict` for a model of vertebrae: CTs and masks in, tables, pictures and DICOM out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.vertebrae.mask_options import add_mask_options
from osteojax.errors import UserError
from osteojax.evaluation.report.scans_page import ANSWERS

SHOWN_PATIENTS, SHOWN_FAILURES = 40, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ct",
        required=True,
        type=Path,
        help="NIfTI, NRRD, MHA, a folder with a DICOM series, or a table of CTs (.csv)",
    )
    mask = parser.add_mutually_exclusive_group()
    mask.add_argument("--mask", type=Path, help="vertebra mask: one file, or a folder of masks")
    mask.add_argument(
        "--segment", action="store_true", help="make missing masks with TotalSegmentator"
    )
    add_mask_options(parser)
    parser.add_argument(
        "--device", default="unknown", help="DXA device to predict for (default: %(default)s)"
    )
    parser.add_argument(
        "--dicom-out",
        action="store_true",
        help="also a DICOM structured report and the page as secondary capture, in the CT's study",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="also show where the model looked (Grad-CAM), for up to three times the time",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that read CTs; default: one per core; for a single CT 0 (this process)",
    )


def run(args: argparse.Namespace) -> int:
    """Predicts and prints the answers. Exit status 1 if a CT failed."""
    from launch.prediction import cases, result_tables, segment
    from launch.prediction.many import predict_many
    from osteojax.export.load import ExportedModel

    if args.segment:
        segment.check_installed()
    start = time.perf_counter()
    model = ExportedModel(args.model)
    if args.attention and not model.has_attention:
        raise UserError(f"--attention: {args.model} has no attention program. Export it again.")
    request = cases.Request(
        devices=model.devices,
        mask=args.mask,
        label_scheme=args.label_scheme,
        device=model.devices[model.device_index(args.device)],
        segment=args.segment,
        dicom=args.dicom_out,
        attention=args.attention,
        out=args.out,
        ignore_labels=args.ignore_labels,
    )
    many = cases.is_table(args.ct)
    found, failures = (
        cases.table_cases(args.ct, request) if many else ([cases.one_case(args.ct, request)], [])
    )
    loaded = time.perf_counter()
    workers = args.workers
    if workers is None:
        workers = min(os.cpu_count() or 1, len(found)) if many else 0
    answers, failures = predict_many(model, found, request, failures, workers)
    seconds = time.perf_counter() - loaded
    if not many:
        if failures:
            raise failures[0]
        _print_vertebrae(answers[0])
        print(f"model loaded in {loaded - start:.1f} s, answer after {seconds:.1f} s more")
    else:
        _print_patients(answers)
        for error in failures[:SHOWN_FAILURES]:
            print(f"failed: {error}", file=sys.stderr)
        if failures:
            listed = args.out / result_tables.FAILURES
            print(f"osteojax predict: {len(failures)} failures, all in {listed}", file=sys.stderr)
    for path in result_tables.written(args.out, many, args.dicom_out):
        print(path)
    return 1 if failures else 0


def _print_vertebrae(content: dict[str, Any]) -> None:
    """Prints the answer for one CT."""
    shown = Table(title=content["case"])
    names = ["level", "probability", "BMD g/cm^2", "interval", "expert weights"]
    calibrated = content["vertebrae"][0]["probability_calibrated"] is not None
    if calibrated:
        names.insert(2, "calibrated")
    for name in names:
        shown.add_column(name, justify="left" if name == "level" else "right")
    for row in content["vertebrae"]:
        interval = (
            f"{row['bmd_low']:.3f} to {row['bmd_high']:.3f}" if row["bmd_low"] is not None else ""
        )
        cells = [
            row["level"] if row["decides"] else f"({row['level']})",
            f"{row['probability']:.3f}",
            *([f"{row['probability_calibrated']:.3f}"] if calibrated else []),
            f"{row['bmd_pred_g_cm2']:.3f}",
            interval,
            " ".join(f"{row[name]:.2f}" for name in row if name.startswith("expert_")),
        ]
        shown.add_row(*cells)
    console = Console()
    console.print(shown)
    patient = content["patient"]
    console.print(f"[bold]{patient['verdict']}[/bold]", highlight=False)
    if patient["caution"]:
        console.print(f"[bold red]Caution: {patient['caution']}[/bold red]", highlight=False)
    for row in content["vertebrae"]:
        if row["flags"]:
            console.print(f"{row['level']}: {row['flags']}", highlight=False)
    for note in patient["notes"]:
        console.print(note, highlight=False)


def _print_patients(answers: list[dict[str, Any]]) -> None:
    """Prints a table with a row per CT."""
    shown = Table("scan", "device", "probability", "osteoporosis", "caution")
    for content in answers[:SHOWN_PATIENTS]:
        patient = content["patient"]
        probability = patient["probability"]
        shown.add_row(
            content["case"],
            content["device"],
            "" if probability is None else f"{probability:.3f}",
            ANSWERS[patient["osteoporosis_pred"]],
            patient["caution"],
        )
    console = Console()
    console.print(shown)
    if len(answers) > SHOWN_PATIENTS:
        console.print(f"... and {len(answers) - SHOWN_PATIENTS} more", highlight=False)
    counts = {
        word: sum(a["patient"]["osteoporosis_pred"] is value for a in answers)
        for value, word in ANSWERS.items()
    }
    console.print(
        f"{len(answers)} CTs: " + ", ".join(f"{n} {word}" for word, n in counts.items()),
        highlight=False,
    )
