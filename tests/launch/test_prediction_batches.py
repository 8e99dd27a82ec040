"""Batches are filled across patients, and every patient gets its own rows back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from launch.prediction.batches import predict_cases
from launch.prediction.cases import Case
from launch.prediction.loading import LoadedCase
from osteojax.export.load import BATCH

DEVICES = ["hologic", "ge_lunar", "unknown"]


class Model:
    """Answers with what it was given, and remembers how much that was."""

    devices = DEVICES

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(
        self, hu: np.ndarray, device: np.ndarray, *, body: np.ndarray
    ) -> dict[str, np.ndarray]:
        self.sizes.append(len(hu))
        assert len(device) == len(body) == len(hu)
        volume = body.sum(axis=(1, 2, 3))
        return {"mean": hu.mean(axis=(1, 2, 3)), "device": device, "volume": volume}


def loaded(number: int, vertebrae: int) -> LoadedCase:
    case = Case(f"c{number}", Path(), None, "verse", DEVICES[number % 3], Path())
    hu = np.full((vertebrae, 2, 2, 2), 100.0 * number) + np.arange(vertebrae)[:, None, None, None]
    body = np.zeros(hu.shape, bool)
    body[:, 0, 0, 0] = number % 2
    fields: dict[str, Any] = dict.fromkeys(
        ("vertebrae", "core_hu", "slices", "flags", "doubts", "contrast", "planes")
    )
    return LoadedCase(case=case, hu=hu.astype(np.float32), body=body, **fields)


def test_every_case_gets_its_own_rows() -> None:
    counts = [3, 1, 17, 8, 2, 5]
    model = Model()
    cases = [loaded(number, count) for number, count in enumerate(counts)]
    answered = list(predict_cases(cast(Any, model), iter(cases)))
    assert [case.case.name for case, _ in answered] == [f"c{i}" for i in range(len(counts))]
    for number, (_, outputs) in enumerate(answered):
        np.testing.assert_allclose(outputs["mean"], 100.0 * number + np.arange(counts[number]))
        assert set(outputs["device"]) == {number % 3}
        assert set(outputs["volume"]) == {number % 2}
    assert sum(model.sizes) == sum(counts)
    assert set(model.sizes[:-1]) == {BATCH}  # only the last batch is not full


def test_a_case_is_answered_as_soon_as_its_batch_is_full() -> None:
    read = []

    def reading():
        for number in range(4):
            read.append(number)
            yield loaded(number, BATCH)

    stream = predict_cases(cast(Any, Model()), reading())
    next(stream)
    assert read == [0]  # the next CT is read when it is needed, not before
    assert len(list(stream)) == 3


def test_no_cases() -> None:
    assert list(predict_cases(cast(Any, Model()), iter([]))) == []
