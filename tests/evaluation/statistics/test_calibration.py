"""Calibration by hand and against general-purpose optimisers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics as sk

from osteojax.evaluation.statistics import calibration
from osteojax.evaluation.statistics.metrics import Undefined


@pytest.fixture(scope="module")
def calibrated():
    """Labels drawn from the probabilities themselves."""
    generator = np.random.default_rng(0)
    probabilities = special.expit(generator.normal(0, 1.5, 4000))
    return (generator.random(4000) < probabilities).astype(int), probabilities


def test_brier_and_ece_by_hand():
    labels = np.array([0, 1, 1, 0])
    probabilities = np.array([0.12, 0.18, 0.9, 1.0])
    found = calibration.calibration(labels, probabilities)
    assert found["Brier"] == pytest.approx((0.12**2 + 0.82**2 + 0.1**2 + 1) / 4)
    # Bins [.1, .2): 2 cases, mean .15, share .5; [.9, 1]: 2 cases, mean .95, share .5.
    assert found["ECE"] == pytest.approx((2 * 0.35 + 2 * 0.45) / 4)
    assert found["Brier"] == pytest.approx(sk.brier_score_loss(labels, probabilities))


def test_reliability_counts_every_case_once():
    probabilities = np.array([0.0, 0.0999, 0.1, 0.55, 1.0])
    rows = calibration.reliability(np.array([0, 1, 1, 0, 1]), probabilities)
    assert list(rows[:, 0]) == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert rows[0, 2] == 0.5
    assert np.isnan(rows[2, 1])


def test_calibrated_probabilities_score_as_ideal(calibrated):
    found = calibration.calibration(*calibrated)
    assert found["slope"] == pytest.approx(1, abs=0.1)
    assert found["intercept"] == pytest.approx(0, abs=0.1)
    assert found["ECE"] < 0.03
    assert calibration.fit_temperature(*calibrated) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 2.0), (-0.7, 0.5), (1.0, 1.0)])
def test_slope_and_intercept_equal_a_general_optimiser(calibrated, shift, factor):
    labels, probabilities = calibrated
    scores = factor * special.logit(probabilities) + shift
    distorted = special.expit(scores)

    def loss(a, b):
        return np.sum(np.logaddexp(0, a + b * scores) - labels * (a + b * scores))

    both = optimize.minimize(lambda v: loss(*v), [0, 1], method="Nelder-Mead", tol=1e-8)
    only = optimize.minimize_scalar(lambda a: loss(a, 1.0))
    found = calibration.calibration(labels, distorted)
    assert found["slope"] == pytest.approx(both.x[1], rel=1e-3)
    assert found["slope"] == pytest.approx(1 / factor, rel=0.1)
    assert found["intercept"] == pytest.approx(only.x, abs=1e-4)


def test_temperature_undoes_a_known_one_and_keeps_the_order(calibrated):
    labels, probabilities = calibrated
    sharp = special.expit(3 * special.logit(probabilities))
    temperature = calibration.fit_temperature(labels, sharp)
    assert temperature == pytest.approx(3, rel=0.1)
    softened = calibration.apply_temperature(sharp, temperature)
    assert sk.log_loss(labels, softened) < sk.log_loss(labels, sharp)
    grid = np.exp(np.linspace(-2.9, 2.9, 400))
    losses = [sk.log_loss(labels, calibration.apply_temperature(sharp, t)) for t in grid]
    assert sk.log_loss(labels, softened) <= min(losses) + 1e-9
    assert (np.diff(softened[np.argsort(sharp)]) >= 0).all()


def test_a_temperature_that_helps_held_out_patients_is_kept(calibrated):
    labels, probabilities = calibrated
    sharp = special.expit(3 * special.logit(probabilities))
    patients = np.arange(len(labels)) // 2
    found = calibration.helpful_temperature(labels, sharp, patients)
    assert found == calibration.fit_temperature(labels, sharp)


def test_a_temperature_that_does_not_help_held_out_patients_is_refused():
    """Calibrated probabilities of 40 patients: the fitted temperature is 0.53 by chance, its own
    cases are better with it and held-out ones worse. Checked with scikit-learn."""
    generator = np.random.default_rng(3)
    probabilities = special.expit(generator.normal(0, 1.5, 40))
    labels = (generator.random(40) < probabilities).astype(int)
    fitted = calibration.fit_temperature(labels, probabilities)
    own = calibration.apply_temperature(probabilities, fitted)
    assert sk.log_loss(labels, own) < sk.log_loss(labels, probabilities)
    with pytest.raises(Undefined, match="stay as they are") as refused:
        calibration.helpful_temperature(labels, probabilities, np.arange(40))
    order = [*np.flatnonzero(labels == 1), *np.flatnonzero(labels == 0)]
    scaled = np.empty(40)
    for fold in range(5):
        held = np.zeros(40, bool)
        held[order[fold::5]] = True
        temperature = calibration.fit_temperature(labels[~held], probabilities[~held])
        scaled[held] = special.expit(special.logit(probabilities[held]) / temperature)
    losses = sk.log_loss(labels, probabilities), sk.log_loss(labels, scaled)
    briers = sk.brier_score_loss(labels, probabilities), sk.brier_score_loss(labels, scaled)
    for before, after in (losses, briers):
        assert f"from {before:.4f} to {after:.4f}" in str(refused.value)


def test_all_cases_of_a_patient_are_held_out_together():
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0])
    patients = np.array(list("aabbccddeeff"))
    fold = calibration._folds_of_patients(labels, patients)
    assert (fold[::2] == fold[1::2]).all()
    # a, c and f have a positive case and come first
    assert dict(zip(patients, fold.tolist(), strict=True)) == {
        "a": 0, "c": 1, "f": 2, "b": 3, "d": 4, "e": 0,
    }  # fmt: skip


def test_too_few_patients_for_cross_fitting_are_named():
    """Without the fold of the only positive patient there is one class."""
    labels, probabilities = np.array([1, 0, 0, 0]), np.array([0.4, 0.2, 0.6, 0.3])
    with pytest.raises(Undefined, match=r"too few patients \(4\)"):
        calibration.helpful_temperature(labels, probabilities, np.arange(4))


def test_certain_probabilities_stay_finite():
    found = calibration.calibration(np.array([0, 1, 0, 1]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert np.isfinite(found["intercept"])
    assert found["slope"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "probabilities", "absent"),
    [
        ([], [], {"Brier", "ECE", "slope", "intercept"}),
        ([0, 0, 0], [0.1, 0.2, 0.3], {"slope", "intercept"}),
        ([0, 0, 1], [0.1, 0.2, 0.3], {"slope"}),
        ([0, 1, 1], [0.4, 0.4, 0.4], {"slope"}),
    ],
)
def test_what_cannot_be_computed_is_none_with_a_reason(labels, probabilities, absent):
    found = calibration.calibration(np.array(labels, int), np.array(probabilities, float))
    assert {name for name, value in found.items() if value is None} == absent
    assert set(found["notes"]) == absent


@pytest.mark.parametrize(
    ("labels", "probabilities", "reason"),
    [
        ([0, 0], [0.1, 0.2], "one class"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], "separated entirely"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], "no better than chance"),
    ],
)
def test_temperature_says_why_it_cannot(labels, probabilities, reason):
    with pytest.raises(Undefined, match=reason):
        calibration.fit_temperature(np.array(labels), np.array(probabilities))
