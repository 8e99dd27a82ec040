"""Folders that take long to make: one for all workers of pytest-xdist, made by the first to ask."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.readouts.locks import alone


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` wrote. Tests only read it, because another worker may be reading it.

    Raises what `make` raises; the next worker to ask tries again.
    """
    of_session = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in the session's
        of_session = of_session.parent
    folder, finished = of_session / name, of_session / f"{name}.finished"
    with alone(of_session / f"{name}.lock", wait=True):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            finished.touch()
    return folder
