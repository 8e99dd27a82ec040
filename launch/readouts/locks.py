"""Locks between processes that work on one workdir.

A lock is a file that a process holds with `flock`. The system releases it when the process ends,
however it ends, so that a killed process never leaves a workdir locked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class Busy(Exception):
    """Another process is making this."""


@contextlib.contextmanager
def alone(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path` while the block runs.

    Args:
      path: created with its folder, and left behind.
      wait: for another process to release it.

    Raises:
      Busy: another process holds it, and `wait` is False.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(str(path)) from error
        yield  # closing the file releases it
