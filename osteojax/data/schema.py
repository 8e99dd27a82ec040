"""The format of a prepared folder: `manifest.json`, one table, and shards of records.

A prepared folder:

    manifest.json             this module's `Manifest`
    <manifest.table>          one row per item (a vertebra, a picture), in record order
    failures.csv              case, reason, remedy of what could not be used
    doubts.csv                case, reason, remedy of what looks suspicious and was kept
    excluded.csv              scans left out because a column of the cohort says so
    settings.json             options of `osteojax prepare`; the same call resumes
    parts/                    a report per finished scan, which a rerun skips
    shards/pool-00000-of-00004.array_record

Each item is `len(manifest.fields)` consecutive records of one shard, so that training reads the
fields it needs and nothing else (`record_position`). The first one is always "meta", the item's
row as JSON. `osteojax/data/<kind>.py` says what fields and columns mean.
"""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from osteojax.files import write_json

FORMAT = "osteojax-pool"
FORMAT_VERSION = 3
"""`manifest.load_manifest` reads earlier versions too (`earlier_manifests`). 1 (osteojax 0.1):
vertebrae alone. 2 (0.2): vertebrae in cubes, without the plane of the body."""

SPLITS = ("train", "valid", "test", "external")
CODECS = ("raw", "bits", "npy", "json")
TARGET_KINDS = ("class", "number")
COLUMN_KINDS = ("text", "number", "choice")


@dataclasses.dataclass(frozen=True)
class Field:
    """One of the records that every item has.

    Attributes:
      name: its key, e.g. "image".
      dtype: NumPy's name of the array's type.
      shape: of the array; None where each record has its own, which needs the codec "npy".
      codec: "raw": the array's bytes in C order. "bits": `numpy.packbits` of a bool array. "npy":
        NumPy's file format, without pickle. "json": UTF-8 text, no array.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    codec: str = "raw"

    @property
    def array_bytes(self) -> int:
        """Of an array in memory, for a field with a shape."""
        return math.prod(self.shape or ()) * np.dtype(self.dtype).itemsize

    def encode(self, array: np.ndarray) -> bytes:
        """The record of an array of this field's dtype and shape."""
        if self.codec == "npy":
            stream = io.BytesIO()
            np.save(stream, np.asarray(array, self.dtype), allow_pickle=False)
            return stream.getvalue()
        if array.shape != self.shape:
            raise ValueError(f"{self.name}: an array of {array.shape}, expected {self.shape}")
        if self.codec == "bits":
            return np.packbits(array).tobytes()
        return np.ascontiguousarray(array, self.dtype).tobytes()

    def decode(self, record: bytes) -> np.ndarray:
        """The array of a record. Raises ValueError if the record does not fit the field."""
        if self.codec == "npy":
            return np.load(io.BytesIO(record), allow_pickle=False)
        if self.shape is None or self.codec == "json":
            raise ValueError(f"{self.name} is not an array of a fixed shape")
        count = math.prod(self.shape)
        expected = -(-count // 8) if self.codec == "bits" else self.array_bytes
        if len(record) != expected:
            raise ValueError(f"{len(record)} bytes, expected {expected}")
        values = np.frombuffer(record, np.uint8 if self.codec == "bits" else self.dtype)
        if self.codec == "bits":
            values = np.unpackbits(values)[:count].astype(bool)
        return values.reshape(self.shape)


META = Field("meta", "object", None, "json")
"""The first field of every kind: the item's row of the table."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Something to be predicted of an item.

    Attributes:
      name: as objectives refer to it.
      kind: "class" or "number".
      column: of the table. A class is the position in the column's choices, or, in a column of
        numbers, the number itself.
      unit: of a number, "" for none.
      classes: names of the classes in order; empty for a number.
      mean, std: of a number over the training split; (0, 1) where none is known.
      counts_as_label: whether an item that has it counts as labelled.
    """

    name: str
    kind: str
    column: str
    unit: str = ""
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    counts_as_label: bool = True


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table and the values that it may hold.

    Attributes:
      name: in the header.
      kind: "text", "number" or "choice" (text from a list).
      choices: of a choice, in order.
      required: no row may leave it empty.
      whole: a number without decimals.
      low, high: bounds of a number, both allowed; None for none.
      added_later: whether folders of earlier versions may lack the column; it reads as empty then.
    """

    name: str
    kind: str = "text"
    choices: tuple[str, ...] = ()
    required: bool = False
    whole: bool = False
    low: float | None = None
    high: float | None = None
    added_later: bool = False


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a reader of the shards must know. Stored as `manifest.json`.

    Attributes:
      kind: name of the kind of data, whose meaning `osteojax/data/<kind>.py` defines.
      fields: of every item, in record order; "meta" first.
      targets: what can be predicted of an item.
      columns: of the table.
      table: its file name.
      shards: {"name": file under `shards/`, "items": how many} each, in record order.
      counts: split -> {"patients", "items", "labelled"}.
      settings: of `osteojax prepare`.
      about: further values, which only the kind's module reads.
      code_version: version of osteojax that wrote the folder.
      doubts: number of rows of `doubts.csv`; a file without it means 0.
    """

    kind: str
    fields: tuple[Field, ...]
    targets: tuple[Target, ...]
    columns: tuple[Column, ...]
    table: str
    shards: tuple[dict[str, Any], ...]
    counts: dict[str, dict[str, int]]
    settings: dict[str, Any]
    about: dict[str, Any]
    code_version: str
    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    doubts: int = 0

    @property
    def num_items(self) -> int:
        return sum(shard["items"] for shard in self.shards)

    @property
    def record_keys(self) -> tuple[str, ...]:
        """Names of the fields: the keys of an item's records, in order."""
        return tuple(field.name for field in self.fields)

    def field(self, name: str) -> Field:
        """Raises KeyError."""
        return {field.name: field for field in self.fields}[name]

    def target(self, name: str) -> Target:
        """Raises KeyError."""
        return {target.name: target for target in self.targets}[name]

    def column(self, name: str) -> Column:
        """Raises KeyError."""
        return {column.name: column for column in self.columns}[name]

    def save(self, directory: str | Path) -> None:
        """Writes `manifest.json`, atomically. A folder without doubts has the file that it had
        before there were any."""
        content = dataclasses.asdict(self)
        if not self.doubts:
            del content["doubts"]
        write_json(Path(directory) / "manifest.json", content)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Manifest:
        """From the content of a file of this version. Raises TypeError or KeyError for missing or
        unknown names; `soundness.manifest_fault` checks the values."""
        return cls(
            **{
                **content,
                "fields": tuple(
                    Field(**{**field, "shape": _tuple_or_none(field["shape"])})
                    for field in content["fields"]
                ),
                "targets": tuple(
                    Target(**{**target, "classes": tuple(target["classes"])})
                    for target in content["targets"]
                ),
                "columns": tuple(
                    Column(**{**column, "choices": tuple(column["choices"])})
                    for column in content["columns"]
                ),
                "shards": tuple(content["shards"]),
            }
        )


def _tuple_or_none(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def record_position(item_position: int, key: str, keys: tuple[str, ...]) -> int:
    """The index in the shard of one record of an item; keys: the manifest's `record_keys`."""
    return item_position * len(keys) + keys.index(key)


class Rows(Protocol):
    """What a kind may use of an opened folder (`osteojax.data.cohort.PreparedCohort`)."""

    manifest: Manifest
    targets: dict[str, np.ndarray]

    def choices(self, column: str) -> np.ndarray:
        """i32[N]: position of every row's text among the column's choices, -1 where empty."""
