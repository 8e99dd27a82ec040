"""The small tables from which a study's page is made, also without its workdir.

DIR/cases/<cohort>.csv   labelled vertebrae: case, and `KNOWN_COLUMNS`
DIR/rows/<row>.csv       case, and probability_s<seed>, bmd_s<seed> (g/cm^2) for every seed
DIR/told/<row>.csv       the same with every DXA scanner in "told", and the true BMD on it
DIR/seconds.csv          row, seed, seconds: wall time of a finished row

Pages are always made from these tables, so that rounding cannot make a page differ.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from launch.studies.folders import of_this_version, slug
from launch.studies.plan import Row, Study
from launch.studies.runs import KNOWN_COLUMNS, Runs, read_table
from osteojax.data.vertebrae import UNKNOWN_DEVICE
from osteojax.errors import UserError
from osteojax.files import write_csv

DIGITS = "%.9g"
ANSWERS = {"probability": "probability", "bmd": "bmd_pred_g_cm2"}
"""Column of these tables, without its seed -> column of a row's predictions."""
TRUE_BMD = "true_bmd_g_cm2"
_ANSWER = re.compile(r"(?:probability|bmd)_s(\d+)")


def keep(runs: Runs, folder: Path) -> None:
    """Writes the tables of every row that has a finished seed, in place of what `folder` holds."""
    shutil.rmtree(folder, ignore_errors=True)  # a row may have been renamed
    study, seconds = runs.study, []
    cases: dict[str, pd.DataFrame] = {}
    for row in study.rows:
        seeds = [seed for seed in study.seeds if of_this_version(runs.done, row, seed)]
        if row.like or not seeds:
            continue
        tables = {seed: runs.predicted(row, seed) for seed in seeds}
        known = tables[seeds[0]][list(KNOWN_COLUMNS)]
        known.insert(0, "case", np.arange(len(known)))
        cases.setdefault(row.cohort, known)
        rows = _joined(cases[row.cohort], tables)
        write_csv(folder / "rows" / f"{slug(row.name)}.csv", rows, DIGITS)
        seconds += [(row.name, seed, runs.seconds(row, seed)) for seed in seeds]
        if study.tells_devices(row):
            told = {seed: runs.told(row, seed) for seed in seeds}
            truth = runs.true_bmd(row)(told[seeds[0]])
            table = _joined(cases[row.cohort], told, told=told[seeds[0]]["told"])
            table.insert(2, TRUE_BMD, truth)
            write_csv(folder / "told" / f"{slug(row.name)}.csv", table, DIGITS)
    for cohort, known in cases.items():
        write_csv(folder / "cases" / f"{cohort}.csv", known, DIGITS)
    if seconds:
        table = pd.DataFrame(seconds, columns=["row", "seed", "seconds"])
        write_csv(folder / "seconds.csv", table, DIGITS)


def _joined(
    cases: pd.DataFrame, tables: Mapping[int, pd.DataFrame], **columns: pd.Series
) -> pd.DataFrame:
    """case, `columns`, and the answers of every seed; rows in the order of the first table."""
    key = ["scan_id", "level"]
    number = cases.set_index(key)["case"]
    parts: dict[str, np.ndarray] = {}
    for seed, table in tables.items():
        at = number.reindex(pd.MultiIndex.from_frame(table[key])).to_numpy()
        if "case" not in parts:
            parts = {"case": at} | {name: c.to_numpy() for name, c in columns.items()}
        if not np.array_equal(at, parts["case"]):
            raise UserError(f"seed {seed} of a row predicted other vertebrae than its first seed.")
        parts |= {f"{name}_s{seed}": table[of].to_numpy() for name, of in ANSWERS.items()}
    return pd.DataFrame(parts)


def true_bmd(told: pd.DataFrame) -> np.ndarray:
    """Of rows of `Stored.told`: true BMD on the scanner in "told", f64[N] g/cm^2; NaN for the
    unknown one."""
    return told[TRUE_BMD].to_numpy(np.float64)


class Stored:
    """Predictions of a study's finished rows, from the tables that `keep` writes."""

    def __init__(self, study: Study, folder: str | Path) -> None:
        self.study, self._folder = study, Path(folder)
        self._read: dict[tuple[str, str], pd.DataFrame] = {}

    def seeds(self, row: Row) -> list[int]:
        """Finished seeds of a row, or of the one that it is told by."""
        trained = self.study.trained(row)
        if not (self._folder / "rows" / f"{slug(trained.name)}.csv").is_file():
            return []
        found = (_ANSWER.fullmatch(str(name)) for name in self._table("rows", trained))
        return sorted({int(match[1]) for match in found if match})

    def seconds(self, row: Row, seed: int) -> float:
        """Wall time of a finished row, measured in the process that finished it."""
        return self._seconds[row.name, seed]

    @cached_property
    def _seconds(self) -> dict[tuple[str, int], float]:
        table = pd.read_csv(self._folder / "seconds.csv", dtype={"row": str})
        return {(row, int(seed)): float(s) for row, seed, s in table.itertuples(index=False)}

    def predictions(self, row: Row, seed: int) -> pd.DataFrame:
        """A row's predictions for validation, test and external vertebrae: `KNOWN_COLUMNS`,
        probability, bmd_pred_g_cm2. If the model is given another DXA scanner, this holds for test
        and external vertebrae; validation, from which thresholds come, has the true one."""
        table = self._of_seed("rows", self.study.trained(row), seed)
        if row.told == "own":
            return table
        told = self.told(self.study.trained(row), seed)
        if row.told == "unknown":
            told = told[told["told"] == UNKNOWN_DEVICE]
        else:
            known = [name for name in told["told"].unique() if name != UNKNOWN_DEVICE]
            following = dict(zip(known, known[1:] + known[:1], strict=True))
            told = told[told["told"] == told["device"].map(following)]
        return pd.concat([table[table["split"] == "valid"], told.drop(columns=["told", TRUE_BMD])])

    def told(self, row: Row, seed: int) -> pd.DataFrame:
        """Predictions for every test and external vertebra with every DXA scanner, in "told"."""
        return self._of_seed("told", row, seed)

    def _of_seed(self, kind: str, row: Row, seed: int) -> pd.DataFrame:
        """Known columns and one seed's answers under the names of a row's predictions."""
        table = self._table(kind, row)
        seeded = {f"{name}_s{seed}": of for name, of in ANSWERS.items()}
        others = [n for n in table if _ANSWER.fullmatch(str(n)) and n not in seeded]
        one = table.drop(columns=others).rename(columns=seeded)
        both = self._cases(row.cohort).merge(one, on="case", validate="one_to_many")
        if len(both) != len(table):
            raise UserError(
                f"{self._folder}/{kind}/{slug(row.name)}.csv: not the cases of "
                f"cases/{row.cohort}.csv; write both again."
            )
        return both.drop(columns="case")

    def _table(self, kind: str, row: Row) -> pd.DataFrame:
        key = kind, row.name
        if key not in self._read:
            table = read_table(self._folder / kind / f"{slug(row.name)}.csv")
            for name in table.columns.difference(["told"]):  # an empty cell is no number
                table[name] = pd.to_numeric(table[name].replace("", np.nan))
            self._read[key] = table
        return self._read[key]

    def _cases(self, cohort: str) -> pd.DataFrame:
        key = "cases", cohort
        if key not in self._read:
            path = self._folder / "cases" / f"{cohort}.csv"
            if not path.is_file():
                raise UserError(f"{path} is missing: the predictions of {cohort} cannot be scored.")
            self._read[key] = read_table(path)
        return self._read[key]
