"""What pre-training is watched by, against hand-made cases."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from osteojax.objectives import diagnostics, label_probe
from tests.ops.test_sinkhorn import reference

SETTINGS = ConfigDict(
    {"temperature": 0.1, "sinkhorn_epsilon": 0.05, "sinkhorn_iterations": 3, "num_prototypes": 6}
)


@pytest.fixture(scope="module")
def cohort(tiny_pool) -> PreparedCohort:
    return PreparedCohort(tiny_pool)


def pairs_of(cohort: PreparedCohort, scores: np.ndarray, maps: np.ndarray) -> dict:
    rows = cohort.rows("valid")[: len(scores)]
    return {"rows": rows, "scores": scores.astype(np.float32), "map_ids": maps}


def random_maps(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(5)[:2] for _ in range(count)])


def test_losses_entropy_and_perplexity(cohort: PreparedCohort) -> None:
    scores = np.random.default_rng(1).uniform(-1, 1, (20, 2, 6))
    maps = random_maps(20)
    got = diagnostics.assignment_metrics(cohort, pairs_of(cohort, scores, maps), SETTINGS)
    p = np.exp(scores / 0.1) / np.exp(scores / 0.1).sum(-1, keepdims=True)
    q = np.stack([reference(scores[:, v], 0.05, 3) for v in (0, 1)], axis=1)
    losses = -(q[:, ::-1] * np.log(p)).sum(axis=(1, 2)) / 2
    assert got["swapped_prediction"] == pytest.approx(losses.mean(), rel=1e-4)
    assert got["assignment_entropy"] == pytest.approx(-(p * np.log(p)).sum(-1).mean(), rel=1e-4)
    share = p.mean(axis=(0, 1))
    assert got["prototype_perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert got["ln_k"] == pytest.approx(np.log(6))
    chosen = np.sort(maps, axis=1)
    name = f"pair/{diagnostics.POOL[chosen[0, 0]]}+{diagnostics.POOL[chosen[0, 1]]}"
    mine = losses[(chosen == chosen[0]).all(axis=1)]
    assert got[name] == pytest.approx(mine.mean(), rel=1e-4)
    assert sum(key.startswith("pair/") for key in got) == len(np.unique(chosen, axis=0))


def test_prototypes_that_sort_maps_are_seen(cohort: PreparedCohort, caplog) -> None:
    maps = random_maps(30)
    scores = -np.ones((30, 2, 6))
    np.put_along_axis(scores, maps[..., None], 1.0, axis=-1)  # the prototype is the map
    got = diagnostics.assignment_metrics(cohort, pairs_of(cohort, scores, maps), SETTINGS)
    assert got["nmi_map"] == pytest.approx(1.0)
    assert got["nmi_patient"] < 0.9
    with caplog.at_level(logging.WARNING):
        diagnostics.warn(got, float("nan"), set(), warmed_up=True)
    assert "sort maps by type" in caplog.text


def test_collapse_has_no_information(cohort: PreparedCohort) -> None:
    scores = np.zeros((30, 2, 6))
    scores[..., 2] = 1.0
    pairs = pairs_of(cohort, scores, random_maps(30))
    got = diagnostics.assignment_metrics(cohort, pairs, SETTINGS)
    assert got["nmi_map"] == got["nmi_label"] == 0.0
    assert got["prototype_perplexity"] < 1.01


def probe(cohort: PreparedCohort, embed, label_probe: str = "ridge") -> dict[str, float]:
    train, valid = cohort.rows("train", labelled=True), cohort.rows("valid", labelled=True)
    return diagnostics.probe_metrics(cohort, train, embed(train), valid, embed(valid), label_probe)


def test_the_label_is_found_in_a_direction_of_small_variance(cohort: PreparedCohort) -> None:
    """0.1's probe, with one scale and one strength, does not see it."""
    hu = cohort.table["mean_hu"].to_numpy()
    noise = np.random.default_rng(3).normal(size=(len(cohort), 6))

    def embed(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([noise[rows], 1e-2 * (hu[rows] - 150) / 50])

    assert probe(cohort, embed)["label_probe_auroc"] > 0.95
    assert probe(cohort, embed, "logistic")["label_probe_auroc"] < 0.8
    with pytest.raises(UserError, match="choose ridge or logistic"):
        probe(cohort, embed, "lasso")


def test_the_label_probe_is_a_ridge_regression_of_the_chosen_strength() -> None:
    """Against scikit-learn, whose penalty is in the embedding's own units."""
    rng = np.random.default_rng(6)  # where the least squared error would choose another one
    train, valid = rng.normal(size=(60, 5)) * (3, 1, 1, 0.3, 0.1), rng.normal(size=(20, 5))
    label = (train[:, 3] + 0.5 * rng.normal(size=60) > 0).astype(int)
    patient = np.repeat(np.arange(20), 3)

    def fitted(x: np.ndarray, y: np.ndarray, strength: float) -> Ridge:
        largest = np.linalg.eigvalsh((x - x.mean(axis=0)).T @ (x - x.mean(axis=0))).max()
        return Ridge(alpha=strength * largest).fit(x, 2 * y - 1)

    def held_out(strength: float) -> float:
        scores = np.zeros(60)
        for fit, rest in GroupKFold(5).split(train, groups=patient):
            scores[rest] = fitted(train[fit], label[fit], strength).predict(train[rest])
        return np.corrcoef(scores, label)[0, 1]

    chosen = max(label_probe.STRENGTHS, key=held_out)
    assert label_probe.STRENGTHS[0] < chosen < label_probe.STRENGTHS[-1]
    expected = fitted(train, label, chosen).predict(valid)
    found = label_probe.ridge_scores(train, label, patient, valid)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    one_patient = label_probe.ridge_scores(train, label, np.zeros(60), valid)
    assert np.isfinite(one_patient).all()
    nothing = label_probe.ridge_scores(np.zeros((60, 5)), label, patient, valid)
    assert np.ptp(nothing) == 0.0


def test_probes_find_what_is_there_and_nothing_else(cohort: PreparedCohort) -> None:
    hu = cohort.table["mean_hu"].to_numpy()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(cohort), 8))
    direction = rng.normal(size=8)

    def informed(rows: np.ndarray) -> np.ndarray:
        return 0.1 * noise[rows] + (hu[rows, None] - 150) / 50 * direction

    found = probe(cohort, informed)
    assert found["label_probe_auroc"] > 0.95
    assert found["hu_probe_r2"] > 0.9
    blind = probe(cohort, lambda rows: noise[rows])
    assert blind["hu_probe_r2"] < 0.3
    assert abs(blind["label_probe_auroc"] - 0.5) < 0.35


def test_a_channel_dead_in_training_does_not_break_the_probe(cohort: PreparedCohort) -> None:
    hu = cohort.table["mean_hu"].to_numpy()
    train = set(cohort.rows("train"))

    def embed(rows: np.ndarray) -> np.ndarray:
        odd = np.array([0.0 if row in train else 0.5 * (row % 7 == 0) for row in rows])
        return np.stack([(hu[rows] - 150) / 50, odd + 1e-7 * rows], axis=1)

    assert probe(cohort, embed)["hu_probe_r2"] > 0.8


def test_one_class_gives_no_auroc_and_no_row_gives_nothing(cohort: PreparedCohort) -> None:
    label = cohort.labels.osteoporosis
    train = cohort.rows("train", labelled=True)
    valid = cohort.rows("valid", labelled=True)
    negative = valid[label[valid] == 0]
    noise = np.random.default_rng(0).normal(size=(len(cohort), 4))
    got = diagnostics.probe_metrics(cohort, train, noise[train], negative, noise[negative])
    assert "label_probe_auroc" not in got
    assert "hu_probe_r2" in got
    assert diagnostics.probe_metrics(cohort, train[:0], noise[:0], valid, noise[valid]) == {}


def test_hard_usage_shows_what_perplexity_hides(cohort: PreparedCohort, caplog) -> None:
    """Nearly uniform predictions, of which two prototypes are always the nearest."""
    scores = np.full((20, 2, 6), 0.1) + 1e-3 * np.random.default_rng(2).uniform(size=(20, 2, 6))
    scores[:10, :, 1] += 0.01
    scores[10:, :, 4] += 0.01
    pairs = pairs_of(cohort, scores, random_maps(20))
    got = diagnostics.assignment_metrics(cohort, pairs, SETTINGS)
    targets = np.stack([reference(scores[:, v], 0.05, 3) for v in (0, 1)])
    assert got["prototype_perplexity"] > 5.9
    assert got["prototypes_used"] == 2
    assert got["largest_assignment"] == pytest.approx(targets.max(), rel=1e-4)
    assert got["loss_over_flat"] == pytest.approx(got["swapped_prediction"] / np.log(6))
    assert 0.98 < got["loss_over_flat"] < 1.01
    told: set[str] = set()
    with caplog.at_level(logging.WARNING):
        diagnostics.warn(got, float("nan"), told, warmed_up=False)
        diagnostics.warn({**got, "loss_over_flat": 0.97}, float("nan"), told, warmed_up=True)
        assert "flat" not in caplog.text
        for _ in range(3):
            diagnostics.warn(got, float("nan"), told, warmed_up=True)
    assert caplog.text.count("assignments are flat") == 1


def test_forgetting_density_is_told(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        told: set[str] = set()
        diagnostics.warn({"hu_probe_r2": 0.5}, 0.4, told, warmed_up=True)
        assert not caplog.text
        for _ in range(3):
            diagnostics.warn({"hu_probe_r2": 0.3}, 0.4, told, warmed_up=True)
    assert caplog.text.count("forgetting bone density") == 1  # not once an epoch
