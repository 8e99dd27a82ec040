"""Folders of a study's workdir: their names, and whether what they hold is finished."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from osteojax.errors import UserError


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
