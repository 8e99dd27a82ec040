"""The wheel of a clean clone, in an environment with nothing else, away from the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from osteojax import __version__

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")


class Installed:
    """A virtual environment with the wheel, and an empty folder to run its commands in."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "environment" / "bin"
        self.home = folder / "elsewhere"
        self.home.mkdir()

    def run(self, *command: str, status: int = 0) -> str:
        """What a command of the environment prints, errors included."""
        clean = ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV")
        environment = {k: v for k, v in os.environ.items() if k not in clean}
        environment["PATH"] = f"{self.bin}:{environment['PATH']}"
        done = subprocess.run(
            [self.bin / command[0], *command[1:]], cwd=self.home, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == status, done.stdout
        return done.stdout


def uv(*arguments: str | Path) -> None:
    done = subprocess.run([UV, *arguments], capture_output=True, text=True)
    if done.returncode and re.search(r"Failed to fetch|error sending request|dns", done.stderr):
        pytest.skip(f"the package registry cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    if not UV.is_file():
        pytest.skip(f"no {UV}; `make` installs it")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "clone", "-q", ROOT, folder / "clone"], check=True)
    uv("build", "--wheel", "--out-dir", folder / "dist", folder / "clone")
    uv("venv", "--python", sys.executable, folder / "environment")
    (wheel,) = (folder / "dist").glob("*.whl")
    uv("pip", "install", "--python", folder / "environment" / "bin" / "python", wheel)
    return Installed(folder)


def test_the_command_is_there(installed: Installed) -> None:
    assert __version__ in installed.run("osteojax", "--version")
    assert "demo" in installed.run("osteojax", "--help")
    assert "site-packages" in installed.run(
        "python", "-c", "import osteojax as o; print(o.__file__)"
    )


def test_shipped_configs_and_studies_are_found(installed: Installed) -> None:
    wanted = ("--config", "configs/tp_swav_resnet34.py:smoke", "--config.batch_size=16")
    said = installed.run("osteojax", "train", *wanted, "--workdir", "w", "--data", "no", status=1)
    assert "no: " in said
    assert "config" not in said
    code = "from launch.studies.plan import load_study as f; f('configs/studies/paper_ladder.py')"
    installed.run("python", "-c", code)


def test_texture_maps_from_python(installed: Installed) -> None:
    """The first example of docs/python.md, on an image and a mask of its own."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example
    write = (
        "import numpy as np, SimpleITK as sitk\n"
        "hu = np.random.default_rng(0).integers(-50, 400, (9, 10, 11)).astype(np.int16)\n"
        "mask = np.zeros(hu.shape, np.uint8); mask[2:7, 2:8, 2:9] = 20\n"
        "sitk.WriteImage(sitk.GetImageFromArray(hu), 'ct.nii.gz')\n"
        "sitk.WriteImage(sitk.GetImageFromArray(mask), 'mask.nii.gz')\n"
    )
    check = (
        "assert maps['glcm_Contrast'][mask].min() > 0 and not maps['glcm_Contrast'][~mask].any()"
    )
    installed.run("python", "-c", f"{write}{example[1]}{check}")


def test_absent_pyradiomics_is_told_in_one_line(installed: Installed) -> None:
    tables = ("--cohort", "no.csv", "--dxa", "no.csv", "--out", "pool")
    engine = ("--texture-engine", "pyradiomics")
    said = installed.run("osteojax", "prepare", *tables, *engine, status=1)
    assert len(said.splitlines()) == 1
    assert "osteojax[reference]" in said


def test_the_demo_runs(installed: Installed) -> None:
    assert "done in" in installed.run("osteojax", "demo", "--out", "demo")
    assert (installed.home / "demo" / "finetune" / "evaluation" / "report.html").is_file()
