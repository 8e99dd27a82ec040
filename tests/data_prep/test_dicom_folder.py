"""A folder as a PACS exports it: what each series is, which one is used, and who can read what."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk

from data_prep.dicom_folder.choice import is_sharp
from data_prep.volumes import read_volume
from launch import cli
from osteojax.errors import CaseError
from tests.dicom_series import PATIENT, SECRETS, write_series

STUDY = "1.2.826.0.1.3680043.8.498.7"
CORONAL = [1, 0, 0, 0, 0, -1]


def series(folder: Path, slices: int = 24, step_mm: float = 1.0, **values: object) -> list[Path]:
    """Writes a series of 8 x 8 voxels with other values in its headers."""
    ct = sitk.GetImageFromArray(np.random.default_rng(slices).normal(0, 300, (slices, 8, 8)))
    ct.SetSpacing((0.8, 0.8, step_mm))
    paths = write_series(folder, ct)
    for path in paths:
        data = pydicom.dcmread(path)
        for keyword, value in {"StudyInstanceUID": STUDY, **values}.items():
            setattr(data, keyword, value)
        data.save_as(path)
    return paths


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients. The first study has an axial CT in four reconstructions and what comes with it,
    partly in one folder; the second has a scout and no axial CT."""
    root = tmp_path_factory.mktemp("export")
    mixed = root / "DOE^JANE" / "A"
    series(mixed, step_mm=1.0, ConvolutionKernel="Br40f")
    series(mixed, step_mm=1.0, ConvolutionKernel="Br64f")
    series(mixed, step_mm=5.0, ConvolutionKernel="Br40f")
    series(root / "B", slices=26, step_mm=1.0, ConvolutionKernel="BONE")
    series(root / "C", ImageOrientationPatient=CORONAL, ImageType=["DERIVED", "SECONDARY", "MPR"])
    series(root / "D", slices=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for path in series(root / "E", slices=2, Modality="SR"):
        data = pydicom.dcmread(path)
        del data.Rows, data.Columns, data.PixelData
        data.save_as(path)
    other = {"StudyInstanceUID": f"{STUDY}.2", "PatientID": "MRN-4711-0816"}
    series(root / "F", slices=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **other)
    (root / "README.txt").write_text("not DICOM")
    (root / "C" / "._IM1.dcm").write_bytes(b"\0" * 300)
    (root / "damaged").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    return root


def run(export: Path, out: Path, *options: str) -> int:
    return cli.main(["cohort", str(export), "--from", "dicom", "--out", str(out), *options])


@pytest.fixture(scope="module")
def cohort(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "cohort.csv"
    # 1: a damaged file, and a study without an axial CT
    assert run(export, out, "--link", str(out.parent / "link.csv"), "--site", "B") == 1
    return out


def test_every_series_is_listed_and_one_of_a_study_is_used(cohort: Path) -> None:
    found = pd.read_csv(cohort.parent / "series.csv", keep_default_na=False)
    assert sorted(zip(found["what"], found["slices"], found["used"], strict=True)) == [
        ("axial CT", 24, 0),
        ("axial CT", 24, 0),
        ("axial CT", 24, 1),
        ("axial CT", 26, 0),
        ("dose report", 2, 0),
        ("sagittal or coronal reformat", 24, 0),
        ("scout", 2, 0),
        ("scout", 2, 0),
    ]
    used = found[found["used"] == 1].iloc[0]
    # as thin as the others, and soft; the sharp one of 26 slices has more of them
    assert (used["slice_mm"], used["kernel"]) == (1.0, "Br40f")
    [row] = pd.read_csv(cohort, keep_default_na=False).to_dict("records")
    assert row["scan_id"] == used["scan_id"]
    assert (row["site"], row["sex"], row["age"], row["ct_date"]) == ("B", "F", 80, "2024-02-29")
    assert row["mask"] == ""


def test_the_list_of_files_is_read_as_the_series(export: Path, cohort: Path) -> None:
    [row] = pd.read_csv(cohort).to_dict("records")
    image = read_volume(cohort.parent / row["ct"], "case")
    soft = [
        path
        for path in (export / "DOE^JANE" / "A").iterdir()
        if (data := pydicom.dcmread(path)).ConvolutionKernel == "Br40f" and data.SliceThickness == 1
    ]
    soft.sort(key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    expected = np.stack([pydicom.dcmread(path).pixel_array - 1024.0 for path in soft])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    np.testing.assert_allclose(image.GetSpacing(), (0.8, 0.8, 1.0))


def test_a_list_whose_files_are_gone_says_how_many(cohort: Path, tmp_path: Path) -> None:
    lines = next((cohort.parent / "series").iterdir()).read_text().splitlines()
    broken = tmp_path / "list.txt"
    broken.write_text("\n".join([*lines[:-2], "gone", "gone too"]))
    with pytest.raises(CaseError, match="names 24 files, of which 2 do not exist"):
        read_volume(broken, "case")


def test_nothing_tells_who_the_patients_are(cohort: Path, export: Path, capsys) -> None:
    assert run(export, cohort) == 1
    said = capsys.readouterr()
    texts = [said.out, said.err, cohort.read_text(), (cohort.parent / "series.csv").read_text()]
    for secret in (*SECRETS, *PATIENT.values(), "DOE^JANE"):
        if secret not in ("F", "101112"):
            assert not any(secret in text for text in texts), secret
    for private in ("link.csv", "pseudonyms.key", *(f"series/{p.name}" for p in
                    (cohort.parent / "series").iterdir())):  # fmt: skip
        assert stat.S_IMODE((cohort.parent / private).stat().st_mode) == 0o600


def test_the_link_leads_back(cohort: Path) -> None:
    [row] = pd.read_csv(cohort).to_dict("records")
    with (cohort.parent / "link.csv").open(encoding="utf-8") as stream:
        [link] = csv.DictReader(stream)
    assert (link["patient_id"], link["scan_id"]) == (row["patient_id"], row["scan_id"])
    assert link["PatientID"] == PATIENT["PatientID"]
    assert link["StudyInstanceUID"] == STUDY


def test_a_rerun_keeps_pseudonyms_and_what_the_user_wrote(cohort: Path, export: Path) -> None:
    before = pd.read_csv(cohort, dtype=str, keep_default_na=False)
    filled = before.assign(mask="masks/one.nii.gz", remark="seen")
    filled.to_csv(cohort, index=False)
    assert run(export, cohort) == 1
    after = pd.read_csv(cohort, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(after, filled)
    before.to_csv(cohort, index=False)


def test_another_key_gives_other_pseudonyms(cohort: Path, export: Path, tmp_path: Path) -> None:
    assert run(export, tmp_path / "cohort.csv") == 1
    here, there = (pd.read_csv(path).loc[0] for path in (tmp_path / "cohort.csv", cohort))
    assert here["patient_id"] != there["patient_id"]
    assert here["scan_id"] != there["scan_id"]
    (tmp_path / "pseudonyms.key").write_text("short")
    assert run(export, tmp_path / "cohort.csv") == 1


def test_a_folder_without_series_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert run(tmp_path, tmp_path / "out" / "cohort.csv") == 1
    assert "no DICOM series was found (1 other files, 0 damaged)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kernel", "sharp"),
    [
        ("B30f", False), ("Br40f", False), ("I26f", False), ("Br64f", True), ("B70f", True),
        ("STANDARD", False), ("SOFT", False), ("BONEPLUS", True), ("LUNG", True),
        ("FC08", False), ("FC18", False), ("FC30", True), ("FC51", True), ("FC86", True),
        ("B", False), ("YB", False), ("YD", True), ("", False),
    ],
)  # fmt: skip
def test_kernels_of_four_makers(kernel: str, sharp: bool) -> None:
    assert is_sharp(kernel) == sharp
