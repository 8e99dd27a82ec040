"""Reads `manifest.json`, of this version or an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from osteojax.data.earlier_manifests import from_format_1, from_format_2
from osteojax.data.kinds import find_kind
from osteojax.data.schema import FORMAT, FORMAT_VERSION, Manifest
from osteojax.data.soundness import manifest_fault
from osteojax.errors import UserError


def load_manifest(directory: str | Path) -> Manifest:
    """The manifest of a prepared folder or of a workdir.

    Raises:
      UserError: it is absent, damaged, too new, or of a kind that is not installed.
    """
    path = Path(directory) / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{directory}: no manifest.json. Point --data at a folder that `osteojax prepare` "
            "wrote and finished; rerun prepare if it was interrupted."
        )
    try:
        manifest = _parsed(json.loads(path.read_text(encoding="utf-8")), path)
        if fault := manifest_fault(manifest):
            raise ValueError(fault)
        find_kind(manifest.kind).about(manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: not a manifest of this version ({error}). Prepare the cohort again."
        ) from error


def _parsed(content: Any, path: Path) -> Manifest:
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format is {content.get('format')!r}, expected {FORMAT!r}.")
    version = content["format_version"]
    if version == 1:
        return from_format_1(content)
    if version == 2:
        return from_format_2(content)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version}, this osteojax reads 1 to {FORMAT_VERSION}. "
            "Prepare the cohort again with this version."
        )
    return Manifest.from_json(content)
