"""Folders of a study's workdir: their names, and whether what they hold is finished."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osteojax.errors import UserError
from osteojax.files import write_text


def slug(name: str) -> str:
    """The name of a row's folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def finished(folder: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    """Content of done.json; None if there is none. Raises UserError if another version of the study
    made it."""
    path = folder / "done.json"
    if not path.is_file():
        return None
    done = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = done["made_with"], json.loads(json.dumps(made_with))
    if found != wanted:
        names = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
        raise UserError(
            f"{folder} was made by another version of the study ({', '.join(names)} differ). "
            "Remove the folder to do it again, or choose another --workdir."
        )
    return done


def of_this_version(ask: Callable[..., Any], *unit: Any) -> Any:
    """`ask(*unit)`, or None where another version of the study made the unit, which is reported as
    a failure when it is its turn."""
    try:
        return ask(*unit)
    except UserError:
        return None


def reason_of(error: Exception, folder: Path) -> str:
    """One line for the table of failures; the traceback of an unexpected error is kept in the
    unit's error.txt."""
    if isinstance(error, UserError):
        return str(error)
    path = folder / "error.txt"
    write_text(path, "".join(traceback.format_exception(error)))
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first} (see {path})"
