"""DeLong's variance on DeLong's own data, against brute force, and against the bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from osteojax.evaluation.statistics import bootstrap, delong
from osteojax.evaluation.statistics.metrics import Undefined

# DeLong et al. 1988: ovarian cancer and bowel obstruction; albumin, total protein, K-G score, and
# outcome; complete records as in the SAS/STAT User's Guide, PROC LOGISTIC, "Comparing Receiver
# Operating Characteristic Curves".
RECORDS = """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
    1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
    4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
    3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
    3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
    3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
    3.6 6.6 5 1
"""
OVARIAN = np.array([float(number) for number in RECORDS.split()]).reshape(-1, 4)
BENEFIT = OVARIAN[:, 3].astype(int)
ALBUMIN, PROTEIN, KG_SCORE = OVARIAN[:, 0], OVARIAN[:, 1], 10 - OVARIAN[:, 2]


def test_published_areas_and_errors():
    """SAS's table: area, standard error of each score."""
    areas, covariance = delong.auroc_covariance(BENEFIT, np.stack([ALBUMIN, KG_SCORE, PROTEIN]))
    np.testing.assert_allclose(areas, [0.7366, 0.7258, 0.6478], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1028, 0.1000], atol=5e-5)
    assert delong.auroc_interval(BENEFIT, ALBUMIN) == pytest.approx([0.5549, 0.9182], abs=5e-5)


def test_published_comparisons():
    """SAS's contrasts against the K-G score: estimate, standard error, p."""
    found = delong.paired_test(BENEFIT, ALBUMIN, KG_SCORE)
    assert found["difference"] == pytest.approx(0.0108, abs=5e-5)
    assert found["standard_error"] == pytest.approx(0.0953, abs=5e-5)
    assert found["p"] == pytest.approx(0.9102, abs=5e-5)
    found = delong.paired_test(BENEFIT, PROTEIN, KG_SCORE)
    assert found["difference"] == pytest.approx(-0.0780, abs=5e-5)
    assert found["p"] == pytest.approx(0.4561, abs=5e-5)


def brute_force(labels, scores, clusters):
    """AUROC variance from the definitions in Obuchowski 1997, one pair at a time."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positive), len(negative)
    wins = {
        (i, j): 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i, j in itertools.product(positive, negative)
    }
    area = sum(wins.values()) / (m * n)
    x = dict.fromkeys(set(clusters), 0.0)
    y, mc, nc = dict(x), dict(x), dict(x)
    for i in positive:
        x[clusters[i]] += sum(wins[i, j] for j in negative) / n
        mc[clusters[i]] += 1
    for j in negative:
        y[clusters[j]] += sum(wins[i, j] for i in positive) / m
        nc[clusters[j]] += 1
    with_x, with_y = sum(v > 0 for v in mc.values()), sum(v > 0 for v in nc.values())
    size = len(x)
    s10 = with_x / ((with_x - 1) * m) * sum((x[c] - mc[c] * area) ** 2 for c in x)
    s01 = with_y / ((with_y - 1) * n) * sum((y[c] - nc[c] * area) ** 2 for c in x)
    s11 = size / (size - 1) * sum((x[c] - mc[c] * area) * (y[c] - nc[c] * area) for c in x)
    return area, s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("seed", range(5))
def test_clustered_variance_equals_the_definitions(seed):
    generator = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(25), generator.integers(1, 5, 25))
    labels = generator.integers(0, 2, len(clusters))
    scores = np.round(generator.random(len(clusters)) + 0.3 * labels, 1)
    areas, covariance = delong.auroc_covariance(labels, scores[None], clusters)
    assert (areas[0], covariance[0, 0]) == pytest.approx(brute_force(labels, scores, clusters))


def test_clustered_error_agrees_with_the_bootstrap_of_patients():
    generator = np.random.default_rng(11)
    patients = np.repeat(np.arange(300), 3)
    risk = np.repeat(generator.normal(size=300), 3)
    labels = (risk + 0.5 * generator.normal(size=900) > 0.5).astype(int)
    scores = risk + generator.normal(size=900)
    low, high = delong.auroc_interval(labels, scores, patients)
    boot = bootstrap.classification_intervals(labels, scores, patients, None, 2000)[0]["AUROC"]
    assert high - low == pytest.approx(boot[1] - boot[0], rel=0.08)
    naive_low, naive_high = delong.auroc_interval(labels, scores)
    assert naive_high - naive_low < 0.93 * (high - low)  # one patient's vertebrae are alike


def test_what_cannot_be_computed():
    separated = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    with pytest.raises(Undefined, match="AUROC is 1"):
        delong.auroc_interval(*separated)
    with pytest.raises(Undefined, match="one class"):
        delong.auroc_interval(np.zeros(4, int), separated[1])
    with pytest.raises(Undefined, match="has 1 and 2"):
        delong.auroc_interval(np.array([1, 0, 0]), np.array([0.5, 0.6, 0.4]))
    with pytest.raises(Undefined, match="rank the cases alike"):
        delong.paired_test(BENEFIT, ALBUMIN, 2 * ALBUMIN)
