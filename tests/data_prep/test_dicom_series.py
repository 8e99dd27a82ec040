"""Series whose slices contradict each other, and forms of DICOM, written with pydicom."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from data_prep import dicom_series
from data_prep.volumes import read_volume, series_files
from osteojax.errors import CaseError
from tests.data_prep.test_volumes import PATIENT, write_series

EXPECTED = (100 * np.arange(5)[:, None] - 1024 + np.arange(48)).reshape(5, 6, 8)


def change(path: Path, **values: object) -> None:
    data = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    data.save_as(path)


def refused(path: Path, message: str) -> CaseError:
    with pytest.raises(CaseError, match=message) as caught:
        read_volume(path, "case")
    assert "\n" not in str(caught.value)
    for secret in (PATIENT, "4711", "1.2.3"):
        assert secret not in str(caught.value)
    return caught.value


def same(path: Path, copies: int = 1) -> None:
    image = read_volume(path, "case")
    expected = np.tile(EXPECTED, (1, copies, copies))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    np.testing.assert_allclose(image.GetSpacing(), [0.75, 0.5, 2.0])
    np.testing.assert_allclose(image.GetOrigin(), [-10, -20, 30])
    np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, -1, 0, 0]}, "1 of 5 slices has another orientation"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.99, 0.1]}, "1 of 5 slices has another orient"),
        ({"PixelSpacing": [0.5, 0.8]}, "1 of 5 slices has other pixel spacing"),
        ({"RescaleIntercept": None}, "1 of 5 slices without rescale slope and intercept"),
        ({"RescaleSlope": ""}, "1 of 5 slices without rescale slope and intercept"),
        ({"RescaleIntercept": 0}, "1 of 5 slices has another rescale slope or intercept"),
        ({"RescaleSlope": 2}, "1 of 5 slices has another rescale slope or intercept"),
        ({"Modality": "MR"}, "1 of 5 slices has another modality"),
        ({"BitsStored": 12, "HighBit": 11}, "1 of 5 slices has another type of pixel"),
        ({"PixelRepresentation": 1}, "1 of 5 slices has another type of pixel"),
        ({"Rows": 8, "Columns": 6}, "1 of 5 slices has another number of rows or columns"),
        ({"Rows": 5}, "1 of 5 slices cannot be read"),
        ({"ImagePositionPatient": None}, "1 of 5 slices without a place"),
        ({"ImagePositionPatient": [-10, -20, 32]}, "1 of 5 slices at the place of another one"),
        ({"ImagePositionPatient": [-10, -20, 34.8]}, "1.20 to 2.80 mm apart"),
        ({"ImagePositionPatient": [-9, -20, 34]}, "1.00 mm in their plane"),
    ],
)  # fmt: skip
def test_a_slice_that_contradicts_the_others(tmp_path, values, message):
    change(write_series(tmp_path)[2], **values)
    refused(tmp_path, message)


def test_several_slices_without_rescale_tags(tmp_path):
    for path in write_series(tmp_path, count=12)[4:7]:
        change(path, RescaleIntercept=None, RescaleSlope=None)
    refused(tmp_path, "3 of 12 slices without rescale slope and intercept")


def test_a_doubled_slice(tmp_path):
    paths = write_series(tmp_path)
    shutil.copy(paths[1], tmp_path / "copy.dcm")
    refused(tmp_path, "1 of 6 slices at the place of another one, so they are doubled")


def test_what_has_no_pixels_is_left_aside(tmp_path):
    paths = write_series(tmp_path)
    data = pydicom.dcmread(paths[0])
    for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient"):
        delattr(data, keyword)
    classes = {
        "rtstruct": ("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"),
        "dose_report": ("1.2.840.10008.5.1.4.1.1.88.67", "SR"),
        "presentation": ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
    }
    for name, (uid, modality) in classes.items():
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID(uid)
        data.Modality, data.SeriesInstanceUID = modality, generate_uid()
        data.save_as(tmp_path / f"{name}.dcm")
    (tmp_path / "._IM1.dcm").write_bytes(b"\0\5\x16\7Mac OS X        ")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    same(tmp_path)
    assert series_files(tmp_path) == paths


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("by_pydicom", [False, True])
def test_packed_slices(tmp_path, syntax, by_pydicom, monkeypatch):
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg")
    paths = write_series(tmp_path)
    for path in paths:  # JPEG 2000 needs some 64 pixels a side
        data = pydicom.dcmread(path)
        data.PixelData = np.tile(data.pixel_array, (16, 16)).tobytes()
        data.Rows, data.Columns = 96, 128
        data.compress(syntax, generate_instance_uid=False)
        data.save_as(path)
    if by_pydicom:
        monkeypatch.setattr(dicom_series, "READ_BY_ITK", frozenset())
    same(tmp_path, copies=16)
    data = pydicom.dcmread(paths[2])
    (frame,) = generate_frames(data.PixelData, number_of_frames=1)
    data.PixelData = encapsulate([frame[:-20]])
    data.save_as(paths[2])
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("form", ["implicit", "big", "deflated", "no_ending"])
def test_other_forms(tmp_path, form):
    for path in write_series(tmp_path):
        data = pydicom.dcmread(path)
        if form == "no_ending":
            path.rename(path.with_name(path.name.replace(".", "_")))
            continue
        syntax = {"implicit": "", "big": ".2", "deflated": ".1.99"}[form]
        data.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2{syntax}")
        if form == "big":
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        whole = FileDataset(str(path), dict(data), file_meta=data.file_meta, preamble=bytes(128))
        pydicom.dcmwrite(path, whole, enforce_file_format=True)
    same(tmp_path)


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000.*Lossless"),
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.276.0.7230010.9", "an unknown syntax"),
    ],
)
def test_a_syntax_without_a_decoder_is_named(tmp_path, uid, name, monkeypatch):
    class Absent:
        is_available = False

    if uid.endswith("201"):  # the tests' environment has a decoder
        monkeypatch.setattr(dicom_series, "get_decoder", lambda syntax: Absent)
    for path in write_series(tmp_path):
        data = pydicom.dcmread(path)
        data.compress(JPEGLSLossless, generate_instance_uid=False)
        data.save_as(path)
        content, old = path.read_bytes(), JPEGLSLossless.encode().ljust(22, b"\0")
        assert content.count(old) == 1
        content = content.replace(old, uid.encode().ljust(len(uid) + len(uid) % 2, b"\0"), 1)
        at = content.index(b"\x02\x00\x10\x00UI") + 6
        size = len(uid) + len(uid) % 2
        path.write_bytes(content[:at] + size.to_bytes(2, "little") + content[at + 2 :])
    error = refused(tmp_path, f"has slices packed as {name}.*no decoder is installed")
    assert "uncompressed" in error.remedy


def enhanced(path: Path, **changes: object) -> Path:
    """An enhanced CT of the same five slices, frames in reverse order."""
    source = write_series(path.parent / "source")
    data = pydicom.dcmread(source[0])
    frames = [pydicom.dcmread(one) for one in reversed(source)]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    data.NumberOfFrames = len(frames)
    data.PixelData = b"".join(frame.PixelData for frame in frames)

    def group(**values: object) -> list[Dataset]:
        inner = Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        return [inner]

    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = group(PixelSpacing=[0.5, 0.75], SliceThickness=2.0)
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    for i, frame in enumerate(frames):
        own = Dataset()
        own.PlanePositionSequence = group(ImagePositionPatient=frame.ImagePositionPatient)
        values = {"RescaleSlope": 1, "RescaleIntercept": -1024, **(changes if i == 1 else {})}
        own.PixelValueTransformationSequence = group(**values)
        data.PerFrameFunctionalGroupsSequence.append(own)
    for keyword in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
        "RescaleIntercept", "SliceThickness",
    ):  # fmt: skip
        delattr(data, keyword)
    path.parent.mkdir(exist_ok=True)
    data.save_as(path)
    return path


def test_an_enhanced_ct(tmp_path):
    same(enhanced(tmp_path / "ct.dcm"))
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tmp_path / "ct.dcm", folder)
    same(folder)


def test_an_enhanced_ct_that_contradicts_itself(tmp_path):
    path = enhanced(tmp_path / "ct.dcm", RescaleIntercept=0)
    refused(path, "1 of 5 slices has another rescale")
    path = enhanced(tmp_path / "cut.dcm")
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "cannot be read")


def test_one_slice_is_no_volume(tmp_path):
    (path,) = write_series(tmp_path, count=1)
    refused(path, "is one DICOM file, not a volume")
    refused(tmp_path, "holds one slice, not a volume")


def test_pixels_of_another_length_than_the_header_says(tmp_path):
    path = write_series(tmp_path)[3]
    data = pydicom.dcmread(path)
    data.PixelData = data.PixelData[:-16]
    data.save_as(path)
    refused(tmp_path, "1 of 5 slices cannot be read")
