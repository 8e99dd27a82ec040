"""The cohorts of a study, simulated and prepared with options of the `osteojax` verbs.

W/cohorts/<name>/simulated/    only for the first cohort with these options and seed
W/cohorts/<name>/cohort.csv    with a split column, if the study fixes splits
W/cohorts/<name>/pool/         the prepared folder on which rows train
W/cohorts/<name>/made.json     its options, written when it is finished
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import pandas as pd

from data_prep.arguments import parsed
from launch.studies.plan import Cohort
from osteojax.errors import UserError
from osteojax.files import atomic_path, write_json


def read_truth(path: str | Path) -> pd.DataFrame:
    """The simulator's `truth.csv`; ids and levels are text."""
    return pd.read_csv(path, dtype=dict.fromkeys(("patient_id", "scan_id", "level"), str))


class HasCohorts(Protocol):
    """A study of either kind, as far as its cohorts go."""

    @property
    def cohorts(self) -> Mapping[str, Cohort]: ...


class Cohorts:
    """Makes each cohort when it is first needed.

    progress: called at the start of each step with the equivalent `osteojax` command.
    """

    def __init__(
        self, study: HasCohorts, workdir: Path, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self._study, self._root, self._progress = study, workdir / "cohorts", progress

    def made(self, name: str) -> bool:
        """Whether a cohort is simulated and prepared, with whatever options."""
        return (self._root / name / "made.json").is_file()

    def pool(self, name: str) -> Path:
        """The prepared folder of a cohort. Raises UserError."""
        cohort, folder = self._study.cohorts[name], self._root / name
        made, pool = folder / "made.json", folder / "pool"
        wanted = {
            "simulate": cohort.simulate,
            "prepare": cohort.prepare,
            "seed": cohort.seed,
            "splits_of": cohort.splits_of,
            "hold_out_device": cohort.hold_out_device,
        }
        if made.is_file():
            if json.loads(made.read_text(encoding="utf-8")) != wanted:
                raise UserError(
                    f"{folder} was made with other options than the study's. Choose another "
                    "--workdir, or remove the folder and all that was trained on it."
                )
            return pool
        raw = self.simulated(name)
        tables = ["--cohort", str(self._table(name, raw)), "--dxa", str(raw / "dxa.csv")]
        # Scans that fail are in its failures.csv, and the others are prepared.
        self._do(name, prepare, [*tables, "--out", str(pool), *shlex.split(cohort.prepare)])
        write_json(made, wanted)
        return pool

    def simulated(self, name: str) -> Path:
        """The simulated folder of a cohort; cohorts with equal options and seed share it."""
        cohort = self._study.cohorts[name]
        owner = next(n for n, c in self._study.cohorts.items() if _same_people(c, cohort))
        raw = self._root / owner / "simulated"
        if not (raw / "truth.csv").is_file():
            seed = ["--seed", str(cohort.seed), "--workers", str(os.cpu_count() or 1)]
            options = [*shlex.split(cohort.simulate), *seed]
            self._do(name, simulate, ["--out", str(raw), *options])
        return raw

    def truth(self, name: str) -> pd.DataFrame:
        """`truth.csv`: BMD of every vertebra on every DXA scanner. Only studies read it."""
        return read_truth(self.simulated(name) / "truth.csv")

    def _table(self, name: str, raw: Path) -> Path:
        """The cohort table to prepare: the simulator's, or one with the study's splits."""
        cohort = self._study.cohorts[name]
        if not (cohort.splits_of or cohort.hold_out_device):
            return raw / "cohort.csv"
        table = pd.read_csv(raw / "cohort.csv", dtype=str, keep_default_na=False)
        if "split" not in table:
            table["split"] = ""
        if cohort.splits_of:
            other = pd.read_csv(self.pool(cohort.splits_of) / "vertebrae.csv", dtype=str)
            splits = dict(zip(other["patient_id"], other["split"], strict=True))
            table["split"] = table["patient_id"].map(splits).fillna(table["split"])
        if cohort.hold_out_device:
            dxa = pd.read_csv(raw / "dxa.csv", dtype=str)
            out = set(dxa.loc[dxa["device"] == cohort.hold_out_device, "patient_id"])
            if not out:
                raise UserError(
                    f"cohort {name}: nobody has a result of device {cohort.hold_out_device!r}; the "
                    f"cohort's devices are {', '.join(sorted(set(dxa['device'])))}."
                )
            table.loc[table["patient_id"].isin(out), "split"] = "external"
        for column in ("ct", "mask"):  # paths are relative to the simulated folder
            table[column] = [str((raw / path).resolve()) for path in table[column]]
        path = self._root / name / "cohort.csv"
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
        return path

    def _do(self, name: str, step: Callable[..., None], words: list[str]) -> None:
        try:
            step(words, self._progress)
        except UserError as error:
            raise UserError(f"cohort {name}: {error}") from error


def simulate(words: list[str], progress: Callable[[str], None]) -> None:
    """Does the same as `osteojax simulate` with these words. Raises UserError."""
    from data_prep.simulate import options
    from data_prep.simulate.cohort_writer import simulate_cohort

    progress(f"osteojax simulate {shlex.join(words)}")
    args = parsed("osteojax simulate", words, options.add_arguments)
    simulate_cohort(args.out, options.settings(args), args.patients, args.workers)


def prepare(words: list[str], progress: Callable[[str], None]) -> None:
    """Does the same as `osteojax prepare` with these words. Raises UserError."""
    from data_prep import prepare
    from data_prep.kinds import DEFAULT_KIND, recipe_module

    progress(f"osteojax prepare {shlex.join(words)}")
    of_kind = recipe_module(DEFAULT_KIND).add_arguments
    prepare.prepare(parsed("osteojax prepare", words, prepare.add_arguments, of_kind))


def _same_people(first: Cohort, second: Cohort) -> bool:
    return (first.simulate, first.seed) == (second.simulate, second.seed)
