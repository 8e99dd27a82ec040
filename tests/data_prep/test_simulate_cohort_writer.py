"""A simulated cohort on disk: layout, determinism, resuming, refusals."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from data_prep.simulate import cohort_writer
from data_prep.simulate.cohort_writer import simulate_cohort
from data_prep.simulate.patients import Settings, draw_patient
from data_prep.vertebrae.cohort import read_cohort
from data_prep.vertebrae.scanners import DEFAULT_DEVICES
from launch.cli import main
from osteojax.errors import UserError

SETTINGS = Settings(sites=("A", "D"), seed=5, levels=("L1", "L2", "L3", "L4"), spacing_mm=3.0)


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "cohort"
    assert len(list(simulate_cohort(folder, SETTINGS, 4))) == 4
    return folder


def test_layout_is_the_users_own(cohort):
    table = pd.read_csv(cohort / "cohort.csv")
    assert tuple(table.columns) == (
        "patient_id", "scan_id", "site", "ct", "mask", "sex", "age", "label_scheme", "ct_date",
        "contrast", "fracture", "implant",
    )  # fmt: skip
    assert list(table["patient_id"]) == ["A0001", "D0002", "A0003", "D0004"]
    assert set(table["label_scheme"]) == {"verse"}
    for row in table.itertuples():
        image = sitk.ReadImage(str(cohort / row.ct))
        mask = sitk.ReadImage(str(cohort / row.mask))
        assert image.GetPixelID() == sitk.sitkInt16
        assert image.GetSize() == mask.GetSize()
        np.testing.assert_allclose(image.GetOrigin(), mask.GetOrigin())
        np.testing.assert_allclose(image.GetDirection(), mask.GetDirection())
        assert set(np.unique(sitk.GetArrayFromImage(mask))) == {0, 20, 21, 22, 23}
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        scanner = draw_patient(SETTINGS, row.Index).scanner
        assert code == {"scanner1": "LPS", "scanner2": "RAS", "scanner4": "LAS"}[scanner]
    dxa = pd.read_csv(cohort / "dxa.csv")
    assert tuple(dxa.columns) == (
        "patient_id", "level", "device", "bmd_g_cm2", "t_score", "osteoporosis", "dxa_date",
    )  # fmt: skip
    assert set(dxa["device"]) == {"hologic"}
    assert not dxa.duplicated(["patient_id", "level"]).any()
    assert dxa["bmd_g_cm2"].between(0.3, 1.8).all()
    assert ((dxa["t_score"] <= -2.5) == (dxa["osteoporosis"] == 1)).all()


def test_truth_is_near_what_was_measured(cohort):
    truth = pd.read_csv(cohort / "truth.csv")
    assert len(truth) == 4 * 4
    merged = pd.read_csv(cohort / "dxa.csv").merge(truth, on=["patient_id", "level"])
    error = merged["bmd_g_cm2"] / merged["bmd_g_cm2_hologic"] - 1
    assert error.abs().max() < 0.06
    ratio = truth["bmd_g_cm2_ge_lunar"] / (1.074 * truth["bmd_g_cm2_hologic"] + 0.054)
    own = ratio.groupby(truth["patient_id"]).transform("first")
    np.testing.assert_allclose(ratio, own, atol=2e-4)  # a patient's deviation, at every level
    assert (ratio - 1).abs().between(1e-4, 0.15).all()
    assert set(truth["kvp"]) == {120}


def test_bytes_do_not_depend_on_workers_or_on_the_cohorts_size(cohort, tmp_path):
    list(simulate_cohort(tmp_path / "two", SETTINGS, 5, workers=2))
    ours, theirs = _digests(cohort), _digests(tmp_path / "two")
    scans = [name for name in ours if name.endswith(".nii.gz")]
    assert len(scans) == 8
    assert {name: theirs[name] for name in scans} == {name: ours[name] for name in scans}
    assert (
        (tmp_path / "two" / "cohort.csv")
        .read_text()
        .startswith((cohort / "cohort.csv").read_text())
    )


def test_rerun_keeps_what_is_finished(cohort, monkeypatch):
    before = _digests(cohort)
    lost = cohort / "mask" / "D0002-CT1.nii.gz"
    lost.unlink()
    (cohort / "cohort.csv").unlink()
    rendered = []
    render = cohort_writer.render
    monkeypatch.setattr(
        cohort_writer, "render", lambda s, p: rendered.append(p.scan_id) or render(s, p)
    )
    list(simulate_cohort(cohort, SETTINGS, 4))
    assert rendered == ["D0002-CT1"]
    assert _digests(cohort) == before


def test_other_settings_and_other_folders_are_refused(cohort, tmp_path):
    other = dataclasses.replace(SETTINGS, texture_signal=0.0)
    with pytest.raises(UserError, match=r"texture_signal 1\.0, not 0\.0.*--out"):
        simulate_cohort(cohort, other, 4)
    with pytest.raises(UserError, match=r"complete_labels None, not \[0\.1, 0\.3\]"):
        simulate_cohort(cohort, dataclasses.replace(SETTINGS, complete_labels=(0.1, 0.3)), 4)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a simulated cohort"):
        simulate_cohort(tmp_path, SETTINGS, 4)
    with pytest.raises(UserError, match=r"at least one per site.*Ask for 4"):
        simulate_cohort(tmp_path / "new", SETTINGS, 1)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "simulation.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        simulate_cohort(tmp_path / "damaged", SETTINGS, 4)


def test_a_full_disk_leaves_no_half_written_scan(tmp_path, monkeypatch):
    def truncate(image, path, useCompression):
        Path(path).write_bytes(b"\x1f\x8b" + bytes(100))

    monkeypatch.setattr(cohort_writer.sitk, "WriteImage", truncate)
    with pytest.raises(UserError, match="only partly written"):
        simulate_cohort(tmp_path / "full", SETTINGS, 4)
    assert not list((tmp_path / "full").rglob("*.nii.gz"))
    assert not (tmp_path / "full" / "cohort.csv").exists()


def test_command_line(cohort, capsys):
    command = ["simulate", "--out", str(cohort), "--patients", "4", "--sites", "A,D"]
    same = [*command, "--seed", "5", "--levels", "L1-L4", "--spacing-mm", "3"]
    assert main(same) == 0
    assert "labelled" in capsys.readouterr().out
    assert json.loads((cohort / "simulation.json").read_text())["seed"] == 5
    assert main([*same, "--texture-signal", "0.5"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    for wrong in (
        ["--sites", "A,E"],
        ["--levels", "L2-L5"],
        ["--levels", "C7-L5"],
        ["--slice-mm", "0.5"],
        ["--scanners", "all"],
        ["--hu-signal", "-1"],
        ["--complete-labels", "0.7,0.3"],
        ["--complete-labels", "0.1"],
        ["--spacing-mm", "9"],
        ["--texture-signal", "2"],
        ["--workers", "0"],
        ["--seed", "-1"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *wrong])
        assert stopped.value.code == 2
        capsys.readouterr()


def _write_nothing(directory: Path, settings: Settings, number: int) -> None:
    """In place of a rendering: the empty files that say that a scan is finished."""
    for path in cohort_writer.scan_paths(directory, draw_patient(settings, number).scan_id):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_written_split_is_what_prepare_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(cohort_writer, "write_scan", _write_nothing)
    settings = Settings(seed=3, complete_labels=(0.2, 0.3))
    list(simulate_cohort(tmp_path / "cohort", settings, 80))
    tables = [tmp_path / "cohort" / name for name in ("cohort.csv", "dxa.csv")]
    cohort = read_cohort(*tables, DEFAULT_DEVICES, "verse", frozenset({"D"}))
    assert not cohort.failures
    excluded = {patient for _, patient, _ in cohort.excluded}
    for scan in cohort.items:
        drawn = draw_patient(settings, int(scan.patient_id[1:]) - 1)
        assert scan.split == drawn.split
        if scan.split != "train":
            assert tuple(scan.dxa) == ("L1", "L2", "L3", "L4")
    assert {scan.split for scan in cohort.items} == {"train", "valid", "test", "external"}
    for number in range(80):
        patient = draw_patient(settings, number)
        unusual = patient.contrast or patient.fractured_level or patient.screwed_levels
        assert (patient.patient_id in excluded) == bool(unusual)


PEAK_MEMORY = """
import resource, sys
from pathlib import Path
from data_prep.simulate import cohort_writer
from data_prep.simulate.patients import Settings, draw_patient

def write_nothing(directory, settings, number):
    for path in cohort_writer.scan_paths(directory, draw_patient(settings, number).scan_id):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

cohort_writer.write_scan = write_nothing
for patient in cohort_writer.simulate_cohort(sys.argv[1], Settings(), int(sys.argv[2])):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow  # two processes, 8,000 patients drawn
def test_2000_patients_need_no_more_memory_than_20(tmp_path):
    """Beside the rendering, which is one patient's: tables are written a patient at a time."""
    kilobytes = []
    for patients in (20, 2000):
        folder = tmp_path / str(patients)
        command = [sys.executable, "-c", PEAK_MEMORY, str(folder), str(patients)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        kilobytes.append(int(done.stdout))
        assert len(pd.read_csv(folder / "truth.csv")) == patients * 6
    # The patients themselves, 5.7 kB each, would be 11 MB; what stays is their numbers and sites.
    assert kilobytes[1] - kilobytes[0] < 6_000


def test_truth_is_read_by_no_verb_but_the_study():
    """A model must not see it: only what writes it, and the study's oracle, name the file."""
    root = Path(cohort_writer.__file__).parents[2]
    naming = {
        str(path.relative_to(root))
        for folder in ("osteojax", "data_prep", "launch")
        for path in (root / folder).rglob("*.py")
        if "truth.csv" in path.read_text(encoding="utf-8")
    }
    assert "data_prep/simulate/cohort_writer.py" in naming
    allowed = ("data_prep/simulate/", "launch/simulate.py", "launch/stud", "launch/readouts/")
    assert not [name for name in naming if not name.startswith(allowed)]


@pytest.mark.slow  # a process with workers of its own
def test_workers_end_with_the_process_that_started_them(tmp_path):
    command = [sys.executable, "-m", "launch.cli", "simulate", "--out", str(tmp_path / "cohort")]
    options = ["--patients", "50", "--levels", "L1-L4", "--spacing-mm", "3.0", "--workers", "2"]
    main = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children")
    while not any((tmp_path / "cohort").glob("ct/*.nii.gz")):
        assert main.poll() is None
        time.sleep(0.2)
    workers = [int(pid) for pid in children.read_text().split()]
    assert len(workers) >= 2
    main.kill()
    main.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "workers live on"
        time.sleep(0.2)
