"""Save, resume, warm start. Orbax, asynchronous; a killed save never hides the step before it.

workdir/checkpoints/<step>/   the newest `keep` steps: state and data position together
workdir/best/<step>/          the best step by the validation metric
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from osteojax.errors import UserError
from osteojax.types import TrainState

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: str | Path, keep: int = 2) -> None:
        root = Path(workdir).resolve()
        training = ocp.training
        self._latest = training.Checkpointer(
            root / "checkpoints", preservation_policy=training.preservation_policies.LatestN(keep)
        )
        self._best = training.Checkpointer(
            root / "best", preservation_policy=training.preservation_policies.LatestN(1)
        )

    def save(self, state: TrainState, batches_seen: int) -> None:
        """Saves in the background; the arrays are copied before this returns."""
        step = int(state.step)
        if self._latest.latest is not None and self._latest.latest.step == step:
            return
        self._latest.save_checkpointables_async(
            step, {"state": state, "data": {"batches_seen": int(batches_seen)}}, force=True
        )

    def save_best(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Replaces the best step. `metrics` are kept with it."""
        self._best.save_checkpointables(
            int(state.step), {"state": state}, force=True, overwrite=True, metrics=metrics
        )

    def best_metrics(self) -> dict[str, float] | None:
        """Metrics that the best step was saved with; None before the first."""
        latest = self._best.latest
        return None if latest is None else dict(latest.metrics or {})

    def restore(self, template: TrainState) -> tuple[TrainState, int] | None:
        """The newest readable step, placed as `template`'s arrays are; None on a new run.

        A step that cannot be read is reported and the one before it is taken.
        """
        target = jax.tree.map(_abstract, template)
        for checkpoint in reversed(self._latest.checkpoints):
            try:
                loaded = self._latest.load_checkpointables(
                    checkpoint.step,
                    {"state": target, "data": {"batches_seen": 0}},
                )
            except Exception as error:  # whatever a damaged file makes the reader raise
                log.warning(
                    "step %s cannot be read (%s); trying the one before it",
                    checkpoint.step,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
                continue
            return loaded["state"], int(loaded["data"]["batches_seen"])
        if self._latest.checkpoints:
            raise UserError(
                f"{self._latest.directory}: no step can be read, or they are of another model. "
                "Choose a new --workdir, or remove this folder to start over."
            )
        return None

    def wait(self) -> None:
        """Returns when every save is on disk."""
        self._latest.wait()

    def close(self) -> None:
        self._latest.close()
        self._best.close()


def load_variables(workdir: str | Path, which: str = "best") -> tuple[int, dict[str, Any]]:
    """Parameters and model state of a finished or running workdir, as numpy arrays.

    Args:
      workdir: of `osteojax train`.
      which: "best" or "last".

    Returns:
      (step, {"params", "model_state", "ema_params"}).

    Raises:
      UserError: where there is no such checkpoint.
    """
    root = Path(workdir).resolve() / {"best": "best", "last": "checkpoints"}[which]
    if not root.is_dir():
        raise UserError(f"{workdir}: no {which} checkpoint. Is it the --workdir of a training run?")
    with ocp.training.Checkpointer(root) as checkpointer:
        if checkpointer.latest is None:
            raise UserError(f"{root}: no finished checkpoint yet. Rerun the training command.")
        step = checkpointer.latest.step
        metadata = checkpointer.checkpointables_metadata(step).metadata["state"]
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        state = checkpointer.load_checkpointables(step, {"state": target})["state"]
    return step, {name: state[name] for name in ("params", "model_state", "ema_params")}


def warm_start(params: Any, source: Any, prefix: str = "backbone") -> tuple[Any, list[str]]:
    """Takes `source[prefix]` into `params[prefix]`.

    Returns:
      (params, names of the parameters taken).

    Raises:
      UserError: naming the first parameter whose shape differs or that is missing.
    """
    if prefix not in source:
        raise UserError(f"the checkpoint to start from has no {prefix!r}; it has {sorted(source)}.")
    here = jax.tree_util.tree_flatten_with_path(params[prefix])[0]
    there = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(source[prefix])[0]
    }
    taken = []
    for path, leaf in here:
        name = jax.tree_util.keystr(path)
        found = there.get(name)
        if found is None or found.shape != leaf.shape:
            raise UserError(
                f"{prefix}{name}: this model has shape {leaf.shape}, the checkpoint to start from "
                f"{None if found is None else found.shape}. Use the same config.model in both."
            )
        taken.append(f"{prefix}{name}")
    return {**params, prefix: source[prefix]}, taken


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return leaf
