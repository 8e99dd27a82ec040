"""A missing mask: what is said, and TotalSegmentator (a stand-in on PATH) where it is asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from launch.prediction import segment
from osteojax.errors import CaseError
from tests.data_prep.phantom import spine, write_table
from tests.launch.test_predict import run

PROGRAM = """#!{python}
import json, shutil, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
print("SECRET^NAME", file=sys.stderr)
if {mask!r}:
    shutil.copy({mask!r}, words[words.index("-o") + 1])
sys.exit({status})
"""


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Folder with ct.nii.gz and truth.nii.gz in TotalSegmentator's numbers."""
    phantom = spine(("L1", "L2"), 3.0)
    verse = sitk.GetArrayFromImage(phantom.mask).astype(int)
    numbers = sitk.GetImageFromArray(np.where(verse > 0, 44 - (verse - 7), 0).astype(np.uint8))
    numbers.CopyInformation(phantom.ct)
    sitk.WriteImage(phantom.ct, str(tmp_path / "ct.nii.gz"))
    sitk.WriteImage(numbers, str(tmp_path / "truth.nii.gz"))
    return tmp_path


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, mask: str, status: int = 0) -> Path:
    """Puts the stand-in on PATH; returns its log of calls."""
    programs, log = folder / "bin", folder / "calls.txt"
    programs.mkdir()
    program = programs / segment.PROGRAM
    words = {"python": sys.executable, "log": str(log), "mask": mask, "status": status}
    program.write_text(PROGRAM.format(**words))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return log


def test_masks_are_made_once(exported_model: Path, scan: Path, monkeypatch) -> None:
    log = install(scan, monkeypatch, str(scan / "truth.nii.gz"))
    out, ct = scan / "out", scan / "ct.nii.gz"
    assert run(exported_model, out, ct, "--segment") == 0
    assert list(pd.read_csv(out / "predictions.csv")["level"]) == ["L1", "L2"]
    (call,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert call[:2] == ["-i", str(ct)]
    assert call[4:] == ["--ml", "--roi_subset", *(f"vertebrae_{v}" for v in (
        "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5"))]  # fmt: skip
    # Another question about the same CT needs no second segmentation; a table's row gets its own.
    assert run(exported_model, out, ct, "--segment", "--device", "hologic") == 0
    assert len(log.read_text().splitlines()) == 1
    table = write_table(scan / "t.csv", [{"scan_id": "a", "ct": "ct.nii.gz"}])
    assert run(exported_model, scan / "many", table, "--segment") == 0
    assert (scan / "many" / "a" / "segmentation.nii.gz").is_file()


@pytest.mark.parametrize("status", [0, 3])
def test_a_segmentation_that_fails(scan: Path, monkeypatch, status: int) -> None:
    install(scan, monkeypatch, "", status)
    mask = scan / "made.nii.gz"
    with pytest.raises(CaseError, match=f"status {status} and no mask") as caught:
        segment.make_mask(scan / "ct.nii.gz", mask, "case")
    assert "SECRET" not in str(caught.value)
    assert f"TotalSegmentator -i {scan / 'ct.nii.gz'}" in caught.value.remedy
    assert not mask.exists()


def test_not_installed(exported_model: Path, scan: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(scan))
    assert run(exported_model, scan / "out", scan / "ct.nii.gz", "--segment") == 1
    assert "pip install TotalSegmentator" in capsys.readouterr().err
