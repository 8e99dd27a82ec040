"""The texture probe, against ridge regression written out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from osteojax.data.cohort import PreparedCohort
from osteojax.objectives import probes


@pytest.fixture
def cohort(tiny_pool: Path) -> PreparedCohort:
    return PreparedCohort(tiny_pool)


def written_out(train_NF, train_N, valid_NF, valid_N) -> float:
    """Ridge with the alpha of least leave-one-out error, in float64; its r on validation."""
    scale = train_NF.std(axis=0).mean()
    x, z = (np.asarray(part, np.float64) / scale for part in (train_NF, valid_NF))
    centre, level = x.mean(axis=0), train_N.mean()
    x, y = x - centre, train_N - level
    errors = {}
    for alpha in np.logspace(-1, 4, 11):
        inverse = np.linalg.inv(x.T @ x + alpha * np.eye(x.shape[1]))
        hat = x @ inverse @ x.T + 1 / len(x)
        residual = (y - hat @ y) / (1 - np.diag(hat))
        errors[np.mean(residual**2)] = inverse @ x.T @ y
    read = (z - centre) @ errors[min(errors)] + level
    read, true = read - read.mean(), valid_N - valid_N.mean()
    return float(read @ true / np.sqrt((read @ read) * (true @ true)))


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_r_is_that_of_ridge_regression(noise: float) -> None:
    rng = np.random.default_rng(0)
    number = rng.normal(6, 0.5, 90)
    embedding = rng.normal(size=(90, 12)) * noise + np.outer(number, rng.normal(size=12))
    parts = [embedding[:60].astype(np.float32), number[:60]]
    parts += [embedding[60:].astype(np.float32), number[60:]]
    found = probes.texture_probe(*parts, np.arange(30))["texture_probe_r"]
    assert found == pytest.approx(written_out(*parts), abs=2e-4)
    assert found > (0.9 if noise < 1 else 0.3)


def test_the_interval_draws_patients() -> None:
    """As `np.corrcoef` of the vertebrae of drawn patients; wider than of single vertebrae."""
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(12), 5)
    own = rng.normal(size=12)[patient]  # what is read shares a patient's error
    number = own + 0.3 * rng.normal(size=60)
    error = rng.normal(size=12)[patient] + 0.1 * rng.normal(size=60)
    embedding = (number + error)[:, None].astype(np.float32)
    found = probes.texture_probe(embedding, number, embedding, number, patient)
    rows = [np.flatnonzero(patient == one) for one in range(12)]
    drawn = [np.concatenate([rows[i] for i in rng.integers(0, 12, 12)]) for _ in range(4000)]
    rs = [np.corrcoef(embedding[d, 0], number[d])[0, 1] for d in drawn]
    ends = found["texture_probe_low"], found["texture_probe_high"]
    np.testing.assert_allclose(ends, np.percentile(rs, [2.5, 97.5]), atol=0.05)
    single = probes.texture_probe(embedding, number, embedding, number, np.arange(60))
    assert ends[1] - ends[0] > 1.5 * (single["texture_probe_high"] - single["texture_probe_low"])
    few = probes.texture_probe(
        embedding[:45], number[:45], embedding[:45], number[:45], patient[:45]
    )
    assert set(few) == {"texture_probe_r"}


def test_what_does_not_vary_has_r_of_nothing() -> None:
    train, valid = np.ones((6, 3), np.float32), np.ones((4, 3), np.float32)
    numbers = np.arange(6.0)
    found = probes.texture_probe(train, numbers, valid, numbers[:4], np.arange(4))
    assert found == {"texture_probe_r": 0.0}


def test_every_vertebra_with_the_number_takes_part(cohort, monkeypatch) -> None:
    """Labelled or not; at most so many of a split, evenly spaced; each is embedded once."""
    number = cohort.table["texture_number"]
    asked: list[np.ndarray] = []

    def embed(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return np.stack([number.to_numpy()[rows], rows % 7], axis=1).astype(np.float32)

    metrics = probes.frozen_probes(cohort, embed)
    assert metrics["texture_probe_r"] == pytest.approx(1.0, abs=1e-3)
    for rows, split in zip(asked, ("train", "valid"), strict=True):
        np.testing.assert_array_equal(rows, cohort.rows(split))
    train, valid = (cohort.rows(split, labelled=True) for split in ("train", "valid"))
    plain = probes.diagnostics.probe_metrics(cohort, train, embed(train), valid, embed(valid))
    assert {name: metrics[name] for name in plain} == plain
    monkeypatch.setattr(probes, "MOST_ROWS", 5)
    train = cohort.rows("train")
    few = train[np.linspace(0, len(train) - 1, 5).astype(int)]
    np.testing.assert_array_equal(probes.rows_with_texture(cohort, "train"), few)
    monkeypatch.undo()
    cohort.table.loc[train[:3], "texture_number"] = np.nan
    assert probes.rows_with_texture(cohort, "train")[0] == train[3]


def test_a_folder_without_the_number_is_told_once(cohort, caplog) -> None:
    cohort.table["texture_number"] = np.nan
    metrics = probes.frozen_probes(cohort, lambda rows: np.zeros((len(rows), 2), np.float32))
    assert "texture_probe_r" not in metrics
    warned: set[str] = set()
    with caplog.at_level(logging.WARNING):
        probes.warn(cohort, warned)
        probes.warn(cohort, warned)
    assert caplog.text.count("no texture_number") == 1
