"""From the boxes of vertebrae to the model's outputs, in batches filled across patients."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from launch.prediction.loading import Frame, LoadedCase
from osteojax.data.boxes import BoxGrid
from osteojax.export.load import BATCH, ExportedModel

Outputs = dict[str, np.ndarray]


def frame_of(model: ExportedModel) -> Frame:
    """The box that a vertebra is cut out as for this model."""
    hu = model.card["inputs"]["hu"]
    grid = BoxGrid(model.shape, model.spacing_mm, float(hu.get("back_mm", 0.0)))
    return Frame(grid, hu["outside_vertebra"])


def predict_cases(
    model: ExportedModel, cases: Iterable[LoadedCase]
) -> Iterator[tuple[LoadedCase, Outputs]]:
    """Yields every case with the model's outputs for its vertebrae, in order.

    A batch is filled with vertebrae of several cases; only the last batch is padded. At most a
    batch and a case are in memory.
    """
    waiting: deque[LoadedCase] = deque()
    inputs: deque[tuple[np.ndarray, np.ndarray, int]] = deque()
    ready: deque[Outputs] = deque()

    def run(count: int) -> None:
        taken = [inputs.popleft() for _ in range(count)]
        hu, body = (np.stack([own[i] for own in taken]) for i in range(2))
        device = np.array([own[2] for own in taken], np.int32)
        outputs = model.predict(hu, device, body=body)
        ready.extend({name: value[i] for name, value in outputs.items()} for i in range(count))

    def finished() -> Iterator[tuple[LoadedCase, Outputs]]:
        while waiting and len(waiting[0].hu) <= len(ready):
            case = waiting.popleft()
            own = [ready.popleft() for _ in case.hu]
            yield case, {name: np.stack([row[name] for row in own]) for name in own[0]}

    for case in cases:
        device = model.devices.index(case.case.device)
        waiting.append(case)
        inputs.extend((*images, device) for images in zip(case.hu, case.body, strict=True))
        while len(inputs) >= BATCH:
            run(BATCH)
        yield from finished()
    if inputs:
        run(len(inputs))
    yield from finished()
