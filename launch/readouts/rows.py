"""One row with one training seed: embed (or share the embedding), fit, predict; or fine-tune.

W/rows/<row>-seed<k>/   predictions.csv; done.json last
W/cases/<cohort>.csv    the vertebrae that are scored
W/cohorts/<cohort>/glcm.csv   PyRadiomics' features, where a row asks for them
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.readouts import fine_tuning, fits, glcm, predictions
from launch.readouts.encoders import Encoders
from launch.readouts.locks import alone
from launch.readouts.plan import Readout, ReadoutStudy
from launch.readouts.vertebrae import Truth, ceiling_features, plain_numbers
from launch.studies.folders import finished, slug
from osteojax.files import write_json


class Rows:
    """Makes rows, with the encoders and cohorts that they need; progress as for `Encoders`."""

    def __init__(
        self, study: ReadoutStudy, workdir: Path, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self.study, self.workdir = study, workdir
        self.encoders = Encoders(study, workdir, progress)

    def folder(self, row: Readout, seed: int) -> Path:
        return self.workdir / "rows" / f"{slug(row.name)}-seed{seed}"

    def done(self, row: Readout, seed: int) -> bool:
        """Whether a row is finished. Raises UserError if another version of the study made it."""
        return finished(self.folder(row, seed), self._made_with(row, seed)) is not None

    def do(self, row: Readout, seed: int) -> None:
        """Makes a row. Raises Busy if another process is at it or its encoder; UserError,
        Stopped."""
        began, folder = time.perf_counter(), self.folder(row, seed)
        names = [row.cohort, *([row.new] if row.new else [])]
        cohorts = [self.encoders.cohort(name) for name in names]
        truths = [self.encoders.truth(name) for name in names]
        scored = [cohorts[0].rows("test"), *(np.arange(len(cohort)) for cohort in cohorts[1:])]
        if row.fine_tuning:
            with alone(self.workdir / "locks" / f"row-{folder.name}"):
                answers = fine_tuning.answers(
                    self.study, self.encoders, row, seed, self._made_with(row, seed), folder, scored
                )
        else:
            features, training = self._features(row, seed, names), cohorts[0].rows("train")
            asked = [x[rows] for x, rows in zip(features, scored, strict=True)]
            answers = _answers(self.study, row, seed, truths[0], training, features[0], asked)
        tables = []
        for place, (name, rows) in enumerate(zip(names, scored, strict=True)):
            cases = predictions.cases_of(cohorts[place], truths[place], rows)
            predictions.write(self.workdir / "cases" / f"{name}.csv", cases)
            tables.append(_of_cases(name, cases, answers[place]))
        predictions.write(folder / "predictions.csv", pd.concat(tables))
        seconds = time.perf_counter() - began
        write_json(
            folder / "done.json", {"made_with": self._made_with(row, seed), "seconds": seconds}
        )

    def _features(self, row: Readout, seed: int, names: list[str]) -> list[np.ndarray]:
        """f64[N, F] for every vertebra of each cohort, scaled by training patients of the first."""
        embedding: np.ndarray | None = None
        if row.encoder:
            embedding = np.concatenate(self.encoders.embeddings(row.encoder, seed, names))
        cohorts = [self.encoders.cohort(name) for name in names]
        numbers = [self._numbers(row, name) for name in names]
        x = fits.scaled(embedding, np.concatenate(numbers), cohorts[0].rows("train"))
        return np.split(x, np.cumsum([len(cohort) for cohort in cohorts])[:-1])

    def _numbers(self, row: Readout, name: str) -> np.ndarray:
        """f64[N, P]: the features of a row beside its embedding, of a cohort; P may be 0."""
        cohort = self.encoders.cohort(name)
        if row.ceiling == "glcm":
            with alone(self.workdir / "locks" / f"glcm-{slug(name)}", wait=True):
                return glcm.features(cohort, self.workdir / "cohorts" / name / "glcm.csv")
        if row.ceiling:
            return ceiling_features(row.ceiling, cohort, self.encoders.truth(name))
        return plain_numbers(cohort) if row.numbers else np.empty((len(cohort), 0))

    def predicted(self, row: Readout, seed: int) -> pd.DataFrame:
        """A finished row's cohort, case, and a column for every readout."""
        return pd.read_csv(self.folder(row, seed) / "predictions.csv", dtype={"cohort": str})

    def _made_with(self, row: Readout, seed: int) -> dict[str, Any]:
        """Everything but the code that a row depends on."""
        own = {
            name: value
            for name, value in dataclasses.asdict(row).items()
            if name not in ("name", "part", "seeds", "fine_tuning")
        }
        if row.fine_tuning:  # absent otherwise: earlier rows were made without this field
            own["fine_tuning"] = dataclasses.asdict(self.study.fine_tunings[row.fine_tuning])
        cohorts = self.study.cohorts
        people = [dataclasses.asdict(cohorts[name]) for name in (row.cohort, row.new) if name]
        encoder = self.encoders.made_with(row.encoder, seed) if row.encoder else None
        few = list(self.study.few) if row.few else []
        return {**own, "encoder": encoder, "cohorts": people, "few": few, "seed": seed}


def _answers(
    study: ReadoutStudy,
    row: Readout,
    seed: int,
    truth: Truth,
    training: np.ndarray,
    features: np.ndarray,
    asked: list[np.ndarray],
) -> list[dict[str, np.ndarray]]:
    """Readout -> f64[M] for each of the features f64[M, F] in `asked`.

    Args:
      truth, features: f64[N, F], of the cohort that is fitted on.
      training: i64[T] rows of it.
    """
    x, patients, targets = features[training], truth.patients[training], training
    if row.shuffled:
        targets = np.random.default_rng([seed, 1]).permutation(training)
    spacing, label, bmd, number = (
        values[targets]
        for values in (truth.log_spacing, truth.label, truth.bmd_g_cm2, truth.texture_number)
    )
    found: list[dict[str, np.ndarray]] = [{} for _ in asked]
    for count in (0, *(study.few if row.few else ())):
        among = np.ones(len(training), bool)
        if count:
            among = fits.few_patients(patients, label == 1, count, [seed, 2])
        name = str(count or "")
        known, measured = among & (label >= 0), among & ~np.isnan(bmd)
        models = {"spacing": fits.ridge(x[among], spacing[among], patients[among])}
        if not count:
            models["bmd"] = fits.ridge(x[measured], bmd[measured], patients[measured])
            textured = ~np.isnan(number)
            if textured.any():
                models["number"] = fits.ridge(x[textured], number[textured], patients[textured])
        classifier = None
        if len(set(label[known])) == 2:
            classifier = fits.logistic(x[known], label[known], patients[known])
        for answers, values in zip(found, asked, strict=True):
            answers |= {f"{readout}{name}": m.predict(values) for readout, m in models.items()}
            if classifier is not None:
                answers[f"label{name}"] = classifier.predict_proba(values)[:, 1]
    return found


def _of_cases(cohort: str, cases: pd.DataFrame, answers: dict[str, np.ndarray]) -> pd.DataFrame:
    """cohort, case, and the readouts; without a probability or a BMD where no DXA result is there
    to score it."""
    table = pd.DataFrame({"cohort": cohort, "case": cases["case"], **answers})
    for readout, known in (("label", "osteoporosis"), ("bmd", "bmd_g_cm2")):
        columns = [name for name in answers if name.startswith(readout)]
        table.loc[cases[known].isna().to_numpy(), columns] = np.nan
    return table
