"""Distances against scikit-learn's covariance and SciPy's Mahalanobis; files that are not one."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from osteojax.errors import UserError
from osteojax.evaluation.statistics import ood
from osteojax.evaluation.statistics.metrics import Undefined


@pytest.fixture(scope="module")
def embeddings():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(12, 12))
    return [generator.normal(size=(n, 12)) @ mixing + 3 for n in (300, 400, 50)]


@pytest.fixture(scope="module")
def stats(embeddings):
    return ood.fit(embeddings[0], embeddings[1])


def test_distances_are_mahalanobis(embeddings, stats):
    training, _, others = embeddings
    model = LedoitWolf().fit(training)
    expected = [mahalanobis(row, model.location_, model.precision_) for row in others]
    np.testing.assert_allclose(
        ood.ood_distance(others, stats), np.array(expected) / np.sqrt(12), rtol=1e-4
    )
    assert 0.8 < ood.ood_distance(training, stats).mean() < 1.02  # shrinkage takes some


def test_units_of_the_features_do_not_matter(embeddings):
    """Shrinkage is towards a multiple of the identity: little of it is left with many vertebrae."""
    training, validation, others = embeddings
    plain = ood.ood_distance(others, ood.fit(training, validation))
    shifted = ood.ood_distance(10 * others + 5, ood.fit(10 * training + 5, 10 * validation + 5))
    np.testing.assert_allclose(plain, shifted, rtol=1e-4)


def test_validation_says_what_is_unusual(embeddings, stats):
    _, validation, others = embeddings
    own = ood.ood_distance(validation, stats)
    assert ood.unusual(own, stats).mean() == pytest.approx(0.01, abs=0.003)
    np.testing.assert_allclose(
        ood.percentile(np.quantile(own, [0.1, 0.5, 0.95]), stats), [10, 50, 95], atol=0.2
    )
    far = ood.ood_distance(others + 100, stats)
    assert ood.unusual(far, stats).all()
    assert (ood.percentile(far, stats) == 100).all()


def test_fewer_vertebrae_than_features_and_a_dead_feature():
    generator = np.random.default_rng(1)
    rows = np.c_[generator.normal(size=(60, 79)), np.zeros(60)]
    stats = ood.fit(rows[:40], rows[40:])
    distances = ood.ood_distance(rows, stats)
    assert np.isfinite(distances).all()
    awake = rows[:1] + np.eye(80)[-1:] * 50
    assert ood.ood_distance(awake, stats)[0] > distances.max()


def test_too_few_or_not_finite(embeddings):
    training, validation, _ = embeddings
    with pytest.raises(Undefined, match="needs 20 training"):
        ood.fit(training[:5], validation)
    with pytest.raises(Undefined, match="needs 20 validation"):
        ood.fit(training, validation[:5])
    with pytest.raises(Undefined, match="not finite"):
        ood.fit(training * np.nan, validation)


def test_what_is_written_is_read_and_nothing_else_is(tmp_path, stats):
    path = tmp_path / ood.FILE
    ood.save(path, stats, {"checkpoint_step": 7})
    back = ood.load(path)
    assert all(np.array_equal(back[name], stats[name]) for name in stats)
    with pytest.raises(UserError, match="different models"):
        ood.ood_distance(np.zeros((1, 5)), back)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="damaged"):
        ood.load(path)
    save_file({"mean": np.zeros(3, np.float32)}, str(path))
    with pytest.raises(UserError, match="not statistics of embeddings"):
        ood.load(path)
    with pytest.raises(UserError, match="no such file"):
        ood.load(tmp_path / "absent")
