"""DICOM results: in their study, valid, and the only output that knows the patient."""

from __future__ import annotations

import logging
from pathlib import Path

import highdicom as hd
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

from launch.prediction import dicom_objects
from tests.data_prep.phantom import spine
from tests.dicom_series import PATIENT, SECRETS, write_series
from tests.launch.test_predict import run

REFUSED_NAME = "NOCARET SECRETNAME"
"""highdicom warns of names without carets, and quotes them."""


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A DICOM folder and the mask of its vertebrae."""
    folder = tmp_path_factory.mktemp("study")
    phantom = spine(("L1", "L2"), 3.0)
    write_series(folder / "ct", phantom.ct)
    sitk.WriteImage(phantom.mask, str(folder / "mask.nii.gz"))
    return folder / "ct", folder / "mask.nii.gz"


@pytest.fixture(scope="module")
def result(exported_model: Path, series: tuple[Path, Path], tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("result") / "out"
    assert run(exported_model, out, series[0], "--mask", str(series[1]), "--dicom-out") == 0
    return out


def sources(folder: Path) -> dict[str, Dataset]:
    read = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    return {header.SOPInstanceUID: header for header in read}


def test_both_objects_belong_to_the_study(result: Path, series: tuple[Path, Path]) -> None:
    source = next(iter(sources(series[0]).values()))
    report = pydicom.dcmread(result / dicom_objects.REPORT)
    page = pydicom.dcmread(result / dicom_objects.PAGE)
    uids = {source.SeriesInstanceUID}
    for made in (report, page):
        for keyword in ("StudyInstanceUID", *dicom_objects.PATIENT_AND_STUDY):
            assert str(made[keyword].value) == str(source[keyword].value), keyword
        assert made.SOPInstanceUID == made.file_meta.MediaStorageSOPInstanceUID
        uids |= {made.SeriesInstanceUID, made.SOPInstanceUID}
    assert len(uids) == 5  # nothing replaces what was there
    assert report.PatientName == PATIENT["PatientName"]
    referenced = report.CurrentRequestedProcedureEvidenceSequence
    found = {
        item.ReferencedSOPInstanceUID
        for study in referenced
        for one in study.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
    assert found == set(sources(series[0]))
    assert {item.ReferencedSOPInstanceUID for item in page.SourceImageSequence} == found


REQUIRED = {
    # PS3.3: types 1 and 2 of Patient, General Study, Series, Equipment, SOP Common, and of the
    # SR Document General module or the Image, Image Pixel and SC Equipment modules.
    "both": (*dicom_objects.PATIENT_AND_STUDY, "StudyInstanceUID", "SeriesInstanceUID", "Modality",
             "SeriesNumber", "InstanceNumber", "Manufacturer", "SOPClassUID", "SOPInstanceUID"),
    dicom_objects.REPORT: ("CompletionFlag", "VerificationFlag", "ContentDate", "ContentTime",
                           "PerformedProcedureCodeSequence", "ContentSequence", "ValueType",
                           "ConceptNameCodeSequence", "ContinuityOfContent",
                           "ReferencedPerformedProcedureStepSequence"),
    dicom_objects.PAGE: ("ConversionType", "PatientOrientation", "Rows", "Columns",
                         "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
                         "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                         "PixelData"),
}  # fmt: skip


@pytest.mark.parametrize("name", [dicom_objects.REPORT, dicom_objects.PAGE])
def test_required_attributes_are_there(result: Path, name: str) -> None:
    made = pydicom.dcmread(result / name)
    assert [k for k in (*REQUIRED["both"], *REQUIRED[name]) if k not in made] == []
    for element in made.iterall():  # every value fits its representation
        if element.VR in ("SH", "LO", "CS", "DS", "UI"):
            for value in element.value if element.VM > 1 else [element.value]:
                pydicom.valuerep.validate_value(element.VR, str(value), pydicom.config.RAISE)


def test_the_report_says_what_the_table_says(result: Path, series: tuple[Path, Path]) -> None:
    report = hd.sr.srread(result / dicom_objects.REPORT)
    table = pd.read_csv(result / "predictions.csv").set_index("level")
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["L1-L4", "L1", "L2"]
    everything = sources(series[0])
    for group in groups[1:]:
        row = table.loc[group.tracking_identifier]
        bmd = [
            (m.value, [d.value for d in _derivations(m)])
            for m in group.get_measurements(name=dicom_objects.BMD)
        ]
        expected = [
            (row["bmd_pred_g_cm2"], []),
            (row["bmd_low"], ["low"]),
            (row["bmd_high"], ["high"]),
        ]
        assert [d for _, d in bmd] == [d for _, d in expected]
        np.testing.assert_allclose([v for v, _ in bmd], [v for v, _ in expected], rtol=1e-5)
        (probability,) = group.get_measurements(name=dicom_objects.PROBABILITY)
        assert probability.value == pytest.approx(row["probability"], rel=1e-5)
        assert group.finding_sites[0].value.meaning == f"{group.tracking_identifier} vertebra"
        # The slice that it refers to runs through the body.
        (image,) = group.source_images
        header = everything[image.referenced_sop_instance_uid]
        ordered = sorted(h.ImagePositionPatient[2] for h in everything.values())
        assert header.ImagePositionPatient[2] == ordered[row["slice_index"]]
    verdict = groups[0].get_qualitative_evaluations(name=dicom_objects.VERDICT)
    patients = pd.read_csv(result / "patients.csv")
    assert verdict[0].value == dicom_objects.VERDICTS[bool(patients["osteoporosis_pred"][0])]


def _derivations(measurement) -> list:
    items = [i for i in getattr(measurement[0], "ContentSequence", []) if i.name.value == "121401"]
    return [item.value for item in items]


def test_the_page_is_a_picture_without_a_name(result: Path) -> None:
    page = pydicom.dcmread(result / dicom_objects.PAGE)
    assert page.pixel_array.shape == (page.Rows, page.Columns, 3)
    assert page.pixel_array.std() > 25
    assert page.BurnedInAnnotation == "NO"


def _leaks(text: str) -> list[str]:
    return [secret for secret in (*SECRETS, *REFUSED_NAME.split()) if secret in text]


def _contents(out: Path) -> str:
    """All that is not DICOM, as text, with the names of the files."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    return "".join(str(path) + path.read_bytes().decode("latin-1") for path in files)


def test_identifiers_reach_dicom_objects_only(
    exported_model: Path, series: tuple[Path, Path], tmp_path, capfd, caplog, recwarn
) -> None:
    ct, out = tmp_path / "ct", tmp_path / "out"
    image = sitk.ReadImage(str(series[1]))
    phantom = spine(("L1", "L2"), 3.0)
    assert image.GetSize() == phantom.ct.GetSize()
    write_series(ct, phantom.ct, PatientName=REFUSED_NAME, StudyTime="nonsense")
    capfd.readouterr()
    caplog.set_level(logging.DEBUG)
    recwarn.clear()
    options = ("--mask", str(series[1]), "--dicom-out")
    said = []

    def attempt(status: int) -> None:
        assert run(exported_model, out, ct, *options) == status
        streams = capfd.readouterr()
        said.append(streams.out + streams.err)

    attempt(1)  # a header that no result can be made from
    assert "no DICOM result" in said[-1]
    paths = write_series_again(ct, phantom.ct, PatientName=REFUSED_NAME)
    attempt(0)
    assert pydicom.dcmread(out / dicom_objects.REPORT).PatientName == REFUSED_NAME
    paths[3].write_bytes(paths[3].read_bytes()[:-100])  # not an end; fails inside the reader
    attempt(1)
    assert "cannot be read" in said[-1]
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    attempt(1)
    paths[3].unlink()
    attempt(1)
    assert "mm apart" in said[-1]
    write_series(ct, phantom.ct)  # a second series
    attempt(1)
    assert _leaks("".join(said)) == []
    assert _leaks(_contents(out)) == []
    assert _leaks(caplog.text) == []
    assert _leaks("".join(str(warning.message) for warning in recwarn)) == []


def write_series_again(folder: Path, ct: sitk.Image, **changes: str) -> list[Path]:
    for path in folder.iterdir():
        path.unlink()
    return write_series(folder, ct, **changes)


def test_only_dicom_gets_dicom_results(
    exported_model: Path, series: tuple[Path, Path], tmp_path, capsys
) -> None:
    ct = tmp_path / "ct.nii.gz"
    sitk.WriteImage(spine(("L1",), 3.0).ct, str(ct))
    options = ("--mask", str(series[1]), "--dicom-out")
    assert run(exported_model, tmp_path / "out", ct, *options) == 1
    assert "--dicom-out needs the CT as DICOM" in capsys.readouterr().err
