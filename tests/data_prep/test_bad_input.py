"""Every kind of bad input of the main job: one line, a row in failures.csv, the others go on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

import data_prep.build
import data_prep.parts
import data_prep.shards
from osteojax.data.manifest import load_manifest
from tests.data_prep.interrupted import Killed, killed_at
from tests.data_prep.phantom import spine, write_scan, write_table
from tests.data_prep.prepared import arguments, contents, prepare


def like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    other = sitk.GetImageFromArray(values)
    other.CopyInformation(image)
    return other


def bad_scans(folder: Path) -> dict[str, tuple[dict, str, str]]:
    """Writes one scan per kind of bad input: name -> (row, part of the reason, of the remedy)."""
    phantom = spine(("L1", "L2"), 3.0)
    hu = sitk.GetArrayFromImage(phantom.ct)
    ids = sitk.GetArrayFromImage(phantom.mask)
    cts = {
        "with_nan": np.where(hu > 100, np.nan, hu).astype(np.float32),
        "constant": np.zeros_like(hu),
        "picture": np.clip((hu + 1000) / 8, 0, 255).astype(np.uint8),
        "unsigned": np.maximum(hu + 1024, 0).astype(np.uint16),
        "no_rescale": np.where(np.isin(np.arange(len(hu)), (9, 10, 30))[:, None, None], 1024, 0)
        + hu,
        "one_bright": np.where(ids == 20, hu + 700, hu),
    }
    masks = {
        "unknown_ids": np.where(ids > 0, ids + 180, 0).astype(np.uint8),
        "empty_mask": np.zeros_like(ids),
        "stray": np.where(
            np.arange(ids.size).reshape(ids.shape) == np.flatnonzero(ids == 20)[900], 20, 0
        ),
        "upside_down": np.where(ids > 0, 41 - ids.astype(int), 0),
    }
    rows = {name: write_scan(folder, name, phantom) for name in (*cts, *masks)}
    for name, values in cts.items():
        sitk.WriteImage(like(phantom.ct, values), str(folder / f"{name}_ct.nii.gz"))
    for name, values in masks.items():
        image = like(phantom.mask, values.astype(np.uint8))
        sitk.WriteImage(image, str(folder / f"{name}_mask.nii.gz"))
    for name in ("truncated", "absent", "shifted", "fractions"):
        rows[name] = write_scan(folder, name, phantom)
    whole = (folder / "truncated_ct.nii.gz").read_bytes()
    (folder / "truncated_ct.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "absent_ct.nii.gz").unlink()
    moved = sitk.Image(phantom.mask)
    moved.SetOrigin([x + 6 for x in moved.GetOrigin()])
    sitk.WriteImage(moved, str(folder / "shifted_mask.nii.gz"))
    half = like(phantom.mask, ids.astype(np.float32) / 2 + 0.25)
    sitk.WriteImage(half, str(folder / "fractions_mask.nii.gz"))
    expected = {
        "with_nan": ("NaN or infinite", "-1000 HU"),
        "constant": ("constant (0)", "Export"),
        "picture": ("8-bit picture", "Bring the CT itself"),
        "unsigned": ("offset of about +1024", "RescaleIntercept"),
        "no_rescale": ("slices (10 to 11, 31, counted from 1) are about 1020 HU higher", "export"),
        "one_bright": ("its mean is 880 HU", "metal, cement"),
        "unknown_ids": ("200, 201 are unknown", "totalsegmentator_v2"),
        "empty_mask": ("no vertebra T1-L6", "Segment"),
        "stray": ("27 mm^3", "remove the label"),
        "upside_down": ("numbered from below", "label scheme"),
        "truncated": ("is truncated: ", "Replace the file"),
        "absent": ("does not exist", "Correct the path"),
        "shifted": ("differ in geometry", "Resample the mask"),
        "fractions": ("fractions", "label map"),
    }
    return {name: (rows[name], *texts) for name, texts in expected.items()}


def test_bad_cases_are_told_and_the_others_go_on(tmp_path, capsys):
    bad = bad_scans(tmp_path)
    good = [write_scan(tmp_path, f"good{i}", spine(("L1", "L2"), 3.0, seed=i)) for i in range(2)]
    rows = [good[0], *(row for row, _, _ in bad.values()), good[1]]
    rows.append(good[1] | {"scan_id": "bad_row", "patient_id": "p9", "age": "old"})
    write_table(tmp_path / "cohort.csv", [row | {"site": "D"} for row in rows])
    results = [
        {"patient_id": good[0]["patient_id"], "level": level, "device": device, "bmd_g_cm2": bmd}
        for level, device, bmd in (
            ("L1", "hologic", "0.9"), ("L2", "toshiba", "0.9"), ("L3", "hologic", "950"),
        )
    ]  # fmt: skip
    write_table(tmp_path / "dxa.csv", results)
    out = tmp_path / "out"
    assert prepare(tmp_path, out) == 1
    failures = pd.read_csv(out / "failures.csv")
    assert tuple(failures.columns) == ("case", "reason", "remedy")
    found = {row.case: row for row in failures.itertuples()}
    first = f"{good[0]['patient_id']}"
    assert set(found) == {
        *(set(bad) - {"stray", "one_bright"}), "stray/L1", "one_bright/L1", "bad_row",
        f"{first}/L2", f"{first}/L3",
    }  # fmt: skip
    for name, (_, reason, remedy) in bad.items():
        row = found.get(name) or found[f"{name}/L1"]
        assert reason in row.reason
        assert remedy in row.remedy
        assert "unexpected" not in row.reason
    assert "toshiba" in found[f"{first}/L2"].reason
    assert "mg/cm^2" in found[f"{first}/L3"].remedy
    errors = capsys.readouterr().err
    assert "17 failures, all listed in" in errors
    assert "Traceback" not in errors
    vertebrae = pd.read_csv(out / "vertebrae.csv")
    assert sorted(set(vertebrae.scan_id)) == ["good0", "good1", "one_bright"]
    assert vertebrae.osteoporosis.tolist()[0] == 0
    assert load_manifest(out).num_items == 5


def test_nothing_left_is_an_error_and_says_why(tmp_path, capsys):
    row = write_scan(tmp_path, "only", spine(("L1", "L2"), 3.0))
    (tmp_path / "only_ct.nii.gz").write_bytes(b"broken")
    write_table(tmp_path / "cohort.csv", [row])
    write_table(tmp_path / "dxa.csv", [{"patient_id": row["patient_id"], "level": "L1",
                                        "device": "", "bmd_g_cm2": 1}])  # fmt: skip
    out = tmp_path / "out"
    assert prepare(tmp_path, out, "--external-sites", "") == 1
    error = capsys.readouterr().err
    assert "no item of the cohort is usable: 1 failures, 0 excluded" in error
    assert "only: CT only_ct.nii.gz cannot be read" in error
    assert pd.read_csv(out / "failures.csv").case.tolist() == ["only"]
    assert not (out / "manifest.json").exists()


def test_excluded_and_truncated_are_no_failures(tmp_path):
    phantom = spine(("L1", "L2", "L3"), 3.0)
    size = phantom.ct.GetSize()
    cut = [size[0], size[1], size[2] - 9]
    short = type(phantom)(
        sitk.RegionOfInterest(phantom.ct, cut, [0, 0, 0]),
        sitk.RegionOfInterest(phantom.mask, cut, [0, 0, 0]),
        phantom.centre_mm,
        phantom.axes,
    )
    rows = [write_scan(tmp_path, "short", short), write_scan(tmp_path, "metal", phantom)]
    rows[1] |= {"implant": "1"}
    write_table(tmp_path / "cohort.csv", [row | {"site": "D"} for row in rows])
    write_table(tmp_path / "dxa.csv", [{"patient_id": rows[0]["patient_id"], "level": "L2",
                                        "device": "", "bmd_g_cm2": 1}])  # fmt: skip
    assert prepare(tmp_path, tmp_path / "out") == 0
    assert pd.read_csv(tmp_path / "out" / "vertebrae.csv").level.tolist() == ["L2", "L3"]
    excluded = pd.read_csv(tmp_path / "out" / "excluded.csv")
    assert excluded.case.tolist() == ["metal", "short/L1"]
    assert excluded.reason.tolist() == ["implant", "truncated by the CT's border"]
    assert prepare(tmp_path, tmp_path / "kept", "--keep-truncated") == 0
    kept = pd.read_csv(tmp_path / "kept" / "vertebrae.csv")
    assert kept.level.tolist() == ["L1", "L2", "L3"]
    assert kept.truncated.tolist() == [1, 0, 0]


@pytest.mark.parametrize("limit_bytes", [2_000, 30_000, 120_000])
def test_a_full_disk_is_one_line_and_the_rerun_completes(
    cohort_folder, prepared, tmp_path, capsys, limit_bytes
):
    """RLIMIT_FSIZE makes writes fail as a full disk does, wherever the limit is reached."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        status = prepare(cohort_folder, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    error = capsys.readouterr().err
    assert "File too large. Finished work is kept" in error
    assert "Traceback" not in error
    assert not list(out.rglob(".tmp-*"))
    assert not (out / "manifest.json").exists()
    assert prepare(cohort_folder, out) == 0
    assert contents(out) == contents(prepared)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (data_prep.build, "prepare_item", 3),
        (data_prep.parts, "write_records", 2),  # a part is about to be written
        (data_prep.parts, "write_text", 2),  # the part is there, its report is not
        (data_prep.build, "merge_shard", 2),
        (data_prep.shards, "write_records", 1),
        (data_prep.build, "write_table", 2),  # everything but the tables
    ],
)
def test_stopped_anywhere_the_rerun_gives_the_same_bytes(
    cohort_folder, prepared, tmp_path, monkeypatch, module, name, call
):
    out = tmp_path / "out"
    with killed_at(monkeypatch, module, name, call):
        prepare(cohort_folder, out)
    assert not (out / "manifest.json").exists()
    (out / "shards").mkdir(exist_ok=True)
    (out / "shards" / ".tmp-half.array_record").write_bytes(b"half a shard")  # as kill -9 leaves it
    assert prepare(cohort_folder, out) == 0
    assert contents(out) == contents(prepared)


def test_stopped_between_a_shard_and_the_removal_of_its_parts(
    cohort_folder, prepared, tmp_path, monkeypatch
):
    out = tmp_path / "out"

    def stop(self, *args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        original = data_prep.shards.write_records

        def write_then_stop(*args):
            original(*args)
            patch.setattr(Path, "unlink", stop)

        patch.setattr(data_prep.shards, "write_records", write_then_stop)
        with pytest.raises(Killed):
            prepare(cohort_folder, out)
    assert list((out / "shards").glob("pool-*"))
    assert list((out / "parts").glob("*.array_record"))
    assert prepare(cohort_folder, out) == 0
    assert contents(out) == contents(prepared)


def children(pid: int) -> list[int]:
    """Processes started by `pid`, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_kill_9_with_workers_leaves_no_orphan_and_the_rerun_the_same_bytes(
    cohort_folder, prepared, tmp_path
):
    """One CT is a pipe that nobody writes to, so the run stands still in its middle."""
    folder, out = tmp_path / "cohort", tmp_path / "out"
    shutil.copytree(cohort_folder, folder)
    (folder / "s3_ct.nii.gz").unlink()
    os.mkfifo(folder / "s3_ct.nii.gz")
    command = [sys.executable, "-m", "launch.cli", *arguments(folder, out, "--workers", "2")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: (
                (out / "parts" / "000002.json").exists()
                and (out / "shards" / "pool-00000-of-00003.array_record").exists()
            )
        )
        workers = children(process.pid)
        assert len(workers) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))
    assert not (out / "manifest.json").exists()
    assert not (out / "parts" / "000003.json").exists()
    (folder / "s3_ct.nii.gz").unlink()
    shutil.copy(cohort_folder / "s3_ct.nii.gz", folder / "s3_ct.nii.gz")
    assert prepare(folder, out) == 0
    assert contents(out) == contents(prepared)


def test_two_runs_at_once_in_one_folder_are_refused(cohort_folder, tmp_path, capsys):
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert prepare(cohort_folder, out) == 1
    assert "another `osteojax prepare` is running here" in capsys.readouterr().err
