"""Pre-trains a study's encoders, each once for all rows, and embeds cohorts with them.

W/encoders/<encoder>-seed<k>/   a workdir of `osteojax train`; embedding-<cohort>.npy; done.json
W/tuning/<encoder>/<choice>/    one for each alternative, with the tuning seed

The last step is taken, not the best: nothing is chosen by a label. done.json records the config and
the cohort; if the study's file has changed since, the encoder is refused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from launch.configs import load_config
from launch.readouts import fits
from launch.readouts.locks import alone
from launch.readouts.plan import Encoder, ReadoutStudy
from launch.readouts.vertebrae import Truth, truth_of
from launch.studies.cohorts import Cohorts
from launch.studies.folders import finished, slug
from launch.studies.plan import Settings, with_settings
from launch.studies.runs import train_alone
from osteojax.data.cohort import PreparedCohort
from osteojax.files import atomic_path, write_json


class Encoders:
    """Makes each embedding when it is first needed; several processes may do so in one workdir.

    progress: called at the start of each step with a line of text.
    """

    def __init__(
        self, study: ReadoutStudy, workdir: Path, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self._study, self._workdir, self._progress = study, workdir, progress
        self._cohorts = Cohorts(study, workdir, progress)
        self._opened: dict[str, PreparedCohort] = {}

    def cohort(self, name: str) -> PreparedCohort:
        """A cohort of the study, simulated and prepared if it is not yet. Raises UserError."""
        if name not in self._opened:
            # Nobody waits for a cohort that is made, while another process makes the next.
            making = not self._cohorts.made(name)
            with alone(self._lock("cohorts"), wait=True) if making else nullcontext():
                self._opened[name] = PreparedCohort(self._cohorts.pool(name))
        return self._opened[name]

    def truth(self, name: str) -> Truth:
        """The truth of a cohort's vertebrae."""
        return truth_of(self.cohort(name), self._cohorts.truth(name))

    def folder(self, name: str, seed: int) -> Path:
        return self._workdir / "encoders" / f"{slug(name)}-seed{seed}"

    def _lock(self, name: str) -> Path:
        return self._workdir / "locks" / name

    def made_with(self, name: str, seed: int) -> dict[str, Any]:
        """Everything but the code that an encoder depends on."""
        encoder = self._study.encoders[name]
        return {
            "cohort": self._people(encoder.cohort),
            "config": encoder.config,
            "settings": dict(encoder.settings),
            "tune": [dict(choice) for choice in encoder.tune],
            "tuning_seed": self._study.tuning_seed if encoder.tune else None,
            "trained": encoder.trained,
            "seed": seed,
        }

    def made(self, name: str, seed: int) -> dict[str, Any] | None:
        """done.json of an encoder: seconds, settings. Raises UserError for another version's."""
        return finished(self.folder(name, seed), self.made_with(name, seed))

    def embeddings(self, name: str, seed: int, cohorts: list[str]) -> list[np.ndarray]:
        """f32[N, F] for every vertebra of each cohort's table, by an encoder that is pre-trained
        now if it is not yet.

        Raises:
          Busy: another process is at this encoder.
          UserError, Stopped: of the training.
        """
        encoder, folder = self._study.encoders[name], self.folder(name, seed)
        with alone(self._lock(folder.name)):
            found = self.made(name, seed)
            if found is None:
                found = self._make(name, encoder, seed, folder)
            paths = [folder / f"embedding-{slug(cohort)}.npy" for cohort in cohorts]
            missing = [c for c, path in zip(cohorts, paths, strict=True) if not path.is_file()]
            if missing:
                config = self._config(name, encoder, found["chosen"], seed)
                self._embed(encoder, config, folder, missing)
            return [np.load(path) for path in paths]

    def _make(self, name: str, encoder: Encoder, seed: int, folder: Path) -> dict[str, Any]:
        chosen = self._tuned(name, encoder) if encoder.tune else {}
        config = self._config(name, encoder, chosen, seed)
        began = time.perf_counter()
        if encoder.trained:
            self._train(config, encoder, folder)
        found = {
            "made_with": self.made_with(name, seed),
            "chosen": dict(chosen),
            "seconds": time.perf_counter() - began,
            "steps": config.optim.train_steps if encoder.trained else 0,
        }
        write_json(folder / "done.json", found)
        return found

    def _train(self, config: ConfigDict, encoder: Encoder, folder: Path) -> None:
        train_alone(config, folder, self.cohort(encoder.cohort).directory)
        shutil.rmtree(folder / "best", ignore_errors=True)  # the last step is what is read

    def _config(self, name: str, encoder: Encoder, chosen: Settings, seed: int) -> ConfigDict:
        settings, config = {**encoder.settings, **chosen, "seed": seed}, load_config(encoder.config)
        if "truth" in config.objective:  # configs/studies/regression.py:spacing
            simulated = self._cohorts.simulated(encoder.cohort)
            settings["objective.truth"] = str(simulated / "truth.csv")
        return with_settings(config, settings, f"encoder {name!r}")

    def _people(self, name: str) -> dict[str, Any]:
        """Options of a cohort, and of the cohort from which its splits are taken."""
        cohort = self._study.cohorts[name]
        other = self._study.cohorts.get(cohort.splits_of)
        return {**dataclasses.asdict(cohort), "splits": other and dataclasses.asdict(other)}

    def _embed(
        self, encoder: Encoder, config: ConfigDict, folder: Path, cohorts: list[str]
    ) -> None:
        """Writes the embeddings of some cohorts."""
        from osteojax import objectives
        from osteojax.objectives.encoder import image_statistics
        from osteojax.train.parallel import DataParallel

        trained_on = self.cohort(encoder.cohort)
        objective: Any = objectives.load(config, trained_on)
        devices = DataParallel.create(config.engine)
        params, state = variables(objective, config, devices, folder if encoder.trained else None)
        for name in cohorts:
            self._progress(f"embedding {name} with {folder.name}")
            cohort, image_stats = self.cohort(name), image_statistics(state)
            rows = np.arange(len(cohort))
            embedded = objective.embeddings(params, image_stats, rows, devices, cohort)
            with atomic_path(folder / f"embedding-{slug(name)}.npy") as temporary:
                np.save(temporary, embedded)

    def _tuned(self, name: str, encoder: Encoder) -> Settings:
        """The alternative whose readout of spacing is best on validation patients."""
        root = self._workdir / "tuning" / slug(name)
        scores = []
        with alone(self._lock(f"tuning-{root.name}")):
            for number, choice in enumerate(encoder.tune):
                folder = root / str(number)
                config = self._config(name, encoder, choice, self._study.tuning_seed)
                made_with = {
                    "cohort": self._people(encoder.cohort),
                    "config": json.loads(config.to_json()),
                }
                found = finished(folder, made_with)
                if found is None:
                    self._progress(f"tuning {name}: {dict(choice) or 'as it is'}")
                    self._train(config, encoder, folder)
                    self._embed(encoder, config, folder, [encoder.cohort])
                    found = {"made_with": made_with, "r": self._validated(encoder, folder)}
                    write_json(folder / "done.json", found)
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                scores.append(found["r"])
        return encoder.tune[int(np.argmax(scores))]

    def _validated(self, encoder: Encoder, folder: Path) -> float:
        """r of log spacing on validation patients, by ridge regression on training patients."""
        cohort, truth = self.cohort(encoder.cohort), self.truth(encoder.cohort)
        training, valid = cohort.rows("train"), cohort.rows("valid")
        embedded = np.load(folder / f"embedding-{slug(encoder.cohort)}.npy")
        x = fits.scaled(embedded, np.empty((len(cohort), 0)), training)
        model = fits.ridge(x[training], truth.log_spacing[training], truth.patients[training])
        return float(np.corrcoef(model.predict(x[valid]), truth.log_spacing[valid])[0, 1])


def variables(
    objective: Any, config: ConfigDict, devices: Any, workdir: Path | None
) -> tuple[Any, Any]:
    """(parameters, model state) of the last step of a workdir; without one, those with which
    `osteojax train` starts, with running statistics of the training patients' images."""
    import jax
    import jax.numpy as jnp

    from osteojax.checkpoints import load_variables
    from osteojax.data.pipeline import evaluation_batches
    from osteojax.types import TrainState

    if workdir is not None:
        _, found = load_variables(workdir, "last")
        return found["params"], found["model_state"]
    rows = objective.training_rows()[:2]
    _, example = next(evaluation_batches(objective.cohort, rows, objective.view, batch_size=2))
    # The key of osteojax.train.loop: the start is that of the run with this seed.
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)
    params, state = objective.init(key, example)
    start = devices.replicate(TrainState(jnp.int32(0), params, state, ()))
    state, _ = objective.validate(start, devices)
    return params, state
