"""An opened prepared folder: its manifest, its table and random access to its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from array_record.python import array_record_data_source
from array_record.python.array_record_module import ArrayRecordReader

from osteojax.data.kinds import find_kind
from osteojax.data.manifest import load_manifest
from osteojax.data.schema import Target, record_position
from osteojax.data.soundness import table_fault
from osteojax.errors import UserError

AGAIN = "Copy the folder again, or prepare the cohort again."


def open_cohort(directory: str | Path) -> PreparedCohort:
    """Opens a folder that `osteojax prepare` wrote, of any kind.

    Raises:
      UserError: files are missing, damaged or not as `prepare` writes them.
    """
    return PreparedCohort(directory)


class PreparedCohort:
    """Read-only view of what `osteojax prepare` wrote. Arrays stay on disk.

    Attributes:
      manifest: its `Manifest`.
      kind: module of its kind of data (`osteojax.data.kinds.Kind`).
      about: the kind's part of the manifest; for vertebrae `osteojax.data.vertebrae.About`.
      table: one row per item, columns of the manifest, record order. Text and choices are str, ""
        where empty; numbers NaN where empty.
      targets: name -> i32[N] class, -1 where missing; or f32[N] number, NaN where missing.
      labels: the kind's labels of every row; for vertebrae `osteojax.data.vertebrae.Labels`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = load_manifest(directory)
        self.kind = find_kind(self.manifest.kind)
        self.about: Any = self.kind.about(self.manifest)
        self._fields = {field.name: field for field in self.manifest.fields}
        self.table = self._read_table()
        self.targets = {target.name: self._values(target) for target in self.manifest.targets}
        self.labels: Any = self.kind.labels(self)
        files = [self._check_shard(shard) for shard in self.manifest.shards]
        self._records = array_record_data_source.ArrayRecordDataSource(files)

    def _check_shard(self, shard: dict[str, Any]) -> str:
        """Path of a shard, after checking that it exists, opens, and has the manifest's length."""
        path, fields = self.directory / "shards" / shard["name"], self.manifest.fields
        if not path.is_file():
            raise UserError(
                f"{path}: this shard of the manifest is missing. Copy the whole folder "
                "again, or prepare the cohort again."
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
        if found != shard["items"] * len(fields):
            raise UserError(
                f"{path}: {found / len(fields):g} {self.kind.ITEMS}, the manifest says "
                f"{shard['items']}. Prepare the cohort again."
            )
        return str(path)

    def _read_table(self) -> pd.DataFrame:
        manifest, path = self.manifest, self.directory / self.manifest.table
        if not path.is_file():
            raise UserError(f"{path} is missing. Copy the folder whole, or prepare again.")
        numbers = [column.name for column in manifest.columns if column.kind == "number"]
        text = {column.name: str for column in manifest.columns if column.kind != "number"}
        try:
            table = pd.read_csv(
                path, dtype=text, keep_default_na=False, na_values={name: [""] for name in numbers}
            )
        except ValueError as error:  # includes the errors of pandas and of Unicode decoding
            raise UserError(f"{path}: damaged ({_line(error)}). {AGAIN}") from error
        for column in manifest.columns:
            if column.added_later and column.name not in table.columns:
                table[column.name] = np.nan if column.kind == "number" else ""
        missing = [column.name for column in manifest.columns if column.name not in table.columns]
        if missing or len(table) != manifest.num_items:
            raise UserError(
                f"{path}: {len(table)} rows, columns missing: {missing or 'none'}; the manifest "
                f"says {manifest.num_items} {self.kind.ITEMS}. Prepare the cohort again."
            )
        if fault := table_fault(table, manifest.columns) or self.kind.table_fault(table):
            raise UserError(
                f"{path}, {fault} is not a valid value; the table was edited or damaged. {AGAIN}"
            )
        return table

    def _values(self, target: Target) -> np.ndarray:
        if target.kind == "number":
            return self.table[target.column].to_numpy(np.float32)
        if self.manifest.column(target.column).kind == "choice":
            return self.choices(target.column)
        return self.table[target.column].fillna(-1).to_numpy(np.int32)

    def choices(self, column: str) -> np.ndarray:
        """i32[N]: position of every row's text among the column's choices, -1 where empty."""
        positions = {name: i for i, name in enumerate(self.manifest.column(column).choices)}
        return self.table[column].map(positions).fillna(-1).to_numpy(np.int32)

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, *splits: str, labelled: bool | None = None) -> np.ndarray:
        """i64[...] row numbers of some splits; labelled=True keeps only labelled rows, False only
        unlabelled ones."""
        keep = self.table["split"].isin(splits).to_numpy(copy=True)
        if labelled is not None:
            has_label = self.labelled()
            keep &= has_label if labelled else ~has_label
        return np.flatnonzero(keep)

    def labelled(self) -> np.ndarray:
        """bool[N]: rows that have one of the targets that count as a label."""
        has_label = np.zeros(len(self), bool)
        for target in self.manifest.targets:
            if target.counts_as_label:
                values = self.targets[target.name]
                has_label |= values >= 0 if target.kind == "class" else ~np.isnan(values)
        return has_label

    def records(self, row: int, keys: list[str]) -> list[bytes]:
        """Stored bytes of some fields of one item."""
        stored = self.manifest.record_keys
        if absent := [key for key in keys if key not in stored]:
            raise UserError(
                f"{self.directory} stores {', '.join(stored[1:])}, not {', '.join(absent)}. Train "
                "with --config.data.textures=online, or prepare the cohort again with all maps."
            )
        try:
            return self._records.__getitems__([record_position(row, key, stored) for key in keys])
        except RuntimeError as error:  # the format's checksum
            raise UserError(
                f"{self.directory}: row {row}, {keys}: the shard is damaged ({_line(error)}). "
                "Copy it again, or prepare the cohort again."
            ) from error

    def array(self, row: int, name: str) -> np.ndarray:
        """One field of one item, in its dtype and shape."""
        return self._decoded(row, name, self.records(row, [name])[0])

    def members(self, row: int, names: list[str]) -> np.ndarray:
        """[len(names), *shape]: fields of one item that share dtype and shape."""
        records = self.records(row, names)
        return np.stack([self._decoded(row, n, r) for n, r in zip(names, records, strict=True)])

    def _decoded(self, row: int, name: str, record: bytes) -> np.ndarray:
        try:
            return self._fields[name].decode(record)
        except ValueError as error:
            raise UserError(
                f"{self.directory}: row {row}, {name}: {_line(error)}. The shard is damaged: "
                "prepare the cohort again."
            ) from error

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
    """The first clause of a library's error message."""
    return str(error).split(";")[0].replace("\n", " ")
