"""The linear models of readouts, against normal equations and scikit-learn's own search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from launch.readouts import fits

PATIENTS = np.repeat([f"P{number:02d}" for number in range(30)], 4)


def vertebrae(features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features f64[120, F] of 30 patients and a number that two of them tell, with noise."""
    rng = np.random.default_rng(3)
    patient = np.repeat(rng.normal(size=(30, features)), 4, axis=0)
    x = patient + 0.5 * rng.normal(size=patient.shape)
    return x, x[:, 0] - 0.5 * x[:, 1] + 1.5 * rng.normal(size=len(x)) + 7


def normal_equations(x: np.ndarray, y: np.ndarray, alpha: float) -> tuple[np.ndarray, float]:
    """Ridge regression with a free intercept."""
    centred = x - x.mean(axis=0)
    penalty = alpha * np.eye(x.shape[1])
    weights = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (y - y.mean()))
    return weights, float(y.mean() - x.mean(axis=0) @ weights)


def test_ridge_is_the_normal_equations_with_the_best_penalty_on_other_patients() -> None:
    x, y = vertebrae()
    errors = []
    for alpha in fits.ALPHAS:
        folds = []
        for fit, rest in GroupKFold(5).split(x, y, PATIENTS):
            assert not set(PATIENTS[fit]) & set(PATIENTS[rest])
            weights, intercept = normal_equations(x[fit], y[fit], alpha)
            folds.append(np.mean((x[rest] @ weights + intercept - y[rest]) ** 2))
        errors.append(np.mean(folds))
    best = fits.ALPHAS[int(np.argmin(errors))]
    assert fits.ALPHAS[0] < best < fits.ALPHAS[-1]
    weights, intercept = normal_equations(x, y, best)
    model = fits.ridge(x, y, PATIENTS)
    np.testing.assert_allclose(model.predict(x), x @ weights + intercept, rtol=1e-9)


def test_logistic_minimises_its_penalised_loss() -> None:
    x, y = vertebrae()
    label = (y > 7.5).astype(np.int64)
    model = fits.logistic(x, label, PATIENTS)

    def penalised(parameters: np.ndarray) -> float:
        logits = x @ parameters[:-1] + parameters[-1]
        losses = np.logaddexp(0, np.where(label == 1, -logits, logits))
        return float(model.C * losses.sum() + 0.5 * parameters[:-1] @ parameters[:-1])

    found = minimize(penalised, np.zeros(x.shape[1] + 1), tol=1e-12).x
    expected = 1 / (1 + np.exp(-(x @ found[:-1] + found[-1])))
    np.testing.assert_allclose(model.predict_proba(x)[:, 1], expected, atol=1e-3)


def test_logistic_leaves_out_folds_that_know_one_class() -> None:
    """One positive patient: the fold that holds it out has nothing to fit."""
    x, _ = vertebrae()
    label = (PATIENTS == "P03").astype(np.int64)
    folds = StratifiedGroupKFold(4).split(x, label, PATIENTS)
    assert any(len(set(label[fit])) < 2 for fit, _ in folds)
    assert set(fits.logistic(x, label, PATIENTS).classes_) == {0, 1}


def test_an_embedding_has_one_scale_and_numbers_have_their_own() -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(40, 3)) * (1.0, 2.0, 0.001) + 5
    numbers = rng.normal(size=(40, 2)) * (100.0, 0.1)
    training = np.arange(30)
    x = fits.scaled(embedding.astype(np.float32), numbers, training)
    deviation = x[training].std(axis=0)
    np.testing.assert_allclose(x[training].mean(axis=0), 0.0, atol=1e-6)
    assert deviation[:3].mean() == pytest.approx(1.0, abs=1e-6)
    assert deviation[1] / deviation[0] == pytest.approx(
        embedding[:30, 1].std() / embedding[:30, 0].std(), rel=1e-4
    )
    np.testing.assert_allclose(deviation[3:], 1.0)
    assert fits.scaled(None, numbers, training).shape == (40, 2)
    missing = numbers.copy()
    missing[[3, 35], 1] = np.nan
    x = fits.scaled(None, missing, training)
    assert x[3, 1] == x[35, 1] == 0.0
    np.testing.assert_allclose(np.delete(x[training], 3, axis=0).std(axis=0)[1], 1.0)
    constant = numbers.copy()
    constant[:30, 0], constant[30:, 0] = 0.1, 0.2  # one that varies among other patients alone
    assert not fits.scaled(None, constant, training)[:, 0].any()


def test_few_patients_have_both_classes_and_grow() -> None:
    positive = np.isin(PATIENTS, ["P01", "P07", "P20"])
    for seed in range(20):
        chosen = [fits.few_patients(PATIENTS, positive, n, [seed, 2]) for n in (4, 12)]
        for count, vertebrae_N in zip((4, 12), chosen, strict=True):
            assert len(set(PATIENTS[vertebrae_N])) == count
            assert len(set(PATIENTS[vertebrae_N & positive])) >= 2
            assert len(set(PATIENTS[vertebrae_N & ~positive])) >= 2
        assert not (chosen[0] & ~chosen[1]).any()
    assert fits.few_patients(PATIENTS, positive, 100, 0).all()
    first, again, other = (fits.few_patients(PATIENTS, positive, 12, s) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
