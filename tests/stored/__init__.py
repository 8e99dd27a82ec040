"""Workdirs of earlier versions; `write_workdirs.py` says how they come here."""

from __future__ import annotations

import tarfile
from pathlib import Path

STORED = Path(__file__).resolve().parent
VERSIONS = tuple(sorted(path.name.removesuffix(".tar.xz") for path in STORED.glob("*.tar.xz")))


def unpack(version: str, folder: Path) -> Path:
    """Unpacks `finetune`, `pretrain` and `expected.npz` of a version into `folder`."""
    with tarfile.open(STORED / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder
