"""The training loop: read, step, look, save. Rerunning a run resumes it.

Order of a resume: config checked -> data opened -> model initialised -> warm start -> newest
checkpoint over it -> data stream set to the steps done. Order of an iteration: the batch of step n
is dispatched, then the metrics of step n - 1 are fetched, so that the device never waits for a log.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from osteojax import __version__, objectives
from osteojax.checkpoints import Checkpoints, load_variables, warm_start
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import evaluation_batches, training_batches
from osteojax.errors import UserError
from osteojax.files import write_json
from osteojax.train.optim import adamw_direction, duration_steps, schedule
from osteojax.train.parallel import DataParallel
from osteojax.train.step import make_step
from osteojax.train.timing import Stopwatch
from osteojax.train.writer import Writer
from osteojax.types import TrainState

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | Path, data: str | Path) -> dict[str, float]:
    """Runs or resumes an experiment.

    Args:
      config: of configs/*.py.
      workdir: where config.json, manifest.json, metrics.jsonl, tensorboard/, checkpoints/ and best/
        are written.
      data: folder that `osteojax prepare` wrote.

    Returns:
      the metrics of the best validation.

    Raises:
      UserError: for what the user can mend: a config that differs from the workdir's, too few
        vertebrae, a device count that does not fit, a loss that is not finite.
    """
    workdir = Path(workdir)
    cohort = PreparedCohort(data)
    _claim(workdir, config, cohort)
    run = _Run(config, workdir, cohort)
    try:
        return run.finish()
    finally:
        run.close()


def _claim(workdir: Path, config: ConfigDict, cohort: PreparedCohort) -> None:
    """Writes the config and the manifest, or checks that they are those of an earlier start."""
    wanted = json.loads(config.to_json())
    path = workdir / "config.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))["config"]
        if differences := _differences(found, wanted):
            raise UserError(
                f"{workdir} holds a run with another config: {'; '.join(differences[:6])}. Use the "
                "same config to resume, or another --workdir."
            )
        known = (workdir / "manifest.json").read_text(encoding="utf-8")
        if known != (cohort.directory / "manifest.json").read_text(encoding="utf-8"):
            raise UserError(
                f"{workdir} was trained on another cohort than {cohort.directory}. Use the same "
                "--data to resume, or another --workdir."
            )
    elif jax.process_index() == 0:
        cohort.manifest.save(workdir)
        write_json(path, {"config": wanted, "osteojax": __version__, "data": str(cohort.directory)})


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = []
        for key in sorted({*found, *wanted}):
            parts += _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
        return parts
    return [] if found == wanted else [f"{name} was {found!r}, is {wanted!r}"]


class _Run:
    """State of one run: what `train` would otherwise pass around."""

    def __init__(self, config: ConfigDict, workdir: Path, cohort: PreparedCohort) -> None:
        self.config, self.cohort = config, cohort
        self.objective = objectives.load(config, cohort)
        self.devices = DataParallel.create(config.engine)
        self.devices.check_batch(config.batch_size)
        self.objective.check_devices(self.devices.num_devices)
        self.rows = self.objective.training_rows()
        cohort.check_no_leak(self.rows)
        if len(self.rows) == 0:
            raise UserError(
                f"{cohort.directory}: no vertebra to train on after the config's selection; the "
                f"manifest counts {cohort.manifest.counts}. See data.labelled_too and "
                "data.unlabelled_too."
            )
        self.total_steps = duration_steps(config, "train", len(self.rows))
        self.eval_steps = duration_steps(config, "eval", len(self.rows))
        self.save_steps = duration_steps(config, "save", len(self.rows))
        optimizer = self.objective.optimizer(
            adamw_direction(config), schedule(config, len(self.rows))
        )
        self.step = make_step(self.objective.loss, optimizer, self.devices, config.optim.ema_decay)
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        self.state = self._initial_state(optimizer)
        self.first_step = int(self.state.step)
        self.best = self.checkpoints.best_metrics()
        self.writer = Writer(workdir, self.first_step)
        self.key = jax.random.key(config.seed)

    def _initial_state(self, optimizer: Any) -> TrainState:
        _, example = next(
            evaluation_batches(self.cohort, self.rows[:2], self.objective.view, batch_size=2)
        )
        init_key = jax.random.fold_in(jax.random.key(self.config.seed), 2**31 - 1)
        params, model_state = self.objective.init(init_key, example)
        if self.config.get("init_from"):
            params, model_state = _take_encoder(self.config.init_from, params, model_state)
        ema = params if self.config.optim.ema_decay is not None else None
        state = TrainState(jnp.int32(0), params, model_state, optimizer.init(params), ema)
        state = self.devices.replicate(state)
        restored = self.checkpoints.restore(state)
        if restored is None:
            return state
        state, batches_seen = restored
        if batches_seen != int(state.step):
            raise UserError(
                f"checkpoint of step {int(state.step)} says that {batches_seen} batches were read: "
                "it is damaged. Remove that step's folder and rerun."
            )
        print(f"resuming at step {batches_seen} of {self.total_steps}")
        return state

    def finish(self) -> dict[str, float]:
        """Trains to the end."""
        config, first = self.config, self.first_step
        print(
            f"{config.objective.name}: {len(self.rows)} vertebrae, {self.total_steps} steps of "
            f"{config.batch_size} on {self.devices.num_devices} "
            f"{jax.devices()[0].device_kind} device(s)"
        )
        if first == 0 and config.eval_at_start:
            self._validate(0)
        batches = training_batches(
            self.cohort,
            self.rows,
            self.objective.view,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=first,
        )
        watch = Stopwatch(config.batch_size, self.devices.num_devices)
        pending: tuple[int, Any] | None = None
        progress = tqdm(
            total=self.total_steps,
            initial=first,
            desc=config.objective.name,
            unit="step",
            disable=jax.process_index() != 0,
        )
        with progress, logging_redirect_tqdm():
            for step in range(first + 1, self.total_steps + 1):
                start = time.perf_counter()
                batch = self.devices.put(next(batches))
                waited = time.perf_counter() - start
                self.state, metrics = self.step(self.state, batch, self.key)
                if pending is not None:
                    self._look(*pending, watch, progress)
                pending = step, metrics
                watch.tick(waited)
                progress.update()
                last = step == self.total_steps
                # Not just before the last one, which comes anyway.
                look = last or (
                    step % self.eval_steps == 0 and self.total_steps - step >= self.eval_steps / 2
                )
                if look or step % self.save_steps == 0:
                    self._look(*pending, watch, progress)
                    pending = None
                    with watch.pause():
                        if look:
                            self._validate(step)
                        self.checkpoints.save(self.state, step)
        self.checkpoints.wait()
        return self.best or {}

    def _look(self, step: int, metrics: Any, watch: Stopwatch, progress: tqdm) -> None:
        """Fetches a step's metrics; stops the run on a loss that is not finite; logs."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            self.writer.write(step, "train", values)
            raise UserError(
                f"the loss is {values['loss']} at step {step} (gradient norm "
                f"{values['gradient_norm']:.3g}). The last checkpoint holds the steps before; "
                "lower optim.learning_rate, or look at metrics.jsonl for when it began."
            )
        if step % self.config.log_every_steps == 0 or step == self.total_steps:
            self.writer.write(step, "train", values | watch.report())
            progress.set_postfix(loss=f"{values['loss']:.3f}")

    def _validate(self, step: int) -> None:
        """Validates, keeps the best, and puts refreshed running statistics into the state."""
        model_state, metrics = self.objective.validate(self.state, self.devices)
        self.state = dataclasses.replace(self.state, model_state=model_state)
        self.writer.write(step, "valid", metrics)
        name, sign = self.config.checkpoint.best_metric, 1.0
        if self.config.checkpoint.best_mode == "min":
            sign = -1.0
        if name not in metrics:
            raise UserError(
                f"{self.cohort.directory}: checkpoint.best_metric {name!r} cannot be computed on "
                f"the validation split ({self.cohort.manifest.counts.get('valid')}; AUROC needs "
                f"both classes). Enlarge the split, or choose one of {', '.join(sorted(metrics))}."
            )
        if step > 0 and (self.best is None or sign * metrics[name] > sign * self.best[name]):
            self.best = {"step": float(step), **metrics}
            finite = {k: v for k, v in self.best.items() if np.isfinite(v)}
            self.checkpoints.save_best(self.state, finite)

    def close(self) -> None:
        self.writer.close()
        self.checkpoints.close()


def _take_encoder(workdir: str, params: Any, model_state: Any) -> tuple[Any, Any]:
    """Warm start: the pre-trained backbone with its statistics of the image member."""
    step, source = load_variables(workdir, "best")
    params, taken = warm_start(params, source["params"])
    statistics = source["model_state"].get(
        "image_batch_stats", source["model_state"]["batch_stats"]
    )
    batch_stats, stats_taken = warm_start(model_state["batch_stats"], statistics)
    left = sorted(set(params) - {"backbone"})
    print(
        f"warm start from {workdir}, step {step}: took {len(taken)} parameters and "
        f"{len(stats_taken)} statistics of the backbone; new: {', '.join(left)}"
    )
    return params, {**model_state, "batch_stats": batch_stats}
