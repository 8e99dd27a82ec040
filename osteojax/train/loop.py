"""The training loop: read, step, fetch metrics, validate, save. Rerunning a run resumes it.

Order of a resume: config checked -> data opened -> model initialised -> warm start -> newest
checkpoint over it -> data stream set to the steps done. Order of an iteration: step n is
dispatched, then the metrics of step n - 1 are fetched, so that the device never waits for a log.
With resident data a dispatch may be several steps; logs, validations and saves come after it.

With several processes all of them run this; only the first one writes files other than checkpoints.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import Signals
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from osteojax import objectives
from osteojax.backend import check_devices
from osteojax.checkpoints import Checkpoints, load_variables, warm_start
from osteojax.data.cohort import PreparedCohort, open_cohort
from osteojax.data.pipeline import evaluation_batches
from osteojax.data.resident import Layout
from osteojax.errors import UserError
from osteojax.train.feed import Feed, dispatches
from osteojax.train.health import Health, keep_evidence
from osteojax.train.optim import adamw_direction, duration_steps, schedule
from osteojax.train.parallel import DataParallel
from osteojax.train.placement import choose_placement
from osteojax.train.profile import Profile
from osteojax.train.step import make_step, make_steps
from osteojax.train.stop import Stopped, StopSignals
from osteojax.train.timing import Start, Stopwatch, device_memory
from osteojax.train.workdir import check_processes, claim
from osteojax.train.writer import Writer
from osteojax.types import Metrics, TrainState


def train(
    config: ConfigDict, workdir: str | Path, data: str | Path, *, profile: bool = False
) -> dict[str, float]:
    """Runs or resumes an experiment.

    Args:
      config: of configs/*.py.
      workdir: where config.json, manifest.json, metrics.jsonl, tensorboard/, checkpoints/ and best/
        are written.
      data: folder that `osteojax prepare` wrote.
      profile: write a trace of a few steps to workdir/profile.

    Returns:
      the metrics of the best validation.

    Raises:
      UserError: for mistakes that the user can correct: a config that differs from the workdir's,
        too few items, a device count that does not fit, a loss that is not finite or diverges.
      Stopped: after SIGTERM or SIGINT; everything is saved.
    """
    workdir = Path(workdir)
    start = Start()
    cohort = open_cohort(data)
    check_devices()
    check_processes(config, cohort)
    config = claim(workdir, config, cohort)
    run = _Run(config, workdir, cohort)
    try:
        best = run.finish(start, profile)
    except BaseException:
        run.close(failed=True)
        raise
    run.close()
    return best


class _Run:
    """State of one run."""

    def __init__(self, config: ConfigDict, workdir: Path, cohort: PreparedCohort) -> None:
        self.config, self.cohort = config, cohort
        self.objective = objectives.load(config, cohort)
        self.devices = DataParallel.create(config.engine)
        self.devices.check_batch(config.batch_size)
        self.objective.check_devices(self.devices.num_devices)
        self.rows = self.objective.training_rows()
        cohort.check_no_leak(self.rows)
        if len(self.rows) < config.batch_size:
            raise UserError(
                f"{cohort.directory}: {len(self.rows)} {cohort.kind.ITEMS} to train on after the "
                f"config's selection, and batch_size is {config.batch_size}; the manifest counts "
                f"{cohort.manifest.counts}. See data.labelled_too and data.unlabelled_too."
            )
        self.total_steps = duration_steps(config, "train", len(self.rows))
        self.eval_steps = duration_steps(config, "eval", len(self.rows))
        self.save_steps = duration_steps(config, "save", len(self.rows))
        self.optimizer = self.objective.optimizer(
            adamw_direction(config), schedule(config, len(self.rows))
        )
        self.workdir = workdir
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        self.position: dict[str, float] = {}
        self.pending: tuple[int, Any, np.ndarray] | None = None
        self.state = self._initial_state(self.optimizer)
        # This comes after the state was placed, so that the memory still free is known.
        self.placement = choose_placement(
            config,
            Layout.of(self.rows, self.objective.view, cohort.manifest, self.devices.num_devices),
            self.devices.engine,
        )
        self.health = Health(self.objective.diverges_above, self.position)
        self.first_step = int(self.state.step)
        self.best = self.checkpoints.best_metrics()
        self.writer = Writer(workdir, self.first_step)
        self.key = jax.random.key(config.seed)

    def _initial_state(self, optimizer: optax.GradientTransformation) -> TrainState:
        if not self.checkpoints.started:
            return self.devices.replicate(self._new_state(optimizer, self.config.get("init_from")))
        # A resumed run needs only shapes to restore into, so parameters are not initialised.
        shapes = jax.eval_shape(lambda: self._new_state(optimizer, None))
        restored = self.checkpoints.restore(self.devices.replicated_like(shapes))
        state, self.position = restored
        if self.position["batches_seen"] != int(state.step):
            raise UserError(
                f"checkpoint of step {int(state.step)} says that {self.position['batches_seen']} "
                "batches were read: it is damaged. Remove that step's folder and rerun."
            )
        _say(f"resuming at step {int(state.step)} of {self.total_steps}")
        return state

    def _new_state(
        self, optimizer: optax.GradientTransformation, init_from: str | None
    ) -> TrainState:
        _, example = next(
            evaluation_batches(self.cohort, self.rows[:2], self.objective.view, batch_size=2)
        )
        init_key = jax.random.fold_in(jax.random.key(self.config.seed), 2**31 - 1)
        params, model_state = self.objective.init(init_key, example)
        if init_from:
            params, model_state = _take_encoder(init_from, params, model_state)
        ema = params if self.config.optim.ema_decay is not None else None
        return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), ema)

    def finish(self, start: Start, wants_profile: bool) -> dict[str, float]:
        """Trains to the end."""
        config, first = self.config, self.first_step
        _say(
            f"{config.objective.name}: {len(self.rows)} {self.cohort.kind.ITEMS}, "
            f"{self.total_steps} steps of {config.batch_size} on {self.devices.num_devices} "
            f"{jax.devices()[0].device_kind} device(s) in {jax.process_count()} process(es)"
        )
        _say(self.placement.reason)
        if (first == 0 and config.eval_at_start) or self.position.get("owes_validation"):
            self._validate(first)
        feed = Feed(self.cohort, self.objective.view, self.devices, self.placement.layout)
        feed.start(self.rows, config.batch_size, config.seed, first)
        advance = self._program(feed)
        profile = Profile(self.workdir, first, self.total_steps, wants_profile)
        metrics: Any = None
        with self._bar(), logging_redirect_tqdm(), StopSignals() as signals:
            for step, count in self._dispatches():
                profile.before(step, metrics)
                before = time.perf_counter()
                batch, rows = feed.next(count)
                waited = time.perf_counter() - before
                self.state, metrics = advance(self.state, batch, self.key)
                if step - count == first:
                    self._tell_first_step(start, metrics)
                if profile.after(step, metrics):
                    _say(f"wrote a trace to {self.workdir / 'profile'}")
                self._fetch_metrics()
                self.pending = step, metrics, rows
                self.watch.tick(waited, count)
                self.progress.update(count)
                self._save_or_stop(step, signals.received())
        self.checkpoints.wait()
        return self.best or {}

    def _program(self, feed: Feed) -> Callable[..., tuple[TrainState, Metrics]]:
        """(state, what `feed` gives, run key) -> (state, metrics of each step)."""
        parts = self.objective.loss, self.optimizer, self.devices, self.config.optim.ema_decay
        if self.devices.engine == "pmap":
            return make_step(*parts)
        steps = make_steps(*parts, feed.gather)
        return lambda state, batch, key: steps(state, feed.data, batch, key)

    def _dispatches(self) -> Iterator[tuple[int, int]]:
        every = self.eval_steps, self.save_steps
        per_dispatch = self.placement.steps_per_dispatch
        return dispatches(self.first_step, self.total_steps, per_dispatch, every)

    def _bar(self) -> tqdm:
        """The progress bar, whose clock starts now."""
        self.began = time.perf_counter()
        self.watch = Stopwatch(self.config.batch_size, self.devices.num_devices)
        self.progress = tqdm(
            total=self.total_steps,
            initial=self.first_step,
            desc=self.config.objective.name,
            unit="step",
            disable=jax.process_index() != 0,
        )
        return self.progress

    def _tell_first_step(self, start: Start, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        values = start.report() | device_memory()
        self.writer.write(self.first_step + 1, "start", values)
        memory = values.get("device_memory_gib")
        used = "" if memory is None else f", device memory {memory:.2f} GiB"
        _say(
            f"first step after {values['time_to_first_step_s']:.1f} s, of which compilation "
            f"{values['compile_s']:.1f} s{used}"
        )

    def _save_or_stop(self, step: int, signal: Signals | None) -> None:
        """Validates, saves or stops, if due after this step."""
        last = step == self.total_steps
        # The last step is validated in any case; a validation shortly before it is left out.
        validate = last or (
            step % self.eval_steps == 0 and self.total_steps - step >= self.eval_steps / 2
        )
        stop = signal is not None and not last
        if not (validate or stop or step % self.save_steps == 0):
            return
        self._fetch_metrics()
        with self.watch.pause():
            # A cluster that stops a job does not wait for a validation; the resumed run does it.
            if validate and not stop:
                self._validate(step)
            hours = (time.perf_counter() - self.began) / 3600
            self.checkpoints.save(
                self.state,
                {
                    "batches_seen": step,
                    "hours": self.position.get("hours", 0.0) + hours,
                    "owes_validation": int(validate and stop),
                    **self.health.to_save(),
                },
            )
        if stop and signal is not None:
            self.checkpoints.wait()
            raise Stopped(step, signal)

    def _fetch_metrics(self) -> None:
        """Fetches the metrics of the last dispatch, stops a run that has diverged, and logs."""
        if self.pending is None:
            return
        last, metrics, rows = self.pending
        self.pending = None
        fetched = {name: np.atleast_1d(v) for name, v in jax.device_get(metrics).items()}
        for place, step in enumerate(range(last - len(rows) + 1, last + 1)):
            values = {name: float(steps[place]) for name, steps in fetched.items()}
            if verdict := self.health.verdict(step, values):
                self.writer.write(step, "train", values)
                raise UserError(self._give_up(step, verdict, rows[place]))
            if step % self.config.log_every_steps == 0 or step == self.total_steps:
                self.writer.write(step, "train", values | self.watch.report() | device_memory())
                self.progress.set_postfix(loss=f"{values['loss']:.3f}")

    def _give_up(self, step: int, verdict: str, rows: np.ndarray) -> str:
        """Writes the evidence; returns the message for the user."""
        last = self.checkpoints.last_step
        good = f"The last good checkpoint is step {last}" if last else "No step was saved before it"
        evidence = self.workdir / "evidence" / f"step-{step}.json"
        if jax.process_index() == 0:
            keep_evidence(evidence, step, verdict, self.health, self.state, rows)
        return (
            f"{verdict}. {good}; the last metrics are in {evidence}. A rerun goes the same way: "
            "start another --workdir with a lower optim.learning_rate."
        )

    def _validate(self, step: int) -> None:
        """Validates, keeps the best, and puts refreshed running statistics into the state."""
        model_state, metrics = self.objective.validate(self.state, self.devices)
        metrics = _of_first_process(metrics)
        self.state = dataclasses.replace(self.state, model_state=model_state)
        self.writer.write(step, "valid", metrics)
        metrics = {"step": float(step), **metrics}  # "step" keeps the last
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
            self.best = metrics
            finite = {k: v for k, v in self.best.items() if np.isfinite(v)}
            self.checkpoints.save_best(self.state, finite)

    def close(self, failed: bool = False) -> None:
        """Closes files. failed: whether this process ended by an exception. Other processes may
        not have raised it, so waiting for them could take for ever."""
        self.writer.close()
        if not failed or jax.process_count() == 1:
            self.checkpoints.close()


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text)


def _of_first_process(metrics: dict[str, float]) -> dict[str, float]:
    """Process 0's numbers on all processes. Without this, a difference in the last bit could make
    one process save the best step and another not."""
    if jax.process_count() == 1:
        return metrics
    # The numbers are sent as bits, because jax would round them to float32.
    bits = np.array(list(metrics.values()), np.float64).view(np.uint32)
    same = np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
    return dict(zip(metrics, same.tolist(), strict=True))


def _take_encoder(workdir: str, params: Any, model_state: Any) -> tuple[Any, Any]:
    """Warm start: the pre-trained backbone with its statistics of the image member."""
    step, source = load_variables(workdir, "best")
    params, taken = warm_start(params, source["params"])
    statistics = source["model_state"].get(
        "image_batch_stats", source["model_state"]["batch_stats"]
    )
    batch_stats: Any = model_state["batch_stats"]
    stats_taken: list[str] = []
    if "backbone" in batch_stats:  # group normalisation keeps none
        batch_stats, stats_taken = warm_start(batch_stats, statistics)
    left = sorted(set(params) - {"backbone"})
    _say(
        f"warm start from {workdir}, step {step}: took {len(taken)} parameters and "
        f"{len(stats_taken)} statistics of the backbone; new: {', '.join(left)}"
    )
    return params, {**model_state, "batch_stats": batch_stats}
