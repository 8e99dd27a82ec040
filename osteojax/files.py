"""Atomic writes: a file is complete or absent, even if the process is killed while writing."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextlib.contextmanager
def atomic_path(path: str | Path, private: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds.

    The temporary name keeps the suffix (`.png`, `.nii.gz`), because writers choose by it.
    private: whether only its owner can read the file, from its first byte on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix="".join(path.suffixes))
    os.close(handle)
    temporary = Path(name)
    umask = os.umask(0)
    os.umask(umask)
    try:
        yield temporary
        if not private:
            temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide it from colleagues
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, private: bool = False) -> None:
    """Writes `text` as UTF-8, atomically. private: as of `atomic_path`."""
    with atomic_path(path, private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, table: pd.DataFrame, float_format: str | None = None) -> None:
    """Writes a table without its index, atomically. float_format: as of `DataFrame.to_csv`."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format=float_format)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
