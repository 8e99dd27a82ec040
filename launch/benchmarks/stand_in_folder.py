"""Writes a prepared folder for benchmarks: the vertebrae of a few simulated patients, repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from data_prep.build import build
from data_prep.records import write_records
from data_prep.simulate.cohort_writer import simulate_cohort
from data_prep.simulate.patients import Settings
from data_prep.vertebrae.cohort import read_cohort
from data_prep.vertebrae.pool import SIZES, RoiSettings
from data_prep.vertebrae.recipe import Recipe
from data_prep.vertebrae.scanners import read_devices
from data_prep.vertebrae.texture import TextureSettings
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError

SITES = ("A", "B")
"""Sites of the simulated patients: one patient per site, six vertebrae per patient."""
SHARD = "pool-00000-of-00001.array_record"


def write_stand_in_folder(directory: Path, size: int, vertebrae: int) -> Path:
    """Simulates and prepares a patient of each of `SITES`; repeats their vertebrae.

    It is meant for measuring reads. Bytes and compression are those of the simulated CTs; a
    repeated vertebra has separate records, so that reading one does not put the others into the
    page cache. All vertebrae are in the training split, with their labels.

    Returns:
      the prepared folder, inside `directory`.
    """
    if size not in SIZES:
        raise UserError(f"--size {size}: prepared folders have {', '.join(map(str, SIZES))}.")
    small = PreparedCohort(_prepared(directory, size))
    rows = [number % len(small) for number in range(vertebrae)]
    keys = list(small.manifest.record_keys)
    folder = directory / "pool"
    (folder / "shards").mkdir(parents=True)
    write_records(folder / "shards" / SHARD, (small.records(row, keys) for row in rows))
    table = small.table.iloc[rows].reset_index(drop=True)
    copies = pd.Series(range(vertebrae)) // len(small)
    table["patient_id"] += "-" + copies.astype(str)
    table["split"], table["shard"], table["position"] = "train", SHARD, range(vertebrae)
    table.to_csv(folder / "vertebrae.csv", index=False)
    dataclasses.replace(
        small.manifest, shards=({"name": SHARD, "items": vertebrae},), counts={}
    ).save(folder)
    return folder


def _prepared(directory: Path, size: int) -> Path:
    raw, out = directory / "simulated", directory / "prepared"
    list(simulate_cohort(raw, Settings(SITES), len(SITES)))
    devices = read_devices(None)
    all_train = (1.0, 0.0, 0.0)
    cohort = read_cohort(raw / "cohort.csv", raw / "dxa.csv", devices, "verse", fractions=all_train)
    recipe = Recipe(RoiSettings(size, True, TextureSettings()), devices, {})
    built = build(recipe, cohort, out, items_per_shard=len(SITES), workers=1)
    if not built.rows:
        raise UserError(f"{raw}: no simulated vertebra could be prepared: {built.failures}")
    return out
