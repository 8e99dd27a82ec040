"""Saving, resuming and warm starts with Orbax. Saving is asynchronous, and a save that is killed
leaves the earlier steps intact.

workdir/checkpoints/<step>/   the newest `keep` steps: state and data position together
workdir/best/<step>/          the best step by the validation metric
workdir/damaged/              steps whose files differ from what was saved

Each step holds hashes.json, written before the step gets its final name. Steps saved by older
versions have none and are not checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from osteojax.disk import NoDiskTracebacks, checkpoint_on_disk
from osteojax.errors import UserError
from osteojax.files import write_json
from osteojax.types import TrainState

log = logging.getLogger(__name__)
logging.getLogger("absl").addFilter(NoDiskTracebacks())  # Orbax logs through absl

HASHES = "hashes.json"


class Checkpoints:
    """The checkpoints of one run. With several processes, all of them make every call.

    Every call that writes, or waits for a write, raises UserError where the disk is full.
    """

    def __init__(self, workdir: str | Path, keep: int = 2) -> None:
        self._workdir, self._keep = Path(workdir).resolve(), keep
        self._latest = _open(self._workdir / "checkpoints", keep)
        self._best = _open(self._workdir / "best", 1)
        self._bytes = 0

    def save(self, state: TrainState, position: Mapping[str, float]) -> None:
        """Saves in the background; the arrays are copied before this returns.

        Args:
          state: of the run.
          position: "batches_seen" and other numbers that a restart needs.
        """
        step = int(state.step)
        if step in self._steps():
            return
        with self._on_disk(state):
            self._latest.save_checkpointables_async(
                step, {"state": state, "data": dict(position)}, force=True
            )

    def save_best(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Replaces the best step. `metrics` are kept with it."""
        with self._on_disk(state):
            self._best.save_checkpointables(
                int(state.step), {"state": state}, force=True, overwrite=True, metrics=metrics
            )

    def best_metrics(self) -> dict[str, float] | None:
        """Metrics that the best step was saved with; None before the first. Also None where the
        best step is damaged, which is logged; the step is moved to workdir/damaged."""
        latest = self._best.latest
        if latest is None:
            return None
        damage = _damage(self._workdir / "best" / str(latest.step)) if _first_process() else ""
        if _all_well(not damage):
            return dict(latest.metrics or {})
        log.warning("the best step, %s, is damaged (%s); forgetting it", latest.step, damage)
        self._best.close()
        self._set_aside("best", [latest.step])
        self._best = _open(self._workdir / "best", 1)
        return None

    @property
    def last_step(self) -> int | None:
        """The newest step on disk; waits for a save that is under way."""
        self.wait()
        return max(self._steps(), default=None)

    @property
    def started(self) -> bool:
        """Whether there is a step to restore."""
        return bool(self._steps())

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, float]]:
        """Loads the newest undamaged step.

        Damaged steps are logged, and moved to workdir/damaged once an earlier step is read.

        Args:
          template: arrays, or shapes with dtype and sharding; the state gets their sharding.

        Returns:
          (state, the position it was saved with).

        Raises:
          UserError: where no step can be read, or the steps are of another model.
        """
        damaged: list[int] = []
        reason = "the folder has none"
        for step in reversed(self._steps()):
            loaded, reason = self._load(step, template)
            if loaded is not None:
                if damaged:
                    self._latest.close()
                    self._set_aside("checkpoints", damaged)
                    self._latest = _open(self._workdir / "checkpoints", self._keep)
                return loaded["state"], dict(loaded["data"])
            damaged.append(step)
            log.warning("step %s is damaged (%s); taking the one before it", step, reason)
        raise UserError(
            f"{self._latest.directory}: no step can be read ({reason}). Choose a new --workdir, or "
            "remove this folder to start over."
        )

    def _steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self._latest.checkpoints]

    def _load(self, step: int, template: TrainState) -> tuple[dict[str, Any] | None, str]:
        """(what the step holds, ""), or (None, why it is damaged). Equal on all processes."""
        # One process reads the files for all.
        reason = _damage(Path(self._latest.directory) / str(step)) if _first_process() else ""
        loaded = None
        if _all_well(not reason):
            try:
                metadata = _metadata(self._latest, step)
                _check_same_model(metadata["state"], template, self._latest.directory)
                targets = {
                    "state": jax.tree.map(_abstract, template),
                    "data": metadata["data"],  # as it was saved: older versions kept less
                }
                loaded = self._latest.load_checkpointables(step, targets)
            except UserError:
                raise
            except Exception as error:  # a damaged file can make the reader raise anything
                reason = _first_line(error)
        if not _all_well(loaded is not None):
            return None, reason or "another process cannot read it"
        return loaded, ""

    def _set_aside(self, folder: str, damaged: list[int]) -> None:
        """Moves damaged steps to workdir/damaged. In their folder they would count as the newest
        steps, and later saves would be removed as older than them."""
        if _first_process():
            for step in damaged:
                target = self._workdir / "damaged" / f"{folder}-{step}"
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                (self._workdir / folder / str(step)).rename(target)
        _all_well(True)  # the other processes wait here until the steps are moved

    def wait(self) -> None:
        """Returns when every save is on disk."""
        with self._on_disk():
            self._latest.wait()

    def close(self) -> None:
        with self._on_disk():
            self._latest.close()
            self._best.close()

    def _on_disk(self, state: TrainState | None = None) -> contextlib.AbstractContextManager[None]:
        """Says what is needed where the disk is full. state: that is saved; None is the last."""
        if state is not None:
            self._bytes = sum(array.nbytes for array in jax.tree.leaves(state))
        return checkpoint_on_disk(self._workdir, self._bytes)


def _open(root: Path, keep: int) -> ocp.training.Checkpointer:
    """Opens the steps below `root` for reading and writing, and removes interrupted saves."""

    def write_hashes() -> None:
        # Orbax calls this when the files are complete and the folder still has its temporary name.
        for folder in root.glob("*.orbax-checkpoint-tmp"):
            write_json(folder / HASHES, _hashes(folder))

    context = ocp.Context()
    context.asynchronous.post_finalization_callback = write_hashes
    return ocp.training.Checkpointer(
        root,
        context=context,
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        cleanup_tmp_directories=True,
    )


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a step that no longer changes, by path inside the step's folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        # Files at the top are Orbax's metadata, which it still changes (the time of the commit).
        if path.is_file() and len(inside.parts) > 1:
            with path.open("rb") as file:
                found[inside.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _damage(folder: Path) -> str:
    """Which files differ from the hashes, in words; "" if none do or the step has no hashes."""
    try:
        known = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""  # saved by a version without hashes
    except (OSError, ValueError):
        return f"{HASHES} cannot be read"
    found = _hashes(folder)
    changed = [name for name, value in known.items() if found.get(name) != value]
    if not changed:
        return ""
    state = "is missing" if changed[0] not in found else "is not what was saved"
    return f"{changed[0]} {state}"


def _check_same_model(saved: Any, template: TrainState, directory: Any) -> None:
    """Raises UserError naming the first array that differs in name or shape."""
    here, there = _shapes(template), _shapes(saved)
    if here != there:
        name = sorted(n for n in {*here, *there} if here.get(n) != there.get(n))[0]
        raise UserError(
            f"{directory}: a checkpoint of another model: {name} has shape {there.get(name)} there "
            f"and {here.get(name)} here. Choose a new --workdir, or use the code and config that "
            "saved it."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _first_process() -> bool:
    return jax.process_index() == 0


def _all_well(well: bool) -> bool:
    """Whether `well` is true on all processes; they wait for each other here."""
    if jax.process_count() == 1:
        return well
    return bool(multihost_utils.process_allgather(np.array(well)).all())


def load_variables(workdir: str | Path, which: str = "best") -> tuple[int, dict[str, Any]]:
    """Parameters and model state of a finished or running workdir, as numpy arrays.

    Args:
      workdir: of `osteojax train`.
      which: "best" or "last".

    Returns:
      (step, {"params", "model_state", "ema_params"}). If the last step is damaged, this is logged
      and the step before it is loaded.

    Raises:
      UserError: where there is no such checkpoint, or all are damaged.
    """
    root = Path(workdir).resolve() / {"best": "best", "last": "checkpoints"}[which]
    if not root.is_dir():
        raise UserError(f"{workdir}: no {which} checkpoint. Is it the --workdir of a training run?")
    with ocp.training.Checkpointer(root) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
        if not steps:
            raise UserError(f"{root}: no finished checkpoint yet. Rerun the training command.")
        for step in reversed(steps):
            if not (damage := _damage(root / str(step))):
                try:
                    state = _load_state(checkpointer, step)
                except Exception as error:  # a damaged file can make the reader raise anything
                    damage = _first_line(error)
                else:
                    names = ("params", "model_state", "ema_params")
                    return step, {name: state[name] for name in names}
            log.warning("%s: step %s is damaged (%s)", root, step, damage)
    way_out = "Use the last checkpoint instead" if which == "best" else "Train again"
    raise UserError(f"{root}: step {steps[0]} is damaged ({damage}). {way_out}.")


def _metadata(checkpointer: ocp.training.Checkpointer, step: int) -> dict[str, Any]:
    """Shapes and dtypes of the arrays of a step. Orbax returns None if it cannot read them."""
    metadata = checkpointer.checkpointables_metadata(step).metadata
    if metadata.get("state") is None:
        raise ValueError("its metadata cannot be read")
    return metadata


def _load_state(checkpointer: ocp.training.Checkpointer, step: int) -> Any:
    metadata = _metadata(checkpointer, step)["state"]
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
    return checkpointer.load_checkpointables(step, {"state": target})["state"]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def warm_start(params: Any, source: Any, prefix: str = "backbone") -> tuple[Any, list[str]]:
    """Copies `source[prefix]` into `params[prefix]`.

    Returns:
      (params, names of the copied parameters).

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
