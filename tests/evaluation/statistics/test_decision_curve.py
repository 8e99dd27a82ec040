"""Net benefit by hand."""

from __future__ import annotations

import numpy as np
import pytest

from osteojax.evaluation.statistics.decision_curve import net_benefit


def test_net_benefit_by_hand():
    labels, probabilities = np.array([1, 1, 0, 0]), np.array([0.9, 0.3, 0.6, 0.1])
    curve = net_benefit(labels, probabilities, (0.2, 0.5)).set_index("threshold")
    # At 0.2: TP 2, FP 1, odds 1/4. At 0.5: TP 1, FP 1, odds 1.
    assert curve["model"][0.2] == pytest.approx(2 / 4 - 1 / 4 / 4)
    assert curve["model"][0.5] == pytest.approx(0)
    assert curve["all"][0.2] == pytest.approx(0.5 - 0.5 / 4)
    assert (curve["none"] == 0).all()


def test_below_every_probability_the_model_acts_on_all():
    generator = np.random.default_rng(0)
    labels, probabilities = generator.integers(0, 2, 50), generator.uniform(0.3, 0.9, 50)
    curve = net_benefit(labels, probabilities, (0.1, 0.25, 0.95))
    np.testing.assert_allclose(curve["model"][:2], curve["all"][:2], rtol=1e-12)
    assert curve["model"][2] == 0
