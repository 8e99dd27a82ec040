"""The rise of a readout, against scikit-learn and a bootstrap written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from launch.readouts import fits
from launch.readouts.rise import rise_of


def test_a_rise_is_the_paired_difference_of_two_readouts() -> None:
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(50), 3)
    target = np.repeat(rng.normal(size=50), 3)
    target[7] = np.nan
    training = patients < 25
    start, end = (
        np.nan_to_num(target)[:, None] * strength + rng.normal(size=(150, 5))
        for strength in (0.5, 3.0)
    )
    found = rise_of("number", start, end, target, patients, training)
    known = np.isfinite(target)
    fitted, scored = np.flatnonzero(training & known), np.flatnonzero(~training & known)
    read = []
    for embedding in (start, end):
        x = (embedding - embedding[fitted].mean(axis=0)) / embedding[fitted].std(axis=0).mean()
        alpha = fits.ridge(x[fitted], target[fitted], patients[fitted]).alpha
        read.append(Ridge(alpha).fit(x[fitted], target[fitted]).predict(x[scored]))
    r = [np.corrcoef(one, target[scored])[0, 1] for one in read]
    assert [found.start[0], found.end[0]] == pytest.approx(r, abs=1e-9)
    assert found.rise[0] == pytest.approx(r[1] - r[0], abs=1e-9)
    assert found.patients == 25
    own = np.random.default_rng(11)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(patients[scored] == p) for p in own.choice(
            np.arange(25, 50), 25)])  # fmt: skip
        x = [np.corrcoef(one[rows], target[scored][rows])[0, 1] for one in read]
        drawn.append(x[1] - x[0])
    assert found.rise[1] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=0.04)


def test_few_patients_have_no_interval() -> None:
    rng = np.random.default_rng(4)
    patients = np.arange(30)
    target, embedding = rng.normal(size=30), rng.normal(size=(30, 4))
    found = rise_of("number", embedding, embedding, target, patients, patients < 22)
    assert found.start[1] is None
    assert found.rise == (0.0, None)
