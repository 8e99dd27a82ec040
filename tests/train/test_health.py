"""A run that is not well is stopped; one that is noisy is not."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.objectives import ten_times
from osteojax.train.health import REFERENCE_STEPS, Health, keep_evidence
from osteojax.types import TrainState


def watch(losses, health: Health | None = None) -> tuple[int, str] | None:
    """First step that is not well, from 1, with the verdict."""
    health = health or Health(ten_times)
    for step, loss in enumerate(losses, start=1):
        if verdict := health.verdict(step, {"loss": float(loss), "gradient_norm": 1.0}):
            return step, verdict
    return None


def test_what_is_not_finite_is_seen_at_once() -> None:
    step, verdict = watch([2.0, 2.0, np.nan])
    assert (step, "nan at step 3" in verdict) == (3, True)
    assert "inf" in Health(ten_times).verdict(7, {"loss": 1.0, "gradient_norm": float("inf")})


def test_noise_is_not_divergence() -> None:
    rng = np.random.default_rng(0)
    falling = 5.0 * np.exp(-np.arange(2000) / 300)
    assert watch(falling * rng.lognormal(0.0, 0.7, 2000)) is None
    spikes = np.full(500, 3.0)
    spikes[100::100] = 150.0  # single batches of fifty times the loss
    assert watch(spikes) is None


@pytest.mark.parametrize("rate", [1.05, 2.0])
def test_a_loss_that_grows_without_end_is_divergence(rate: float) -> None:
    losses = np.concatenate([np.full(50, 3.0), 3.0 * rate ** np.arange(200.0)])
    step, verdict = watch(losses)
    assert "diverges" in verdict
    assert 30.0 < losses[step - 1] < 500.0  # from ten times on, before it is lost in infinity


def test_a_restart_remembers_the_first_losses() -> None:
    before = Health(ten_times)
    assert watch(np.full(REFERENCE_STEPS + 5, 3.0), before) is None
    # Without its memory it would take the diverged loss for that of an untrained network.
    assert watch(np.full(40, 300.0), Health(ten_times, before.to_save())) is not None
    assert watch(np.full(40, 300.0)) is None


def test_the_evidence_counts_what_is_not_finite(tmp_path) -> None:
    params = {"dense": {"kernel": jnp.array([1.0, jnp.nan, jnp.inf]), "bias": jnp.zeros(2)}}
    state = TrainState(jnp.int32(3), params, {}, (jnp.zeros(1),))
    health = Health(ten_times)
    health.verdict(2, {"loss": 1.0, "gradient_norm": 1.0})
    health.verdict(3, {"loss": float("inf"), "gradient_norm": float("nan")})
    path = tmp_path / "new" / "step-3.json"
    keep_evidence(path, 3, "it broke", health, state, np.array([4, 7], np.int32))
    found = json.loads(path.read_text())
    assert found["not_finite"] == {"params.dense.kernel": "2 of 3"}
    assert found["rows_of_the_batch"] == [4, 7]
    assert found["metrics"][1] == {"step": 3, "loss": "inf", "gradient_norm": "nan"}


def test_the_objective_says_what_diverges() -> None:
    """A loss that starts at zero, or below, has no ten times to be compared with."""
    nearly_zero = np.concatenate([np.full(50, 1e-3), np.full(100, 0.5)])
    assert watch(nearly_zero) is not None
    assert watch(nearly_zero, Health(lambda reference: reference + 5.0)) is None
    negative = np.concatenate([np.full(50, -2.0), np.full(100, 40.0)])
    step, verdict = watch(negative, Health(lambda reference: reference + 5.0))
    assert (step <= 53, "diverges" in verdict) == (True, True)
