"""Metrics against tables worked by hand, brute force over pairs, and scikit-learn and SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from osteojax.evaluation.statistics import metrics
from osteojax.evaluation.statistics.metrics import Undefined

# Ten cases worked by hand. At 0.5 called positive: .9 .8 .7 .6 .5 -> TP .9 .8 .6, FP .7 .5;
# below: FN .4, TN .45 .3 .2 .1.
LABELS = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0])
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.3, 0.2, 0.1])


def test_confusion_metrics_by_hand():
    found = metrics.classification(LABELS, SCORES, 0.5)
    assert (found["TP"], found["FP"], found["TN"], found["FN"]) == (3, 2, 4, 1)
    expected = {
        "ACC": 7 / 10,
        "SEN": 3 / 4,
        "SPE": 4 / 6,
        "PPV": 3 / 5,
        "NPV": 4 / 5,
        "F1": 6 / 9,
        # Positives beat 6, 6, 5 and 3 of the 6 negatives.
        "AUROC": 20 / 24,
        # Precision at each positive: 1/1, 2/2, 3/4, 4/7.
        "AUPRC": (1 + 1 + 3 / 4 + 4 / 7) / 4,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert (found["n"], found["positives"], found["notes"]) == (10, 4, {})


@given(st.integers(0, 10_000), st.integers(4, 40))
@settings(max_examples=40, deadline=None)
def test_auroc_counts_pairs_and_the_rest_agrees_with_scikit_learn(seed, n):
    generator = np.random.default_rng(seed)
    labels = np.r_[0, 1, generator.integers(0, 2, n - 2)]
    scores = generator.integers(0, 8, n) / 8  # many ties
    found = metrics.classification(labels, scores, 0.5)
    pairs = [
        float(a > b) + 0.5 * float(a == b)
        for a, b in itertools.product(scores[labels == 1], scores[labels == 0])
    ]
    assert found["AUROC"] == pytest.approx(np.mean(pairs), abs=1e-12)
    called = scores >= 0.5
    assert found["ACC"] == pytest.approx(sk.accuracy_score(labels, called))
    assert found["SEN"] == pytest.approx(sk.recall_score(labels, called))
    assert found["SPE"] == pytest.approx(sk.recall_score(1 - labels, ~called))
    assert found["F1"] == pytest.approx(sk.f1_score(labels, called))
    if called.any():
        assert found["PPV"] == pytest.approx(sk.precision_score(labels, called))
    if not called.all():
        assert found["NPV"] == pytest.approx(sk.precision_score(1 - labels, ~called))


def test_float32_probabilities_give_the_numbers_of_float64():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 200)
    scores = generator.random(200).astype(np.float32)
    assert metrics.classification(labels, scores, 0.5) == metrics.classification(
        labels, scores.astype(np.float64), 0.5
    )


@pytest.mark.parametrize(
    ("labels", "scores", "absent"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.7], {"SEN", "F1", "AUROC", "AUPRC"}),
        ([1, 1, 1], [0.6, 0.7, 0.2], {"SPE", "AUROC", "AUPRC"}),
        ([0, 1, 1], [0.1, 0.2, 0.3], {"PPV"}),
        ([0, 1, 1], [0.6, 0.7, 0.8], {"NPV"}),
        ([], [], {"ACC", "SEN", "SPE", "PPV", "NPV", "F1", "AUROC", "AUPRC"}),
    ],
)
def test_what_cannot_be_computed_is_none_with_a_reason(labels, scores, absent):
    found = metrics.classification(np.array(labels, int), np.array(scores, float), 0.5)
    names = ("ACC", "SEN", "SPE", "PPV", "NPV", "F1", "AUROC", "AUPRC")
    assert {name for name in names if found[name] is None} == absent
    assert set(found["notes"]) == absent
    assert all(found["notes"].values())


def test_no_threshold_leaves_the_ranking_metrics():
    found = metrics.classification(LABELS, SCORES, None)
    assert found["SEN"] is None
    assert "no threshold" in found["notes"]["SEN"]
    assert found["AUROC"] == pytest.approx(20 / 24)


def test_nan_is_refused_not_dropped():
    with pytest.raises(ValueError, match="NaN"):
        metrics.classification(LABELS, np.where(SCORES == 0.3, np.nan, SCORES), 0.5)


def test_youden_by_hand_lies_between_its_neighbours():
    # J is SEN - FPR: 1/2 at .8, 3/4 - 1/6 at .6 (best, .583), 1 - 3/6 at .4.
    assert metrics.youden_threshold(LABELS, SCORES) == pytest.approx((0.6 + 0.5) / 2)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_youden_beats_every_other_threshold(seed):
    generator = np.random.default_rng(seed)
    labels = np.r_[0, 1, generator.integers(0, 2, 20)]
    scores = np.round(0.3 * labels + 0.7 * generator.random(22), 1)

    def youden(threshold):
        called = scores >= threshold
        return called[labels == 1].mean() - called[labels == 0].mean()

    best = max(youden(t) for t in scores)
    try:
        found = metrics.youden_threshold(labels, scores)
    except Undefined:
        assert best <= 1e-12
    else:
        assert youden(found) == pytest.approx(best)


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([0, 0], [0.1, 0.2], "one class"),
        ([0, 1], [0.5, 0.5], "better than chance"),
        ([0, 1], [0.9, 0.1], "better than chance"),
    ],
)
def test_youden_says_why_it_cannot(labels, scores, reason):
    with pytest.raises(Undefined, match=reason):
        metrics.youden_threshold(np.array(labels), np.array(scores))


def test_bland_and_altman_1986():
    """PEFR of 17 subjects, large Wright meter against mini meter (Lancet 1:307, table 1).

    Published: mean difference -2.1, SD 38.8 l/min, limits -79.7 and 75.5 (they round 1.96 to 2).
    """
    large = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
    mini = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
    found = metrics.bmd_regression(np.array(mini, float), np.array(large, float))
    assert found["bias"] == pytest.approx(-2.1, abs=0.05)
    assert found["sd"] == pytest.approx(38.8, abs=0.05)
    assert found["lower"] == pytest.approx(-79.7, abs=0.04 * 38.8 + 0.1)
    assert found["upper"] - found["bias"] == pytest.approx(1.96 * found["sd"])
    assert found["r"] == pytest.approx(0.94, abs=0.005)  # given in their text


def test_bmd_by_hand():
    found = metrics.bmd_regression(np.array([0.8, 1.0, 1.2]), np.array([0.9, 1.0, 1.0]))
    assert found["MAE"] == pytest.approx(0.1)
    assert found["bias"] == pytest.approx(-0.1 / 3)
    assert found["RMSE"] == pytest.approx(np.sqrt(0.05 / 3))
    # deviations -.2 0 .2 and -.0667 .0333 .0333: .02 / sqrt(.08 * .006667)
    assert found["r"] == pytest.approx(0.02 / np.sqrt(0.08 * (0.02 / 3)))


@pytest.mark.parametrize(
    ("truth", "predicted", "absent"),
    [
        ([], [], {"MAE", "RMSE", "r", "bias", "sd", "lower", "upper"}),
        ([0.9], [0.8], {"r", "sd", "lower", "upper"}),
        ([0.9, 1.0], [0.8, 0.9], {"r"}),
        ([0.9, 1.0, 1.1], [0.8, 0.8, 0.8], {"r"}),
    ],
)
def test_bmd_of_too_little_data(truth, predicted, absent):
    found = metrics.bmd_regression(np.array(truth, float), np.array(predicted, float))
    assert {name for name, value in found.items() if value is None} == absent
    assert set(found["notes"]) == absent


def test_position_by_hand():
    found = metrics.position(np.array([13, 14, 15, 16]), np.array([13, 15, 15, 12]))
    assert (found["accuracy"], found["within_one"]) == (0.5, 0.75)
    assert found["mean_absolute_error"] == pytest.approx(5 / 4)
    empty = metrics.position(np.array([], int), np.array([], int))
    assert empty["accuracy"] is None
    assert empty["notes"]["accuracy"] == "no vertebrae"
