"""The folder that `prepare` writes: its settings, a lock for one run at a time, and text tables.

settings.json     written first: tables and settings that the folder is made from
items.json        its items in order, so that corrected tables can be followed (`correction`)
.lock             held by the current run; workers recognise the folder by its content
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from osteojax.errors import UserError
from osteojax.files import write_json, write_text


def claim(out: Path, wanted: dict[str, Any]) -> bool:
    """Writes settings.json, or checks that an existing one is the same but for the tables.

    Args:
      wanted: everything that determines the folder's bytes; "cohort" is the digest of the user's
        tables.

    Returns:
      whether the folder was made from tables with other bytes (`correction.follow_tables`).

    Raises:
      UserError: the folder was made with other settings, or holds other files.
    """
    path = out / "settings.json"
    if not path.exists():
        foreign = sorted(entry.name for entry in out.glob("*") if not entry.name.startswith("."))
        if foreign:
            raise UserError(
                f"{out} holds other files ({', '.join(foreign[:5])}). Name a new or empty folder."
            )
        write_json(path, wanted)
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Name another folder.") from error
    changed = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if changed and changed != ["cohort"]:
        named = "; ".join(
            "the cohort's tables have other contents"
            if key == "cohort"
            else f"{key} was {_short(found.get(key))}, now {_short(wanted.get(key))}"
            for key in changed
        )
        refuse_settings(out, named)
    return bool(changed)


def refuse_settings(out: Path, named: str) -> NoReturn:
    """Raises UserError. named: what is different."""
    raise UserError(
        f"{out} was begun with another cohort or other settings: {named}. Give another --out, "
        "or delete the folder."
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


@contextlib.contextmanager
def lock(out: Path) -> Iterator[str]:
    """Locks the folder against a second `prepare`; the kernel unlocks it when this process ends.

    Yields the run's random name, which is the content of the lock file.
    """
    with (out / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another `osteojax prepare` is running here.") from None
        run = uuid.uuid4().hex
        stream.truncate(0)
        stream.write(run)
        stream.flush()
        yield run
        stream.truncate(0)


def remove_leftovers(out: Path) -> None:
    """Removes half-written temporary files of a killed run."""
    for folder in (out, out / "parts", out / "shards"):
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink()


def names(folder: Path) -> set[str]:
    """Names of the files in a folder; empty if the folder does not exist."""
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def write_table(path: Path, columns: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a CSV, atomically. None is written as an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, stream.getvalue())
