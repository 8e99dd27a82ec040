"""Fine-tuning on some of the training patients: the objective of `configs/studies/fine_tuning.py`.

It is `osteojax.objectives.multitask` but for its training rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from launch.readouts import fits
from osteojax.objectives.multitask import Multitask

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort


class FewPatients(Multitask):
    """An `osteojax.objectives.Objective`."""

    def training_rows(self) -> np.ndarray:
        """Vertebrae of `objective.patients` training patients (0: all), as `rows_of_few` chooses
        them with the run's seed."""
        few = rows_of_few(self.cohort, self.config.objective.patients, self.config.seed)
        return np.intersect1d(super().training_rows(), few)


def rows_of_few(cohort: PreparedCohort, count: int, seed: int) -> np.ndarray:
    """i64[T] training rows of `count` patients, all for 0: those on whom frozen readouts of so many
    patients are fitted with this seed (`launch.readouts.rows`)."""
    training = cohort.rows("train")
    if not count:
        return training
    patients = cohort.table["patient_id"].to_numpy(str)[training]
    positive = cohort.labels.osteoporosis[training] == 1
    return training[fits.few_patients(patients, positive, count, [seed, 2])]


def build(config: ConfigDict, cohort: PreparedCohort) -> FewPatients:
    """The objective of `config`; see `osteojax.objectives`."""
    return FewPatients(config, cohort)
