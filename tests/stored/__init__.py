"""Workdirs, runs that were stopped, and exported folders of earlier versions.

`write_workdirs.py`, `write_unfinished.py` and `write_exported.py` say how they come here.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

STORED = Path(__file__).resolve().parent
EXPORTED = STORED / "exported"
UNFINISHED = STORED / "unfinished"


def _versions(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name.removesuffix(".tar.xz") for path in folder.glob("*.tar.xz")))


VERSIONS = _versions(STORED)
EXPORTED_VERSIONS = _versions(EXPORTED)
UNFINISHED_VERSIONS = _versions(UNFINISHED)


def unpack(version: str, folder: Path, stored: Path = STORED) -> Path:
    """Unpacks `finetune`, `pretrain` and `expected.npz` of a version into `folder`; of `EXPORTED`,
    `model`, `features` and `expected.npz`; of `UNFINISHED`, `finetune`, `pretrain` and the
    `.npz` file of each."""
    with tarfile.open(stored / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def pack(content: Path, target: Path) -> None:
    """Writes the files of `content` into an archive that says nothing of whoever wrote it."""
    target.parent.mkdir(exist_ok=True)
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in sorted(content.iterdir()):
            archive.add(path, path.name, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member
