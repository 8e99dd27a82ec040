"""The pictures as files, and the folder prepared from them; neither is to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from tests.pictures import commands
from tests.pictures.drawing import write_pictures


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert main(commands.prepare(folder, out)) == 0
    return out


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """The workdir of a run on `prepared`, on one device; not to be changed."""
    return commands.run_training(tmp_path_factory.mktemp("run") / "workdir", prepared)
