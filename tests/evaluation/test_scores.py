"""Scores of a predictions table, against scikit-learn and plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from osteojax.evaluation import predictions
from osteojax.evaluation.scores import BMD, score_predictions
from osteojax.evaluation.statistics.metrics import DIAGNOSIS
from tests.evaluation.tables import synthetic

TABLE = predictions.check(synthetic(60, "test", seed=3))


def test_vertebrae_are_scored_as_scikit_learn_does() -> None:
    scores = score_predictions(TABLE, threshold=0.4)
    known = TABLE[TABLE["osteoporosis"].notna()]
    truth, probability = known["osteoporosis"].astype(int), known["probability"]
    called = probability >= 0.4
    measured = TABLE[TABLE["bmd_g_cm2"].notna()]
    error = measured["bmd_pred_g_cm2"] - measured["bmd_g_cm2"]
    expected = {
        "AUROC": roc_auc_score(truth, probability),
        "AUPRC": average_precision_score(truth, probability),
        "SEN": recall_score(truth, called),
        "SPE": recall_score(1 - truth, ~called),
        "F1": f1_score(truth, called),
        "MAE": error.abs().mean(),
        "bias": error.mean(),
        "r": np.corrcoef(measured["bmd_g_cm2"], measured["bmd_pred_g_cm2"])[0, 1],
    }
    assert scores.index.tolist() == [*DIAGNOSIS, *BMD]
    for name, value in expected.items():
        assert scores.loc[name, "estimate"] == pytest.approx(value, abs=1e-12)
    assert (scores["low"] <= scores["estimate"]).all()
    assert (scores["estimate"] <= scores["high"]).all()
    assert (scores["note"] == "").all()
    assert set(scores["n"]) == {len(known), len(measured)}


def test_a_patient_is_positive_if_any_vertebra_is() -> None:
    scores = score_predictions(TABLE, unit="patient")
    known = TABLE[TABLE["osteoporosis"].notna()].groupby("patient_id")
    expected = roc_auc_score(known["osteoporosis"].max(), known["probability"].max())
    assert scores.loc["AUROC", "estimate"] == pytest.approx(expected, abs=1e-12)
    assert scores.index.tolist() == list(DIAGNOSIS)


def test_what_cannot_be_computed_is_said() -> None:
    few = TABLE[TABLE["patient_id"].isin(TABLE["patient_id"].unique()[:3])]
    scores = score_predictions(few)
    assert scores["low"].isna().all()
    assert scores["note"].str.contains("3 patients").any()
    healthy = TABLE[TABLE["osteoporosis"] == 0]
    scores = score_predictions(healthy)
    assert np.isnan(scores.loc["AUROC", "estimate"])
    assert "one class only" in scores.loc["AUROC", "note"]
