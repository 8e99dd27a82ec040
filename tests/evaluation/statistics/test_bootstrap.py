"""The vectorised bootstrap against a loop that builds every resample and calls scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from osteojax.evaluation.statistics import bootstrap
from osteojax.evaluation.statistics.metrics import Undefined


@pytest.fixture(scope="module")
def cases():
    generator = np.random.default_rng(7)
    patients = np.repeat(np.arange(30), generator.integers(1, 4, 30))
    labels = generator.integers(0, 2, len(patients))
    scores = np.round(0.25 * labels + 0.75 * generator.random(len(patients)), 1)  # ties
    return labels, scores, patients


def resampled_rows(patients, resamples, seed):
    """Row numbers of each resample, written out: every row of a patient as often as it is drawn."""
    counts = bootstrap.patient_counts(patients.max() + 1, resamples, seed)
    for row in counts:
        yield np.concatenate(
            [np.tile(np.flatnonzero(patients == p), int(c)) for p, c in enumerate(row)]
        )


def test_counts_are_draws_with_replacement():
    counts = bootstrap.patient_counts(12, 4000, seed=1)
    assert (counts.sum(axis=1) == 12).all()
    # Binomial(12, 1/12): mean 1, variance 11/12.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(counts.var(), 11 / 12, rtol=0.05)


def test_classification_intervals_equal_the_loop(cases):
    labels, scores, patients = cases
    found, why = bootstrap.classification_intervals(labels, scores, patients, 0.5, 200, seed=3)
    assert why == {}
    loops = {
        "AUROC": lambda y, p: sk.roc_auc_score(y, p),
        "AUPRC": lambda y, p: sk.average_precision_score(y, p),
        "ACC": lambda y, p: sk.accuracy_score(y, p >= 0.5),
        "SEN": lambda y, p: sk.recall_score(y, p >= 0.5),
        "SPE": lambda y, p: sk.recall_score(1 - y, p < 0.5),
        "PPV": lambda y, p: sk.precision_score(y, p >= 0.5),
        "NPV": lambda y, p: sk.precision_score(1 - y, p < 0.5),
        "F1": lambda y, p: sk.f1_score(y, p >= 0.5),
    }
    rows = list(resampled_rows(patients, 200, 3))
    for name, loop in loops.items():
        values = [loop(labels[r], scores[r]) for r in rows]
        np.testing.assert_allclose(found[name], np.percentile(values, [2.5, 97.5]), rtol=1e-12)


def test_bmd_intervals_equal_the_loop(cases):
    _, _, patients = cases
    generator = np.random.default_rng(2)
    truth = generator.normal(0.95, 0.15, len(patients))
    predicted = truth + generator.normal(-0.02, 0.06, len(patients))
    found, why = bootstrap.bmd_intervals(truth, predicted, patients, 200, seed=3)
    assert why == {}
    rows = list(resampled_rows(patients, 200, 3))
    loops = {
        "MAE": lambda t, p: np.mean(np.abs(p - t)),
        "bias": lambda t, p: np.mean(p - t),
        "r": lambda t, p: stats.pearsonr(t, p).statistic,
    }
    for name, loop in loops.items():
        values = [loop(truth[r], predicted[r]) for r in rows]
        np.testing.assert_allclose(found[name], np.percentile(values, [2.5, 97.5]), rtol=1e-9)
    errors = np.abs(predicted - truth)
    means, _ = bootstrap.mean_intervals({"error": errors}, patients, 200, seed=3)
    np.testing.assert_allclose(means["error"], found["MAE"], rtol=1e-12)


def test_memory_chunks_change_nothing(cases, monkeypatch):
    labels, scores, patients = cases
    whole = bootstrap.classification_intervals(labels, scores, patients, 0.5, 100)
    monkeypatch.setattr(bootstrap, "_CELLS", 7 * len(labels))
    assert bootstrap.classification_intervals(labels, scores, patients, 0.5, 100) == whole


def test_seed_repeats_and_another_seed_does_not(cases):
    labels, scores, patients = cases
    first = bootstrap.classification_intervals(labels, scores, patients, 0.5, 100, seed=1)
    assert bootstrap.classification_intervals(labels, scores, patients, 0.5, 100, seed=1) == first
    assert bootstrap.classification_intervals(labels, scores, patients, 0.5, 100, seed=2) != first


def test_repeating_every_vertebra_does_not_narrow_the_interval(cases):
    """The reason to draw patients: copies of a vertebra carry no information."""
    labels, scores, patients = cases
    once = bootstrap.classification_intervals(labels, scores, patients, 0.5, 200)[0]
    copies = [np.repeat(x, 5) for x in (labels, scores, patients)]
    five = bootstrap.classification_intervals(*copies, 0.5, 200)[0]
    for name, interval in once.items():
        np.testing.assert_allclose(five[name], interval, rtol=1e-12)


def test_coverage_of_a_mean():
    """95% intervals of a mean over 60 patients contain the truth about 95% of the time."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        effect = np.repeat(generator.normal(size=60), 3)
        values = effect + generator.normal(size=180)
        low, high = bootstrap.mean_intervals(
            {"mean": values}, np.repeat(np.arange(60), 3), 300, seed=trial
        )[0]["mean"]
        hits += low <= 0 <= high
    # Binomial(200, 0.94): 178 to 197 holds in all but 1 of 1000; drawing rows would give ~80%.
    assert 178 <= hits <= 197


def test_too_few_patients_and_one_value_give_no_interval(cases):
    labels, scores, patients = cases
    few = patients < 3
    found, why = bootstrap.classification_intervals(labels[few], scores[few], patients[few], 0.5)
    assert set(found.values()) == {None}
    assert "from 3 patients" in why["AUROC"]
    found, why = bootstrap.mean_intervals({"right": np.ones(len(patients))}, patients, 100)
    assert found["right"] is None
    assert "every resample gives 1" in why["right"]


def test_a_single_positive_patient_gives_no_interval():
    labels = np.r_[1, np.zeros(29, int)]
    scores = np.linspace(0.9, 0.1, 30)
    found, why = bootstrap.classification_intervals(labels, scores, np.arange(30), 0.5, 300)
    # The positive patient is drawn in 1 - (29/30)^30 = 64% of the resamples only.
    assert found["SEN"] is None
    assert "of 300 bootstrap resamples" in why["SEN"]
    assert found["ACC"] is not None
    with pytest.raises(Undefined, match="only 50 of 100"):
        bootstrap.percentile_interval(np.r_[np.arange(50.0), np.full(50, np.nan)])
