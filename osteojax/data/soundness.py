"""Checks that the manifest and the table of a prepared folder hold values that `prepare` writes.

Both are text files that people edit and that copying can damage. A wrong number would silently
train a model on misread data, and a shard name with a path in it would read a file from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from osteojax.data.schema import (
    CODECS,
    COLUMN_KINDS,
    META,
    TARGET_KINDS,
    Column,
    Field,
    Manifest,
    Target,
)

if TYPE_CHECKING:
    import pandas as pd

LARGEST_EDGE = 16384
LARGEST_FIELD_BYTES = 2**31
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-9, 1e9
"""Range of positive numbers by which the network's input (float32) may be scaled."""
DTYPES = ("bool", "uint8", "int16", "uint16", "int32", "float16", "float32")


def manifest_fault(manifest: Manifest) -> str | None:
    """The first invalid value of a manifest, in words, or None. The kind checks
    `manifest.about`."""
    if not (isinstance(manifest.kind, str) and manifest.kind):
        return f"kind {manifest.kind!r}"
    if not is_file_name(manifest.table):
        return f"table {manifest.table!r}, not the name of a file"
    if manifest.fields[:1] != (META,):
        return f"the first field is {manifest.fields[:1]!r}, expected meta"
    for name in ("about", "counts", "settings"):
        if not isinstance(getattr(manifest, name), dict):
            return f"{name} {getattr(manifest, name)!r}"
    if not isinstance(manifest.code_version, str):
        return f"code_version {manifest.code_version!r}"
    if not is_count(manifest.doubts):
        return f"doubts {manifest.doubts!r}"
    return (
        _twice("field", manifest.fields)
        or _twice("target", manifest.targets)
        or _twice("column", manifest.columns)
        or _first(_field_fault(field) for field in manifest.fields[1:])
        or _first(_column_fault(column) for column in manifest.columns)
        or _first(_target_fault(target, manifest) for target in manifest.targets)
        or _first(_shard_fault(shard) for shard in manifest.shards)
    )


def _first(faults: Any) -> str | None:
    return next((fault for fault in faults if fault), None)


def _twice(what: str, parts: Sequence[Field] | Sequence[Target] | Sequence[Column]) -> str | None:
    names = [part.name for part in parts]
    if not all(isinstance(name, str) and name for name in names):
        return f"{what}s called {names}"
    return f"a {what} twice among {names}" if len(set(names)) != len(names) else None


def _field_fault(field: Field) -> str | None:
    sound = field.dtype in DTYPES and field.codec in CODECS
    if field.shape is None:
        sound = sound and field.codec == "npy"
    else:
        sound = (
            sound
            and len(field.shape) > 0
            and all(is_count(edge) and 0 < edge <= LARGEST_EDGE for edge in field.shape)
            and field.array_bytes <= LARGEST_FIELD_BYTES
            and field.codec in ("raw", "bits", "npy")
        )
    return None if sound and (field.codec != "bits" or field.dtype == "bool") else f"{field!r}"


def _column_fault(column: Column) -> str | None:
    bounds = [bound for bound in (column.low, column.high) if bound is not None]
    sound = (
        column.kind in COLUMN_KINDS
        and all(isinstance(choice, str) for choice in column.choices)
        and len(set(column.choices)) == len(column.choices)
        and bool(column.choices) == (column.kind == "choice")
        and all(is_number(bound) for bound in bounds)
        and (column.kind == "number" or not bounds)
    )
    return None if sound else f"{column!r}"


def _target_fault(target: Target, manifest: Manifest) -> str | None:
    columns = {column.name: column for column in manifest.columns}
    sound = target.kind in TARGET_KINDS and target.column in columns
    if sound and target.kind == "class":
        column = columns[target.column]
        sound = len(target.classes) > 1 and all(isinstance(c, str) for c in target.classes)
        sound = sound and column.choices in ((), target.classes) and column.kind != "text"
    elif sound:
        sound = columns[target.column].kind == "number" and not target.classes
    if not (sound and is_number(target.mean) and is_positive(target.std)):
        return f"{target!r}"
    return None


def _shard_fault(shard: Any) -> str | None:
    if not isinstance(shard, dict) or not {"name", "items"} <= set(shard):
        return f"shard {shard!r}"
    if not is_file_name(shard["name"]):
        return f"shard name {shard['name']!r}, not the name of a file"
    if not is_count(shard["items"]):
        return f"shard {shard['name']!r} of {shard['items']!r} items"
    return None


def is_file_name(name: Any) -> bool:
    """Whether it is the name of a file, without a path."""
    return isinstance(name, str) and bool(name) and PurePath(name).name == name


def is_number(value: Any) -> bool:
    """Whether it is a number of absolute value below `LARGEST_NUMBER`; NaN and infinity are not."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < LARGEST_NUMBER


def is_positive(value: Any) -> bool:
    return is_number(value) and value > SMALLEST_NUMBER


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def table_fault(table: pd.DataFrame, columns: Sequence[Column]) -> str | None:
    """The first invalid value of a folder's table, with its line, or None.

    Args:
      table: text and choices as str, "" where empty; numbers as pandas read them, NaN where empty.
    """
    for column in columns:
        wrong = _wrong_cells(table[column.name], column)
        if wrong.any():
            row = int(np.argmax(wrong))
            return f"line {row + 2}: {column.name} {table[column.name].iloc[row]!r}"
    return None


def _wrong_cells(values: pd.Series, column: Column) -> np.ndarray:
    """bool[N]."""
    import pandas as pd  # imported here: benchmarks read manifests on machines without pandas

    if column.kind != "number":
        empty = (values == "").to_numpy()
        known = values.isin(column.choices).to_numpy() if column.kind == "choice" else ~empty
        return ~known & (~empty | column.required)
    empty = values.isna().to_numpy()
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(numbers)
    with np.errstate(invalid="ignore"):
        if column.low is not None:
            wrong |= numbers < column.low
        if column.high is not None:
            wrong |= numbers > column.high
        if column.whole:
            wrong |= numbers % 1 != 0
    return (wrong & ~empty) | (empty & column.required)
