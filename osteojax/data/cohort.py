"""A prepared folder, opened: its manifest, its table and random access to its shards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from array_record.python import array_record_data_source
from array_record.python.array_record_module import ArrayRecordReader

from osteojax.data.schema import Manifest, record_position
from osteojax.data.soundness import table_fault
from osteojax.data.vertebrae import OPTIONAL_COLUMNS, UNKNOWN_DEVICE, VERTEBRA_COLUMNS
from osteojax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Labels:
    """Targets as arrays, one entry per row of the table.

    Attributes:
      osteoporosis: i32[N], -1 where missing.
      bmd_g_cm2: f32[N], NaN where missing.
      level: i32[N], class 0-17.
      device: i32[N], index into the manifest's devices; unknown where there is no DXA result.
    """

    osteoporosis: np.ndarray
    bmd_g_cm2: np.ndarray
    level: np.ndarray
    device: np.ndarray


class PreparedCohort:
    """Read-only view of what `osteojax prepare` wrote. Volumes stay on disk.

    Attributes:
      manifest: its `Manifest`.
      table: one row per vertebra, columns `VERTEBRA_COLUMNS`, record order.
      labels: targets of every row.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = Manifest.load(directory)
        self.table = self._read_table()
        self.labels = self._read_labels()
        files = [self._check_shard(shard) for shard in self.manifest.shards]
        self._records = array_record_data_source.ArrayRecordDataSource(files)

    def _check_shard(self, shard: dict[str, Any]) -> str:
        """Path of a shard that is there, whole, and as long as the manifest says."""
        path, keys = self.directory / "shards" / shard["name"], self.manifest.record_keys
        if not path.is_file():
            raise UserError(
                f"{path}: the manifest names this shard and it is not there. Copy the folder "
                "whole, or prepare the cohort again."
            )
        try:
            reader = ArrayRecordReader(str(path))
            found = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{path}: the shard is damaged ({_line(error)}). Copy it again, or prepare the "
                "cohort again."
            ) from error
        if found != shard["vertebrae"] * len(keys):
            raise UserError(
                f"{path}: {found / len(keys):g} vertebrae, the manifest says "
                f"{shard['vertebrae']}. Prepare the cohort again."
            )
        return str(path)

    def _read_table(self) -> pd.DataFrame:
        path = self.directory / "vertebrae.csv"
        if not path.is_file():
            raise UserError(f"{path} is missing. Copy the folder whole, or prepare again.")
        text = dict.fromkeys(("patient_id", "scan_id", "site", "split", "level", "device"), str)
        again = "Copy the folder again, or prepare the cohort again."
        try:
            table = pd.read_csv(
                path,
                dtype=text,
                keep_default_na=False,
                na_values={name: [""] for name in VERTEBRA_COLUMNS if name not in text},
            )
        except ValueError as error:  # pandas' own errors are ValueErrors, and so are Unicode's
            raise UserError(f"{path}: damaged ({_line(error)}). {again}") from error
        for name in OPTIONAL_COLUMNS:
            if name not in table.columns:
                table[name] = np.nan
        missing = [name for name in VERTEBRA_COLUMNS if name not in table.columns]
        if missing or len(table) != self.manifest.num_vertebrae:
            raise UserError(
                f"{path}: {len(table)} rows, columns missing: {missing or 'none'}; the manifest "
                f"says {self.manifest.num_vertebrae} vertebrae. Prepare the cohort again."
            )
        if fault := table_fault(table):
            raise UserError(f"{path}, {fault}: `osteojax prepare` writes no such thing. {again}")
        return table

    def _read_labels(self) -> Labels:
        table, devices = self.table, list(self.manifest.devices)
        unknown = set(table["device"]) - set(devices) - {""}
        if unknown:
            raise UserError(
                f"{self.directory}: devices {sorted(unknown)} are in vertebrae.csv and not in the "
                f"manifest's {devices}. Prepare the cohort again."
            )
        return Labels(
            osteoporosis=table["osteoporosis"].fillna(-1).to_numpy(np.int32),
            bmd_g_cm2=table["bmd_g_cm2"].to_numpy(np.float32),
            level=(table["level_class"].to_numpy(np.int32) - 1),
            device=np.array(
                [devices.index(d or UNKNOWN_DEVICE) for d in table["device"]], np.int32
            ),
        )

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, *splits: str, labelled: bool | None = None) -> np.ndarray:
        """i64[...] row numbers of some splits; labelled=True or False keeps only those."""
        keep = self.table["split"].isin(splits).to_numpy(copy=True)
        if labelled is not None:
            has_label = (self.labels.osteoporosis >= 0) | ~np.isnan(self.labels.bmd_g_cm2)
            keep &= has_label if labelled else ~has_label
        return np.flatnonzero(keep)

    def records(self, row: int, keys: list[str]) -> list[bytes]:
        """Stored bytes of some record keys of one vertebra."""
        stored = self.manifest.record_keys
        if absent := [key for key in keys if key not in stored]:
            raise UserError(
                f"{self.directory} stores {', '.join(self.manifest.stored)}, not "
                f"{', '.join(absent)}. Train with --config.data.textures=online, or prepare the "
                "cohort again with all maps."
            )
        try:
            return self._records.__getitems__([record_position(row, key, stored) for key in keys])
        except RuntimeError as error:  # the format's checksum
            raise UserError(
                f"{self.directory}: row {row}, {keys}: the shard is damaged ({_line(error)}). "
                "Copy it again, or prepare the cohort again."
            ) from error

    def members(self, row: int, names: list[str]) -> np.ndarray:
        """uint8[len(names), D, H, W] codes of some members of the pool of one vertebra."""
        size = self.manifest.size
        volumes = np.empty((len(names), size, size, size), np.uint8)
        for volume, name, data in zip(volumes, names, self.records(row, names), strict=True):
            if len(data) != size**3:
                raise UserError(
                    f"{self.directory}: row {row}, {name}: {len(data)} bytes, expected {size**3}. "
                    "The shard is damaged: prepare the cohort again."
                )
            volume[...] = np.frombuffer(data, np.uint8).reshape(volume.shape)
        return volumes

    def masks(self, row: int) -> np.ndarray:
        """bool[2, D, H, W]: the vertebra, and the part of the box inside the CT."""
        size = self.manifest.size
        bits = np.unpackbits(np.frombuffer(self.records(row, ["mask"])[0], np.uint8))
        return bits[: 2 * size**3].reshape(2, size, size, size).astype(bool)

    def check_no_leak(self, training_rows: np.ndarray) -> None:
        """Raises UserError if a patient of `training_rows` is in any other split as well."""
        patients = self.table["patient_id"]
        training = set(patients.iloc[training_rows])
        held_out = set(patients[self.table["split"] != "train"])
        if overlap := sorted(training & held_out):
            raise UserError(
                f"{self.directory}: patients {overlap[:5]} train the model and are held out too "
                f"({len(overlap)} in all). Prepare the cohort again with a patient-level split."
            )


def _line(error: Exception) -> str:
    """The first clause of a library's message."""
    return str(error).split(";")[0].replace("\n", " ")
