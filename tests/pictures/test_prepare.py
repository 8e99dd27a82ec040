"""A kind of data outside the packages goes through `osteojax prepare`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from launch.cli import main
from osteojax.data.cohort import open_cohort
from tests.data_prep.prepared import contents
from tests.pictures import commands


def test_what_is_stored_is_what_was_brought(folder, prepared):
    cohort, brought = open_cohort(prepared), pd.read_csv(folder / "pictures.csv")
    assert cohort.table["picture_id"].tolist() == brought["picture_id"].tolist()
    for row, file in enumerate(brought["file"]):
        picture = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / file)))
        np.testing.assert_array_equal(cohort.array(row, "picture"), picture)
    training = cohort.rows("train")
    pixels = np.stack([cohort.array(row, "picture") for row in training]).astype(np.float64)
    assert cohort.about == pytest.approx({"mean": pixels.mean(), "std": pixels.std()})
    width = cohort.manifest.target("width")
    assert width.mean == pytest.approx(np.nanmean(brought["width_px"][training]))
    assert cohort.targets["direction"][-1] == -1
    assert cohort.labelled().sum() == len(cohort) - 1
    assert [shard["items"] for shard in cohort.manifest.shards] == [5, 5, 5, 5, 4]


@pytest.mark.parametrize("spoilt", ["unreadable", "another_size"])
def test_a_bad_picture_is_a_failure_and_joins_once_it_is_repaired(
    folder, prepared, tmp_path, capsys, spoilt
):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(folder, copy)
    if spoilt == "unreadable":
        (copy / "P01-left.png").write_bytes(b"no picture")
    else:
        sitk.WriteImage(sitk.Image(9, 9, sitk.sitkUInt8), str(copy / "P01-left.png"))
    assert main(commands.prepare(copy, out)) == 1
    failures = pd.read_csv(out / "failures.csv")
    assert failures["case"].tolist() == ["P01-left"]
    assert failures["remedy"].notna().all()
    told = capsys.readouterr()
    assert "failed: P01-left: " in told.err
    assert "23 pictures in 5 shards" in told.out
    shutil.copy(folder / "P01-left.png", copy)
    assert main(commands.prepare(copy, out)) == 0
    assert contents(out) == contents(prepared)


def test_killed_the_rerun_gives_the_same_bytes(folder, prepared, tmp_path):
    """One picture is a pipe that nobody writes to, so the run stands still there."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(folder, copy)
    (copy / "P05-left.png").unlink()
    os.mkfifo(copy / "P05-left.png")
    command = [sys.executable, "-m", "launch.cli", *commands.prepare(copy, out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    try:
        while not (out / "shards" / "pictures-00000-of-00005.array_record").exists():
            assert time.monotonic() < end, "no shard was written"
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "manifest.json").exists()
    (copy / "P05-left.png").unlink()
    shutil.copy(folder / "P05-left.png", copy)
    assert main(commands.prepare(copy, out)) == 0
    assert contents(out) == contents(prepared)


@pytest.mark.slow  # starting workers takes most of it
def test_two_workers_change_no_byte(folder, prepared, tmp_path):
    assert main(commands.prepare(folder, tmp_path / "out", workers=2)) == 0
    assert contents(tmp_path / "out") == contents(prepared)
