"""HU baselines: the fit against a minimiser written out, the comparison against its parts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from sklearn import metrics as sk

from osteojax.evaluation import baselines, predictions, summary
from osteojax.evaluation.statistics import metrics
from osteojax.evaluation.statistics.delong import paired_test
from tests.evaluation.tables import synthetic, with_baselines

SETTINGS = {"resamples": 50, "seed": 0}


@pytest.fixture(scope="module")
def training():
    return synthetic(60, "train", 99)


@pytest.fixture(scope="module")
def tables():
    test, valid = with_baselines(synthetic(60, "test", 2, "ABCD"), synthetic(40, "valid", 1))
    return predictions.check(test), predictions.check(valid)


@pytest.fixture(scope="module")
def found(tables):
    test, valid = tables
    return baselines.summarise(test, valid, summary.fit_on_validation(valid), **SETTINGS)


@pytest.mark.parametrize("name", ["hu", "hu_age"])
def test_the_fit_minimises_the_penalised_likelihood(training, name):
    models, notes = baselines.fit(training)
    assert notes == {}
    features = list(baselines.FEATURES[name])
    rows = training.dropna(subset=["osteoporosis", *features])
    x = rows[features].to_numpy()
    x = np.c_[(x - x.mean(0)) / x.std(0), np.ones(len(x))]
    sign = 2 * rows["osteoporosis"].to_numpy() - 1

    def loss(w):
        return np.sum(np.logaddexp(0, -sign * (x @ w))) + 0.5 * np.sum(w[:-1] ** 2)

    best = optimize.minimize(loss, np.zeros(x.shape[1]), tol=1e-12).x
    expected = 1 / (1 + np.exp(-x @ best))
    np.testing.assert_allclose(models[name].probability(rows), expected, atol=1e-5)
    assert models[name].n == len(rows)
    told = models[name].as_json()
    logit = told["intercept"] + sum(told["log_odds_per"][f] * rows[f] for f in features)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), expected, atol=1e-5)


def test_hu_alone_is_a_threshold_on_hu(training):
    models, _ = baselines.fit(training)
    assert models["hu"].coefficients[0] < 0
    order = np.argsort(training["mean_hu"].to_numpy())
    assert (np.diff(models["hu"].probability(training)[order]) < 0).all()


def test_what_cannot_be_fitted_says_why(training):
    models, notes = baselines.fit(training.assign(age=np.nan))
    assert list(models) == ["hu"]
    assert "no labelled cases" in notes["hu_age"]
    assert "one class" in baselines.fit(training.assign(osteoporosis=0.0))[1]["hu"]
    assert "mean_hu is the same" in baselines.fit(training.assign(mean_hu=100.0))[1]["hu"]
    few = training[training["osteoporosis"].notna()].head(12)
    assert few["osteoporosis"].nunique() == 2
    assert "needs 20 training vertebrae" in baselines.fit(few)[1]["hu"]


def test_separated_classes_stay_finite(training):
    models, _ = baselines.fit(training.assign(mean_hu=-100.0 * training["osteoporosis"].fillna(0)))
    assert np.isfinite(models["hu"].coefficients).all()


def test_numbers_are_those_of_the_parts(tables, found):
    test, valid = tables
    entry = found["hu_age"]["internal"]["vertebra"]
    rows = test[(test["split"] == "test") & test["osteoporosis"].notna()]
    known = rows[rows["age"].notna()]
    assert (entry["n"], entry["missing"]) == (len(known), len(rows) - len(known))
    assert entry["missing"] > 0
    labels = known["osteoporosis"].to_numpy(int)
    at = entry["at_validation_threshold"]
    assert at["AUROC"] == pytest.approx(sk.roc_auc_score(labels, known["baseline_hu_age"]))
    fitted = valid[valid["osteoporosis"].notna() & valid["age"].notna()]
    assert at["threshold"] == metrics.youden_threshold(
        fitted["osteoporosis"].to_numpy(int), fitted["baseline_hu_age"].to_numpy()
    )
    test_of = paired_test(
        labels,
        known["probability"].to_numpy(),
        known["baseline_hu_age"].to_numpy(),
        known["patient_id"].to_numpy(),
    )
    assert entry["against_model"]["delong"]["p"] == pytest.approx(test_of["p"])


def test_holm_covers_the_whole_table(found):
    tests = [
        found[name][part][unit]["against_model"]["delong"]
        for name in found
        for part in ("internal", "external")
        for unit in baselines.UNITS
    ]
    tests = [test for test in tests if test]
    assert len(tests) >= 4
    smallest = min(tests, key=lambda test: test["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, len(tests) * smallest["p"]))
    assert all(test["p_holm"] >= test["p"] for test in tests)


def test_no_baseline_columns_give_no_baselines(tables):
    test, valid = (table.drop(columns=["baseline_hu", "baseline_hu_age"]) for table in tables)
    test, valid = predictions.check(test), predictions.check(valid)
    assert baselines.summarise(test, valid, summary.fit_on_validation(valid), **SETTINGS) == {}
