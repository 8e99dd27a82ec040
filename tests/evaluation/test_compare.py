"""Comparisons against loops that build every resample, statsmodels' parts by hand, and truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from osteojax.evaluation import compare
from osteojax.evaluation.statistics import bootstrap
from osteojax.evaluation.statistics.delong import paired_test
from tests.evaluation.statistics.test_bootstrap import resampled_rows

SETTINGS = {"resamples": 80, "seed": 4}


@pytest.fixture(scope="module")
def cases():
    generator = np.random.default_rng(3)
    patients = np.repeat(np.arange(40), generator.integers(1, 4, 40))
    labels = generator.integers(0, 2, len(patients))
    noise = generator.random((3, len(patients)))
    strong, weak, other = 0.4 * labels + 0.6 * noise[0], 0.1 * labels + 0.9 * noise[1], noise[2]
    return labels, strong, weak, other, patients


def test_differences_equal_the_loop(cases):
    labels, strong, weak, _, patients = cases
    found = compare.compare(labels, strong, weak, patients, (0.5, 0.6), **SETTINGS)
    rows = list(resampled_rows(patients, 80, 4))
    for name, metric in {
        "AUROC": lambda r: (
            sk.roc_auc_score(labels[r], strong[r]) - sk.roc_auc_score(labels[r], weak[r])
        ),
        "F1": lambda r: (
            sk.f1_score(labels[r], strong[r] >= 0.5) - sk.f1_score(labels[r], weak[r] >= 0.6)
        ),
    }.items():
        entry = found["difference"][name]
        gaps = np.array([metric(r) for r in rows])
        assert entry["difference"] == pytest.approx(metric(np.arange(len(labels))))
        assert entry["interval"] == pytest.approx(np.percentile(gaps, [2.5, 97.5]))
        assert entry["p"] == pytest.approx(2 * (1 + min((gaps <= 0).sum(), (gaps >= 0).sum())) / 81)
    assert found["delong"] == paired_test(labels, strong, weak, patients)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_bmd_differences_equal_the_loop(cases):
    _, first, second, truth, patients = cases
    found = compare.compare_bmd(truth, first, second, patients, **SETTINGS)["difference"]["MAE"]
    rows = list(resampled_rows(patients, 80, 4))
    gaps = [
        np.mean(np.abs(first[r] - truth[r])) - np.mean(np.abs(second[r] - truth[r])) for r in rows
    ]
    assert found["interval"] == pytest.approx(np.percentile(gaps, [2.5, 97.5]))
    assert found["difference"] == pytest.approx(
        np.mean(np.abs(first - truth)) - np.mean(np.abs(second - truth))
    )


def test_mcnemar_is_the_binomial_test_of_the_discordant_cases(cases):
    labels, strong, weak, _, patients = cases
    found = compare.compare(labels, strong, weak, patients, (0.5, 0.6), **SETTINGS)["mcnemar"]
    right = [(strong >= 0.5) == labels, (weak >= 0.6) == labels]
    only = int(np.sum(right[0] & ~right[1])), int(np.sum(~right[0] & right[1]))
    assert (found["only_first_right"], found["only_second_right"]) == only
    assert found["p"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)


def test_p_values_hold_under_the_null_and_find_a_difference():
    """200 cohorts in which both models are equally good: about 5% of the p values are below 5%."""
    generator = np.random.default_rng(0)
    p_values = {"delong": [], "bootstrap": []}
    for _ in range(200):
        patients = np.repeat(np.arange(40), 2)
        labels = (np.repeat(generator.normal(size=40), 2) > 0).astype(int)
        first, second = labels[None] + 1.5 * np.repeat(generator.normal(size=(2, 40)), 2, axis=1)
        found = compare.compare(labels, first, second, patients, resamples=100)
        p_values["delong"].append(found["delong"]["p"])
        p_values["bootstrap"].append(found["difference"]["AUROC"]["p"])
    for values in p_values.values():
        assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.10
    better = compare.compare(labels, labels + 0.0, first, patients, resamples=200)
    assert better["difference"]["AUROC"]["p"] < 0.02


def test_seeds_are_averaged_and_drawn(cases):
    labels, strong, weak, other, patients = cases
    seeds = np.stack([strong, weak, other])
    estimates, values = compare.resample_diagnosis(labels, seeds, patients, 0.5, 4000, seed=1)
    each = [sk.roc_auc_score(labels, run) for run in seeds]
    assert estimates["AUROC"] == pytest.approx(np.mean(each))
    alone = [
        bootstrap.diagnosis_values(labels, run, patients, 0.5, 4000, seed=1)["AUROC"]
        for run in seeds
    ]
    # Patients and seeds are drawn apart: the variance is that of the patients at the mean of the
    # drawn seeds plus that of a mean of three seeds.
    expected = np.var(np.mean(alone, axis=0)) + np.mean(np.var(alone, axis=0)) / 3
    assert np.var(values["AUROC"]) == pytest.approx(expected, rel=0.15)
    one = compare.resample_diagnosis(labels, seeds[:1], patients, 0.5, 100, seed=1)
    plain = compare.resample_diagnosis(labels, strong, patients, 0.5, 100, seed=1)
    np.testing.assert_array_equal(one[1]["AUROC"], plain[1]["AUROC"])


def test_equal_seeds_add_nothing(cases):
    labels, strong, weak, _, patients = cases
    thrice = compare.compare(
        labels, np.stack([strong] * 3), np.stack([weak] * 3), patients, **SETTINGS
    )
    once = compare.compare(labels, strong, weak, patients, **SETTINGS)
    for name, entry in once["difference"].items():
        again = thrice["difference"][name]
        assert again["interval"] == pytest.approx(entry["interval"])
        assert again["difference"] == pytest.approx(entry["difference"])
    assert thrice["delong"]["p"] == pytest.approx(once["delong"]["p"])
    assert "several training seeds" in thrice["notes"]["mcnemar"]


def test_what_cannot_be_compared_says_why(cases):
    labels, strong, weak, _, patients = cases
    one_class = compare.compare(labels * 0, strong, weak, patients, (0.5, 0.5), **SETTINGS)
    assert one_class["difference"]["AUROC"]["difference"] is None
    assert "one class" in one_class["notes"]["delong"]
    assert one_class["difference"]["ACC"]["difference"] is not None
    few = compare.compare(labels[:6], strong[:6], weak[:6], patients[:6], **SETTINGS)
    assert "needs 10" in few["difference"]["AUROC"]["note"]
    assert "needs 10" in few["notes"]["delong"]
    same = compare.compare(labels, strong, 2 * strong, patients, (0.5, 1.0), **SETTINGS)
    assert same["difference"]["AUROC"]["difference"] == 0
    assert "every resample gives 0" in same["difference"]["AUROC"]["note"]
    assert "rank the cases alike" in same["notes"]["delong"]
    assert "same cases" in same["notes"]["mcnemar"]
    nobody = compare.compare(labels[:0], strong[:0], weak[:0], patients[:0], **SETTINGS)
    assert nobody["n"] == 0
    json.dumps([one_class, few, same, nobody], allow_nan=False)
    with pytest.raises(ValueError, match="for 3 cases"):
        compare.compare(labels[:3], strong, weak, patients)


def test_holm_by_hand():
    assert compare.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert compare.holm([None]) == [None]
