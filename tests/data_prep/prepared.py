"""Calls `osteojax prepare` on a cohort of phantoms and reads the folder that it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.records import ShardReader
from launch.cli import main
from osteojax.data.vertebrae import POOL, record_keys
from tests.data_prep.phantom import spine, write_scan, write_table

LEVELS = ("L1", "L2")
NUM_SCANS = 5
OPTIONS = ("--external-sites", "D", "--size", "32", "--scans-per-shard", "2")


def write_cohort(folder: Path) -> None:
    """Five patients with two lumbar vertebrae each; the last is of an external site."""
    scans, results = [], []
    for i in range(NUM_SCANS):
        phantom = spine(LEVELS, 3.0, seed=i, turn_degrees=5.0 * i, bone_hu=120.0 + 30 * i)
        row = write_scan(folder, f"s{i}", phantom)
        scans.append(row | {"site": "D" if i == 4 else "AB"[i % 2]})
        for level in LEVELS:
            bmd = {"patient_id": row["patient_id"], "level": level, "bmd_g_cm2": 0.6 + 0.1 * i}
            results.append(bmd | {"device": "hologic"})
    write_table(folder / "cohort.csv", scans)
    write_table(folder / "dxa.csv", results)


def arguments(folder: Path, out: Path, *options: str) -> list[str]:
    tables = ["--cohort", str(folder / "cohort.csv"), "--dxa", str(folder / "dxa.csv")]
    here = () if "--scheduler" in options else ("--workers", "1")
    return ["prepare", *tables, "--out", str(out), *OPTIONS, *here, *options]


def prepare(folder: Path, out: Path, *options: str) -> int:
    """Runs the verb in this process; returns its exit status."""
    return main(arguments(folder, out, *options))


def read_shard(path: Path, stored: tuple[str, ...] = POOL) -> ShardReader:
    """A shard of a folder that stores these members of the pool."""
    return ShardReader(path, len(record_keys(stored)))


def volumes(
    reader: ShardReader, position: int, size: int, stored: tuple[str, ...] = POOL
) -> dict[str, np.ndarray]:
    """A vertebra's codes uint8[size, size, size], and "mask", "valid" and "body" bool[size, size,
    size], read without the package's own decoders."""
    _, *codes, planes = reader.records(position)
    shape = (size,) * 3
    arrays = {
        name: np.frombuffer(record, np.uint8).reshape(shape)
        for name, record in zip(stored, codes, strict=True)
    }
    bits = np.unpackbits(np.frombuffer(planes, np.uint8))[: 3 * size**3].astype(bool)
    planes = bits.reshape(3, *shape)
    return arrays | dict(zip(("mask", "valid", "body"), planes, strict=True))


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a prepared folder: name -> bytes."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock" and path.suffix != ".png"
    }
