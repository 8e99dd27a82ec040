"""Predict on one CT or a table of them: tables, JSON, a one-page picture each, DICOM results.

examples:
  osteojax predict --model model --ct ct.nii.gz --mask mask.nii.gz --device hologic --out result
  osteojax predict --model model --ct dicom_folder --segment --dicom-out --out result
  osteojax predict --model model --ct scans.csv --out results

scans.csv  scan_id, ct, mask; optionally label_scheme, device, and contrast, fracture, implant,
           poor_quality, which are repeated as flags. Paths are relative to the table's folder.

Rerunning the same command goes on where it stopped and tries failed scans again. Exit status 1
where failures.csv has a row.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data_prep.vertebrae.label_schemes import SCHEMES
from osteojax.errors import CaseError, UserError

if TYPE_CHECKING:
    import pandas as pd

    from data_prep.workers import Task
    from launch.prediction.cases import Case, Request
    from launch.prediction.loading import LoadedCase
    from launch.prediction.results import Answer
    from osteojax.evaluation.report.patient_page import Attention
    from osteojax.export.load import ExportedModel

SHOWN_PATIENTS, SHOWN_FAILURES = 40, 10
ATTENTION_ROWS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder that `osteojax export` wrote")
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
    parser.add_argument(
        "--label-scheme", choices=list(SCHEMES), default="verse", help="of masks whose row has none"
    )
    parser.add_argument(
        "--device", default="unknown", help="DXA device to predict for (default: %(default)s)"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the results")
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
        help="processes that read CTs; default: one a core, for one CT 0 (this process)",
    )


def run(args: argparse.Namespace) -> int:
    from launch.prediction import cases, results, segment
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
    )
    many = cases.is_table(args.ct)
    found, failures = (
        cases.table_cases(args.ct, request) if many else ([cases.one_case(args.ct, request)], [])
    )
    loaded = time.perf_counter()
    workers = args.workers
    if workers is None:
        workers = min(os.cpu_count() or 1, len(found)) if many else 0
    try:
        _Run(model, request, failures).predict(found, workers)
    finally:  # also of an interrupted run
        answers = results.write_tables(args.out, found, failures)
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
            listed = args.out / results.FAILURES
            print(f"osteojax predict: {len(failures)} failures, all in {listed}", file=sys.stderr)
    _print_paths(args.out, many, args.dicom_out)
    return 1 if failures else 0


class _Run:
    """One model over many cases: reads and writes in workers, predicts here."""

    def __init__(self, model: ExportedModel, request: Request, failures: list[CaseError]) -> None:
        self.model, self.request, self.failures = model, request, failures
        self.facts = {
            "fingerprint": model.fingerprint,
            **{key: model.card[key] for key in ("code_version", "checkpoint", "intended_use")},
        }
        self.hashes: dict[str, str] = {}

    def predict(self, found: list[Case], workers: int) -> None:
        """Answers every case that is not answered yet; what is wrong goes to `failures`."""
        from data_prep.workers import Crew, Task, run_tasks
        from launch.prediction import results, worker_pool
        from launch.prediction.batches import predict_cases
        from launch.prediction.loading import Frame, load

        background = self.model.card["inputs"]["hu"]["outside_vertebra"]
        frame = Frame(self.model.size, self.model.spacing_mm, background)
        self.hashes = {
            case.name: results.request_of(case, self.model.fingerprint, self.request)
            for case in found
        }
        remaining = [c for c in found if not results.is_finished(c, self.hashes[c.name])]
        tasks = deque(Task(case.name, load, (case, frame)) for case in remaining)
        bar = tqdm(
            total=len(found), initial=len(found) - len(remaining), unit="CT", smoothing=0.05,
            disable=True if len(found) == 1 else None,
        )  # fmt: skip
        with bar, worker_pool.start(min(workers, len(remaining))) as place:
            crew = Crew(place)

            def loaded() -> Iterator[LoadedCase]:
                for task, result in run_tasks(tasks, crew):
                    if (case := self._received(task, result, bar)) is not None:
                        yield case

            for case, outputs in predict_cases(self.model, loaded()):
                # Written before more is read, so that few cases wait in memory.
                tasks.appendleft(
                    Task(case.case.name, results.finish, (self._answer(case, outputs),))
                )
            for task, result in run_tasks(tasks, crew):
                self._received(task, result, bar)

    def _received(self, task: Task, result: Any, bar: tqdm) -> LoadedCase | None:
        """A case that was read, or None where a case came to its end."""
        from data_prep.workers import WorkerDied
        from launch.prediction.loading import LoadedCase

        if isinstance(result, LoadedCase):
            return result
        if isinstance(result, WorkerDied):
            result = CaseError(
                task.name,
                "the process that read it died, of a damaged file or of too little memory.",
                "Replace or crop the CT, or predict on it alone.",
            )
        if isinstance(result, CaseError):
            self.failures.append(result)
        bar.update()
        return None

    def _answer(self, loaded: LoadedCase, outputs: dict[str, Any]) -> Answer:
        from launch.prediction.decision import decide, vertebra_table
        from launch.prediction.results import Answer

        table, flags = vertebra_table(self.model, loaded, outputs)
        case_flags = [*loaded.contrast.flags(), *loaded.case.stated]
        patient = decide(self.model, table, loaded.case.device, flags, case_flags)
        return Answer(
            case=loaded.case,
            table=table,
            flags=flags,
            case_flags=case_flags,
            contrast=loaded.contrast,
            patient=patient,
            planes=loaded.planes,
            attention=self._attention(loaded, table) if self.request.attention else [],
            model=self.facts,
            request=self.hashes[loaded.case.name],
            dicom=self.request.dicom,
        )

    def _attention(self, loaded: LoadedCase, table: pd.DataFrame) -> list[Attention]:
        """Mid-sagittal Grad-CAM of the vertebrae that decide, or else of the highest ones."""
        from osteojax.evaluation.report.patient_page import Attention

        order = table.sort_values(["decides", "probability"], ascending=False).index
        rows = sorted(order[:ATTENTION_ROWS])
        device = self.model.devices.index(loaded.case.device)
        shares = self.model.attention(loaded.hu[rows], device)
        shown = []
        for row, share in zip(rows, shares, strict=True):
            plane = share[:, :, share.shape[2] // 2] if share.ndim == 3 else share
            highest = float(share.max())
            hu = loaded.hu[row][:, :, loaded.hu.shape[3] // 2]
            shown.append(Attention(table["level"][row], hu, plane / highest if highest else plane))
        return shown


def _print_vertebrae(content: dict[str, Any]) -> None:
    """The answer of one CT."""
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
    """A row per CT."""
    shown = Table("scan", "device", "probability", "osteoporosis", "caution")
    words = {None: "undecided", True: "suspected", False: "not suspected"}
    for content in answers[:SHOWN_PATIENTS]:
        patient = content["patient"]
        probability = patient["probability"]
        shown.add_row(
            content["case"],
            content["device"],
            "" if probability is None else f"{probability:.3f}",
            words[patient["osteoporosis_pred"]],
            patient["caution"],
        )
    console = Console()
    console.print(shown)
    if len(answers) > SHOWN_PATIENTS:
        console.print(f"... and {len(answers) - SHOWN_PATIENTS} more", highlight=False)
    counts = {
        word: sum(a["patient"]["osteoporosis_pred"] is value for a in answers)
        for value, word in words.items()
    }
    console.print(
        f"{len(answers)} CTs: " + ", ".join(f"{n} {word}" for word, n in counts.items()),
        highlight=False,
    )


def _print_paths(out: Path, many: bool, dicom: bool) -> None:
    from launch.prediction import results

    paths = [out / results.PREDICTIONS, out / results.PATIENTS]
    folder = out / "SCAN_ID" if many else out
    paths += [folder / results.ANSWER, folder / results.PICTURE]
    if dicom:
        from launch.prediction import dicom_objects

        paths += [folder / dicom_objects.REPORT, folder / dicom_objects.PAGE]
    for path in paths:
        print(path)
