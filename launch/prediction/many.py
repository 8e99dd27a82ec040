"""Predicts on many CTs: workers read CTs and write results, this process runs the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from data_prep.workers import Crew, Task, WorkerDied, run_tasks
from launch.prediction import case_folder, result_tables, worker_pool
from launch.prediction.answered_case import AnsweredCase
from launch.prediction.batches import Outputs, frame_of, predict_cases
from launch.prediction.cases import Case, Request
from launch.prediction.decision import decide, vertebra_table
from launch.prediction.flags import contrast_flags
from launch.prediction.loading import LoadedCase, load
from osteojax.errors import CaseError
from osteojax.evaluation.report.patient_page import Attention
from osteojax.export.load import ExportedModel

ATTENTION_ROWS = 4


def predict_many(
    model: ExportedModel,
    cases: Sequence[Case],
    request: Request,
    failures: Sequence[CaseError] = (),
    workers: int = 0,
) -> tuple[list[dict[str, Any]], list[CaseError]]:
    """Predicts on CTs and writes their results; cases that an earlier call finished are kept.

    Each case's folder gets its prediction.json and page; `request.out` gets the tables over all
    cases, also if the call is interrupted.

    Args:
      cases: of `launch.prediction.cases.one_case` or `table_cases`.
      failures: of bad rows of the table; they are listed in failures.csv too.
      workers: processes that read CTs; 0 is this process.

    Returns:
      (contents of the cases' prediction.json in their order, all failures).
    """
    run = _Run(model, request, list(failures))
    try:
        run.predict(cases, workers)
    finally:
        answers = result_tables.write_tables(request.out, cases, run.failures, run.hashes)
    return answers, run.failures


class _Run:
    """Runs one model over many cases; workers read and write."""

    def __init__(self, model: ExportedModel, request: Request, failures: list[CaseError]) -> None:
        self.model, self.request, self.failures = model, request, failures
        self.facts = {
            "fingerprint": model.fingerprint,
            **{key: model.card[key] for key in ("code_version", "checkpoint", "intended_use")},
        }
        self.hashes: dict[str, str] = {}

    def predict(self, cases: Sequence[Case], workers: int) -> None:
        """Predicts on every case without an answer; errors are added to `failures`."""
        fingerprint, frame = self.model.fingerprint, frame_of(self.model)
        self.hashes = {
            case.name: case_folder.request_of(case, fingerprint, self.request) for case in cases
        }
        left = [c for c in cases if not case_folder.read_answer(c, self.hashes[c.name])]
        tasks = deque(Task(case.name, load, (case, frame)) for case in left)
        bar = tqdm(
            total=len(cases), initial=len(cases) - len(left), unit="CT", smoothing=0.05,
            disable=True if len(cases) == 1 else None,
        )  # fmt: skip
        with bar, worker_pool.start(min(workers, len(left))) as place:
            crew = Crew(place)

            def loaded() -> Iterator[LoadedCase]:
                for task, result in run_tasks(tasks, crew):
                    if (case := self._received(task, result, bar)) is not None:
                        yield case

            for case, outputs in predict_cases(self.model, loaded()):
                # Results are written before more cases are read, so that few are in memory.
                answered = self._answer(case, outputs)
                tasks.appendleft(Task(case.case.name, case_folder.finish, (answered,)))
            for task, result in run_tasks(tasks, crew):
                self._received(task, result, bar)

    def _received(self, task: Task, result: Any, bar: tqdm) -> LoadedCase | None:
        """A case that was read; None if a case is finished or failed."""
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

    def _answer(self, loaded: LoadedCase, outputs: Outputs) -> AnsweredCase:
        table, flags = vertebra_table(self.model, loaded, outputs)
        case_flags = [*loaded.doubts, *contrast_flags(loaded.contrast), *loaded.case.stated]
        patient = decide(self.model, table, loaded.case.device, flags, case_flags)
        return AnsweredCase(
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
        """Mid-sagittal Grad-CAM of up to `ATTENTION_ROWS` vertebrae: deciding levels first, then
        the highest probability."""
        order = table.sort_values(["decides", "probability"], ascending=False).index
        rows = sorted(order[:ATTENTION_ROWS])
        device = self.model.devices.index(loaded.case.device)
        shares = self.model.attention(loaded.hu[rows], device, body=loaded.body[rows])
        shown = []
        for row, share in zip(rows, shares, strict=True):
            plane = share[:, :, share.shape[2] // 2] if share.ndim == 3 else share
            highest = float(share.max())
            hu = loaded.hu[row][:, :, loaded.hu.shape[3] // 2]
            shown.append(Attention(table["level"][row], hu, plane / highest if highest else plane))
        return shown
