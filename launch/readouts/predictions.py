"""The small tables from which a study's page is made, also without its workdir.

DIR/cases/<cohort>.csv    scored vertebrae: case, patient_id, level, and what is known of them
DIR/rows/<row>.csv        cohort, case, and a column <readout>_s<seed> for every readout and seed
DIR/encoders.csv          encoder, seed, steps, minutes
DIR/environment.json      versions and hardware of the last process that wrote here

A readout is "spacing" (log mm), "label" (probability), "bmd" (g/cm^2) or "number" (the texture
number, ln HU^2), followed by the number of patients that it was fitted on, where they are few
("spacing12"). Pages are always made from these tables, so that rounding cannot make a page differ.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.readouts.plan import Readout, ReadoutStudy
from launch.readouts.vertebrae import Truth
from launch.studies.folders import slug
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from osteojax.files import write_csv

DECIMALS = "%.4f"
KNOWN = (
    "case", "patient_id", "level", "log_spacing", "osteoporosis", "bmd_g_cm2", "texture_number",
)  # fmt: skip
_READOUT = re.compile(r"(spacing|label|bmd|number)(\d*)_s(\d+)")


def cases_of(cohort: PreparedCohort, truth: Truth, rows: np.ndarray) -> pd.DataFrame:
    """`KNOWN` columns of some rows of a cohort's table, cases numbered in their order."""
    label = pd.array(truth.label[rows], dtype="Int64")
    label[truth.label[rows] < 0] = pd.NA
    return pd.DataFrame(
        {
            "case": np.arange(len(rows)),
            "patient_id": truth.patients[rows],
            "level": cohort.table["level"].to_numpy()[rows],
            "log_spacing": truth.log_spacing[rows],
            "osteoporosis": label,
            "bmd_g_cm2": truth.bmd_g_cm2[rows],
            "texture_number": truth.texture_number[rows],
        }
    )


def write(path: Path, table: pd.DataFrame) -> None:
    """Writes a table with four decimals, atomically."""
    write_csv(path, table, DECIMALS)


def joined(tables: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """One table of a row from those of its seeds, seed -> table with cohort, case and readouts."""
    parts = []
    for seed, table in tables.items():
        indexed = table.set_index(["cohort", "case"])
        parts.append(indexed.rename(columns={name: f"{name}_s{seed}" for name in indexed}))
    return pd.concat(parts, axis=1).reset_index()


@dataclasses.dataclass(frozen=True)
class Answers:
    """A row's predictions by its finished seeds.

    Attributes:
      row: of the plan.
      seeds: finished seeds.
      tables: cohort -> its cases with the columns of the predictions.
    """

    row: Readout
    seeds: tuple[int, ...]
    tables: dict[str, pd.DataFrame]

    @property
    def fixed(self) -> bool:
        """Whether the row is not random, so that its one seed stands for all."""
        return bool(self.row.ceiling)

    def group(self, group: str) -> pd.DataFrame:
        """Cases of "held" or "new"; empty where the row has no such cohort."""
        name = self.row.cohort if group == "held" else self.row.new
        return self.tables.get(name, pd.DataFrame(columns=list(KNOWN)))

    def predicted(self, table: pd.DataFrame, readout: str, seeds: Sequence[int]) -> np.ndarray:
        """f64[S, N] of a readout as "spacing12", NaN where there is none."""
        columns = [f"{readout}_s{seed}" for seed in seeds]
        return table.reindex(columns=columns).to_numpy(np.float64).T


def read(study: ReadoutStudy, folder: Path) -> dict[str, Answers]:
    """Row name -> predictions, of the rows that have a table in `folder`.

    Raises:
      UserError: a table whose cases are not in `cases/`.
    """
    found = {}
    for row in study.rows:
        path = folder / "rows" / f"{slug(row.name)}.csv"
        if not path.is_file():
            continue
        table = pd.read_csv(path, dtype={"cohort": str})
        seeds = sorted({int(m[3]) for name in table if (m := _READOUT.fullmatch(str(name)))})
        tables = {}
        for name, part in table.groupby("cohort", sort=False):
            cases = _read_cases(folder, str(name))
            both = cases.merge(part.drop(columns="cohort"), on="case", validate="one_to_one")
            if not len(both) == len(cases) == len(part):
                raise UserError(f"{path}: not the cases of cases/{name}.csv; write both again.")
            tables[str(name)] = both
        found[row.name] = Answers(row, tuple(seeds), tables)
    return found


def read_encoders(folder: Path) -> list[dict[str, Any]]:
    """Lines of encoders.csv; none where there is no such file."""
    path = folder / "encoders.csv"
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype={"encoder": str})
    return [dict(zip(table.columns, line, strict=True)) for line in table.itertuples(index=False)]


def _read_cases(folder: Path, cohort: str) -> pd.DataFrame:
    path = folder / "cases" / f"{cohort}.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing: the predictions of {cohort} cannot be scored.")
    return pd.read_csv(path, dtype={"patient_id": str, "level": str})
