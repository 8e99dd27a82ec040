"""Any kind's targets against scikit-learn and NumPy, per item and per patient."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from osteojax.data.schema import Target
from osteojax.errors import UserError
from osteojax.evaluation import Predicted
from osteojax.evaluation.targets import TargetEvaluation

PATIENTS, ITEMS = 60, 3
TARGETS = (
    Target("broken", "class", "broken", classes=("no", "yes")),
    Target("shape", "class", "shape", classes=("round", "square", "other")),
    Target("length", "number", "length_mm", "mm"),
)
RESAMPLES = 50


@pytest.fixture
def cohort() -> SimpleNamespace:
    """Patients of three items; some targets are missing."""
    rng = np.random.default_rng(0)
    n = PATIENTS * ITEMS
    patient = np.repeat([f"p{i:02d}" for i in range(PATIENTS)], ITEMS)
    split = np.repeat(np.array(["valid", "test", "external"])[np.arange(PATIENTS) % 3], ITEMS)
    targets = {
        "broken": rng.integers(-1, 2, n).astype(np.int32),
        "shape": rng.integers(0, 3, n).astype(np.int32),
        "length": np.where(rng.random(n) < 0.2, np.nan, rng.normal(30, 5, n)).astype(np.float32),
    }
    table = pd.DataFrame({"patient_id": patient, "split": split, "shard": "s", "position": 0})
    return SimpleNamespace(
        table=table,
        targets=targets,
        manifest=SimpleNamespace(targets=TARGETS, kind="mylab.things"),
        kind=SimpleNamespace(ITEMS="things"),
    )


@pytest.fixture
def outputs(cohort) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    n = len(cohort.table)
    yes = np.clip(0.3 + 0.3 * (cohort.targets["broken"] > 0) + rng.normal(0, 0.2, n), 0.01, 0.99)
    length = np.nan_to_num(cohort.targets["length"], nan=30.0) + rng.normal(0, 2, n)
    shape = rng.dirichlet(np.ones(3), n)
    return {"broken": np.stack([1 - yes, yes], axis=1), "shape": shape, "length": length}


def cases(cohort, outputs, name: str, split: str, rule: str | None) -> pd.DataFrame:
    """Truth and prediction, written anew."""
    frame = cohort.table.assign(truth=cohort.targets[name].astype(float), found=outputs)
    frame = frame[(frame["split"] == split) & (frame["truth"] >= 0)]
    if rule is None:
        return frame
    return frame.groupby("patient_id")[["truth", "found"]].agg(rule)


def test_every_number_by_hand(cohort, outputs) -> None:
    rows = np.arange(len(cohort.table))
    summary = TargetEvaluation(cohort, dict).summarise(rows, outputs, RESAMPLES)
    assert summary["warnings"] == []
    for split in ("test", "external"):
        for unit, worst, mean in (("item", None, None), ("patient", "max", "mean")):
            found = summary["targets"]["broken"]["groups"][split][unit]
            own = cases(cohort, outputs["broken"][:, 1], "broken", split, worst)
            area = sklearn_metrics.roc_auc_score(own["truth"], own["found"])
            assert found["AUROC"] == pytest.approx(area)
            threshold = summary["targets"]["broken"]["fitted"][unit]["threshold"]
            right = (own["found"] >= threshold) == (own["truth"] == 1)
            assert found["ACC"] == pytest.approx(right.mean())
            assert found["n"] == len(own)
            if unit == "item":  # few patients have no item with the class: some draws have none
                low, high = found["intervals"]["AUROC"]
                assert low <= area <= high
            found = summary["targets"]["length"]["groups"][split][unit]
            own = cases(cohort, outputs["length"], "length", split, mean)
            error = own["found"] - own["truth"]
            assert found["MAE"] == pytest.approx(error.abs().mean())
            assert found["bias"] == pytest.approx(error.mean())
            assert found["r"] == pytest.approx(own["truth"].corr(own["found"]))
        shape = summary["targets"]["shape"]["groups"][split]
        own = cases(cohort, outputs["shape"].argmax(1), "shape", split, None)
        assert shape["item"]["ACC"] == pytest.approx((own["truth"] == own["found"]).mean())
        assert set(shape) == {"item"}


def test_the_threshold_is_of_validation_alone(cohort, outputs) -> None:
    rows = np.arange(len(cohort.table))
    evaluation = TargetEvaluation(cohort, dict)
    first = evaluation.summarise(rows, outputs, RESAMPLES)
    others = (cohort.table["split"] != "valid").to_numpy()
    changed = {**outputs, "broken": np.where(others[:, None], 0.5, outputs["broken"])}
    second = evaluation.summarise(rows, changed, RESAMPLES)
    assert first["targets"]["broken"]["fitted"] == second["targets"]["broken"]["fitted"]
    assert first["targets"]["broken"]["groups"] != second["targets"]["broken"]["groups"]


def test_what_is_written(cohort, outputs, tmp_path: Path) -> None:
    rows = np.arange(len(cohort.table))
    outputs["length"][4] = np.nan
    context = dict.fromkeys(
        ("version", "checkpoint", "data", "command", "config"), "<b>"
    ) | {"simulated": True}  # fmt: skip
    report = TargetEvaluation(cohort, dict).write(
        tmp_path, Predicted(rows, outputs, {}, {}), context
    )
    assert report.warnings == ("length: 1 predictions are NaN or infinite and left out.",)
    assert [shown.title for shown in report.tables] == ["broken: yes or no", "shape", "length: mm"]
    written = pd.read_csv(report.paths["predictions"])
    assert list(written.columns) == [
        "patient_id", "split", "broken_pred", "broken_probability", "shape_pred",
        "shape_probability", "length_pred",
    ]  # fmt: skip
    yes = written["broken_probability"] > 0.5
    assert (written["broken_pred"] == np.where(yes, "yes", "no")).all()
    metrics = json.loads(report.paths["metrics"].read_text())
    assert set(metrics["targets"]) == {"broken", "shape", "length"}
    page = report.paths["report"].read_text()
    assert "Simulated cohort" in page
    assert "<b>" not in page
    area = metrics["targets"]["broken"]["groups"]["test"]["item"]["AUROC"]
    assert f"{area:.3f}" in page


def test_a_model_that_diverged_is_refused(cohort, outputs) -> None:
    outputs["length"][:] = np.nan
    with pytest.raises(UserError, match=r"length: every prediction is NaN.*earlier checkpoint"):
        TargetEvaluation(cohort, dict).summarise(np.arange(len(cohort.table)), outputs, RESAMPLES)
