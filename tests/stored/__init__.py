"""Workdirs and exported folders of earlier versions; `write_*.py` say how they come here."""

from __future__ import annotations

import tarfile
from pathlib import Path

STORED = Path(__file__).resolve().parent
EXPORTED = STORED / "exported"
VERSIONS = tuple(sorted(path.name.removesuffix(".tar.xz") for path in STORED.glob("*.tar.xz")))
EXPORTED_VERSIONS = tuple(
    sorted(path.name.removesuffix(".tar.xz") for path in EXPORTED.glob("*.tar.xz"))
)


def unpack(version: str, folder: Path, stored: Path = STORED) -> Path:
    """Unpacks `finetune`, `pretrain` and `expected.npz` of a version into `folder`; of `EXPORTED`,
    `model`, `features` and `expected.npz`."""
    with tarfile.open(stored / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder
