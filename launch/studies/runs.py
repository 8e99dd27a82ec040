"""One row with one training seed: pre-train (or share it), tune, fine-tune, predict.

W/pretrain/<pre-training>@<cohort>-seed<k>/   a workdir of `osteojax train`, shared by rows
W/tuning/<row>/<choice>/                      workdirs on the tuning cohort; choice.json
W/rows/<row>-seed<k>/                         a workdir; predictions.csv, told.csv; done.json last

done.json records the settings of the row. If the study's file has changed since, the row is
refused; a finished row is not done again.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from launch.configs import load_config
from launch.studies.ceilings import ceiling_predictions, true_values
from launch.studies.cohorts import Cohorts
from launch.studies.folders import finished, slug
from launch.studies.plan import Row, Settings, Study, with_settings
from osteojax.evaluation import predictions
from osteojax.files import write_csv, write_json

SPLITS = ("valid", "test", "external")
KNOWN_COLUMNS = (
    "patient_id", "scan_id", "site", "split", "level", "level_class", "device", "sex", "age",
    "osteoporosis", "bmd_g_cm2",
)  # fmt: skip


class Runs:
    """Trains rows, with the cohorts and pre-trainings that they need; progress as for `Cohorts`."""

    def __init__(
        self, study: Study, workdir: Path, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self.study, self.workdir = study, workdir
        self.cohorts = Cohorts(study, workdir, progress)

    def folder(self, row: Row, seed: int) -> Path:
        return self.workdir / "rows" / f"{slug(row.name)}-seed{seed}"

    def done(self, row: Row, seed: int) -> bool:
        """Whether a row is finished. Raises UserError if another version of the study made it."""
        return finished(self.folder(row, seed), self._identity(row, seed)) is not None

    def seconds(self, row: Row, seed: int) -> float:
        """Wall time of a finished row, measured in the process that finished it."""
        done = self.folder(row, seed) / "done.json"
        return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])

    def do(self, row: Row, seed: int) -> None:
        """Trains and predicts, or resumes a killed row. Raises UserError, Stopped."""
        from osteojax.data.cohort import PreparedCohort

        began = time.perf_counter()
        folder = self.folder(row, seed)
        data = self.cohorts.pool(row.cohort)
        if row.ceiling:
            cohort = PreparedCohort(data)
            rows = cohort.rows(*SPLITS, labelled=True)
            truth = self.cohorts.truth(row.cohort)
            answers = ceiling_predictions(row.ceiling, cohort, truth, rows)
            write_csv(folder / "predictions.csv", _known(cohort, rows).assign(**answers))
            best: dict[str, float] = {}
        else:
            best = self._fine_tune(row, seed, folder, data)
            self._predict(row, folder, data)
        seconds = time.perf_counter() - began
        write_json(
            folder / "done.json",
            {"made_with": self._identity(row, seed), "seconds": seconds, "best": best},
        )
        _keep_little(folder)

    def _identity(self, row: Row, seed: int) -> dict[str, Any]:
        """Everything but the code that a row's results depend on."""
        study = self.study
        pre = study.pretrainings.get(row.pretrain)
        return {
            "cohort": self._people(row.cohort),
            "pretrain": row.pretrain and {**study.pretrain_settings, **(pre or {})},
            "pretrained_on": row.pretrain and self._people(row.pretrained_on or row.cohort),
            "configs": [study.pretrain_config, study.finetune_config],
            "settings": {**study.finetune_settings, **row.settings},
            "tune": [dict(choice) for choice in row.tune],
            "told": study.tells_devices(row),
            "ceiling": row.ceiling,
            "seed": seed,
        }

    def _people(self, name: str) -> dict[str, Any]:
        """Options of a cohort, and of the cohort from which its splits are taken."""
        cohort = self.study.cohorts[name]
        other = self.study.cohorts.get(cohort.splits_of)
        return {
            "name": name,
            **dataclasses.asdict(cohort),
            "splits": other and dataclasses.asdict(other),
        }

    def _fine_tune(self, row: Row, seed: int, folder: Path, data: Path) -> dict[str, float]:
        pretrained = self._pretrained(row, seed, row.cohort)
        chosen = self._tuned(row) if row.tune else {}
        config = self._finetune_config(row, chosen, seed, pretrained)
        best = train_alone(config, folder, data)
        return {"step": best.get("step", 0.0), "best": best[config.checkpoint.best_metric]}

    def _finetune_config(
        self, row: Row, chosen: Settings, seed: int, pretrained: Path | None
    ) -> ConfigDict:
        settings = {**self.study.finetune_settings, **row.settings, **chosen, "seed": seed}
        if pretrained is not None:
            settings["init_from"] = str(pretrained)
        config = load_config(self.study.finetune_config, [])
        return with_settings(config, settings, f"row {row.name!r}")

    def _pretrained(self, row: Row, seed: int, cohort: str) -> Path | None:
        """The workdir of the finished pre-training that a row starts from."""
        if not row.pretrain:
            return None
        data = row.pretrained_on or cohort
        folder = self.workdir / "pretrain" / f"{slug(row.pretrain)}@{slug(data)}-seed{seed}"
        settings = {**self.study.pretrain_settings, **self.study.pretrainings[row.pretrain]}
        config = with_settings(
            load_config(self.study.pretrain_config, []),
            {**settings, "seed": seed},
            f"pre-training {row.pretrain!r}",
        )
        made_with = {"cohort": self._people(data), "config": json.loads(config.to_json())}
        if finished(folder, made_with):
            return folder
        began = time.perf_counter()
        best = train_alone(config, folder, self.cohorts.pool(data))
        write_json(
            folder / "done.json",
            {
                "made_with": made_with,
                "seconds": time.perf_counter() - began,
                "best": {k: v for k, v in best.items() if np.isfinite(v)},
            },
        )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # rows start from best/
        return folder

    def _tuned(self, row: Row) -> Settings:
        """The choice with the best validation on the tuning cohort, at the tuning seed."""
        folder = self.workdir / "tuning" / slug(row.name)
        scores = []
        for number, choice in enumerate(row.tune):
            place = folder / str(number)
            config = self._finetune_config(row, choice, self.study.tuning_seed, None)
            cohort = self.study.tuning_cohort
            made_with = {"cohort": self._people(cohort), "config": json.loads(config.to_json())}
            found = finished(place, made_with)
            if found is None:
                best = train_alone(config, place, self.cohorts.pool(cohort))
                sign = -1.0 if config.checkpoint.best_mode == "min" else 1.0
                score = sign * best[config.checkpoint.best_metric]
                found = {"made_with": made_with, "choice": dict(choice), "score": score}
                write_json(place / "done.json", found)
                _keep_little(place)
            scores.append(found["score"])
        return row.tune[int(np.argmax(scores))]

    def _predict(self, row: Row, folder: Path, data: Path) -> None:
        """Writes predictions.csv, and told.csv with other DXA scanners if the study needs it."""
        from osteojax import objectives
        from osteojax.checkpoints import load_variables
        from osteojax.data.cohort import PreparedCohort
        from osteojax.export.write import load_run
        from osteojax.train.parallel import DataParallel

        config, _ = load_run(folder)
        cohort = PreparedCohort(data)
        objective: Any = objectives.load(config, cohort)
        devices = DataParallel.create(config.engine)
        _, variables = load_variables(folder, "best")
        params = variables["ema_params"] or variables["params"]
        state = variables["model_state"]
        rows = cohort.rows(*SPLITS, labelled=True)
        answers = _answers(cohort, objective.predict(params, state, rows, devices))
        write_csv(folder / "predictions.csv", _known(cohort, rows).assign(**answers))
        if not self.study.tells_devices(row):
            return
        rows = cohort.rows("test", "external", labelled=True)
        tables = []
        for number, name in enumerate(cohort.about.devices):
            told = np.full(len(cohort.table), number, np.int32)
            outputs = objective.predict(params, state, rows, devices, told)
            tables.append(_known(cohort, rows).assign(told=name, **_answers(cohort, outputs)))
        write_csv(folder / "told.csv", pd.concat(tables))

    def predicted(self, row: Row, seed: int) -> pd.DataFrame:
        """predictions.csv of a trained row: its answers for validation, test and external
        vertebrae."""
        return read_table(self.folder(row, seed) / "predictions.csv")

    def told(self, row: Row, seed: int) -> pd.DataFrame:
        """told.csv: predictions for every test and external vertebra with every DXA scanner."""
        return read_table(self.folder(row, seed) / "told.csv")

    def true_bmd(self, row: Row) -> Callable[[pd.DataFrame], np.ndarray]:
        """A function: rows of told.csv -> true BMD on the scanner in `told`, f64[N] g/cm^2."""
        truth = self.cohorts.truth(row.cohort)

        def of(table: pd.DataFrame) -> np.ndarray:
            places = (table["scan_id"], table["level"], table["told"])
            return true_values(truth, *places, "bmd_g_cm2")

        return of


def read_table(path: Path) -> pd.DataFrame:
    """A table that a row wrote; text columns as text, empty ones as ""."""
    text = ("patient_id", "scan_id", "site", "split", "level", "device", "sex", "told")
    numbers = [name for name in KNOWN_COLUMNS if name not in text]
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,
        na_values={name: [""] for name in numbers},
    )


def train_alone(config: ConfigDict, workdir: Path, data: Path) -> dict[str, float]:
    """Runs `osteojax train` in this process, and clears its compiled programs."""
    import jax

    from osteojax.train.loop import train

    try:
        return train(config, workdir, data)
    finally:
        jax.clear_caches()
        gc.collect()


def _known(cohort: Any, rows: np.ndarray) -> pd.DataFrame:
    return cohort.table.iloc[rows][list(KNOWN_COLUMNS)].reset_index(drop=True)


def _answers(cohort: Any, outputs: dict[str, np.ndarray]) -> pd.DataFrame:
    from osteojax.objectives.diagnosis import in_units

    return predictions.from_outputs(in_units(outputs, cohort.manifest))


def _keep_little(folder: Path) -> None:
    """Removes the last checkpoints of a finished run, which is not resumed; a study has a hundred
    runs."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
