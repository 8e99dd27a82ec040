"""Saves that were cut off or damaged never hide the step before them."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.checkpoints import Checkpoints, load_variables, warm_start
from osteojax.errors import UserError
from osteojax.types import TrainState


def state_of(step: int, width: int = 3) -> TrainState:
    params = {"backbone": {"kernel": jnp.full((2, width), float(step))}}
    return TrainState(
        jnp.int32(step), params, {"batch_stats": {"mean": jnp.zeros(width)}}, (jnp.zeros(2),)
    )


def saved(workdir: Path, steps: tuple[int, ...]) -> None:
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(state_of(step), step)
    checkpoints.close()


def test_the_newest_step_comes_back_whole(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 3))
    state, batches_seen = Checkpoints(tmp_path).restore(state_of(0))
    assert (int(state.step), batches_seen) == (3, 3)
    expected = state_of(3)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}


def test_a_new_run_has_nothing_to_restore(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).restore(state_of(0)) is None
    with pytest.raises(UserError, match=r"no (finished|best) checkpoint"):
        load_variables(tmp_path)


def test_a_damaged_step_gives_way_to_the_one_before(tmp_path: Path, caplog) -> None:
    saved(tmp_path, (1, 2))
    for file in (tmp_path / "checkpoints" / "2").rglob("*"):
        if file.is_file() and "d" in file.parent.name:
            file.write_bytes(b"")
    (tmp_path / "checkpoints" / "9").mkdir()  # what a kill in the middle of a save can leave
    with caplog.at_level(logging.WARNING):
        state, batches_seen = Checkpoints(tmp_path).restore(state_of(0))
    assert (int(state.step), batches_seen) == (1, 1)
    assert "step 2 cannot be read" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    with pytest.raises(UserError, match="another model"):
        Checkpoints(tmp_path).restore(state_of(0, width=5))


def test_best_keeps_its_metrics(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_metrics() is None
    checkpoints.save_best(state_of(1), {"auroc": 0.5})
    checkpoints.save_best(state_of(2), {"auroc": 0.75})
    checkpoints.close()
    assert Checkpoints(tmp_path).best_metrics() == {"auroc": 0.75}
    step, variables = load_variables(tmp_path)
    assert step == 2
    assert variables["ema_params"] is None
    np.testing.assert_array_equal(variables["params"]["backbone"]["kernel"], np.full((2, 3), 2.0))


def test_warm_start_takes_one_subtree_or_says_what_differs() -> None:
    params = {"backbone": {"a": np.zeros(2), "b": np.zeros(3)}, "head": {"a": np.zeros(1)}}
    source = {"backbone": {"a": np.ones(2), "b": np.ones(3)}, "prototypes": np.ones(1)}
    merged, taken = warm_start(params, source)
    assert taken == ["backbone['a']", "backbone['b']"]
    assert merged["backbone"]["b"].all()
    assert not merged["head"]["a"].any()
    with pytest.raises(UserError, match=r"backbone\['b'\].*\(3,\).*\(4,\)"):
        warm_start(params, {"backbone": {"a": np.ones(2), "b": np.ones(4)}})
    with pytest.raises(UserError, match="None"):
        warm_start(params, {"backbone": {"a": np.ones(2)}})
    with pytest.raises(UserError, match="no 'backbone'"):
        warm_start(params, {"head": {}})
