"""DICOM series and damaged files, written with pydicom (an independent library)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data_prep.volumes import read_volume
from osteojax.errors import CaseError

PATIENT = "DOE^JANE"


def write_series(
    folder: Path, count: int = 5, step_mm: float = 2.0, tilt_mm: float = 0.0, series: str = "1.2.3"
) -> list[Path]:
    """A CT series of 6x8 pixels whose HU are 100 * slice - 1024 + pixel index."""
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{series}.{i}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.PatientName, data.PatientID, data.Modality = PATIENT, "4711", "CT"
        data.SeriesInstanceUID, data.StudyInstanceUID = series, "1.2"
        data.FrameOfReferenceUID = "1.2.9"
        data.ImagePositionPatient = [-10.0, -20.0 + tilt_mm * i, 30.0 + step_mm * i]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [0.5, 0.75], step_mm
        data.Rows, data.Columns, data.InstanceNumber = 6, 8, count - i
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 0, 1, -1024
        pixels = (100 * i + np.arange(48)).astype(np.uint16)
        data.PixelData = pixels.tobytes()
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def test_a_series_is_read_in_place_order_with_rescaling(tmp_path):
    write_series(tmp_path)
    image = read_volume(tmp_path, "case")
    assert image.GetSize() == (8, 6, 5)
    np.testing.assert_allclose(image.GetSpacing(), [0.75, 0.5, 2.0])
    np.testing.assert_allclose(image.GetOrigin(), [-10, -20, 30])
    expected = 100 * np.arange(5)[:, None] - 1024 + np.arange(48)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).reshape(5, 48), expected)
    assert image.GetMetaDataKeys() == ()


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    write_series(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "readme.txt").write_text("hello")
    assert read_volume(tmp_path, "case").GetSize() == (8, 6, 5)


def refused(path: Path, message: str) -> CaseError:
    with pytest.raises(CaseError, match=message) as caught:
        read_volume(path, "case3")
    assert caught.value.case == "case3"
    assert PATIENT not in str(caught.value)
    assert "4711" not in str(caught.value)
    return caught.value


def test_a_missing_slice(tmp_path):
    write_series(tmp_path)[2].unlink()
    refused(tmp_path, "2.00 to 4.00 mm apart")


@pytest.mark.parametrize("which", [0, 2, 4])
def test_a_truncated_slice(tmp_path, which):
    path = write_series(tmp_path)[which]
    path.write_bytes(path.read_bytes()[:400])
    refused(tmp_path, "1 of 5 slices cannot be read|cannot be read")


def test_a_slice_cut_inside_its_pixels(tmp_path):
    path = write_series(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-40])
    refused(tmp_path, "cannot be read")


def test_two_series_in_a_folder(tmp_path):
    write_series(tmp_path, series="1.2.3")
    write_series(tmp_path, count=3, series="1.2.4")
    error = refused(tmp_path, r"2 series \(of (5, 3|3, 5) slices\)")
    assert "1.2.3" not in str(error)  # a UID is an identifier


def test_a_tilted_gantry(tmp_path):
    write_series(tmp_path, tilt_mm=0.5)
    refused(tmp_path, "0.50 mm in their plane")


def test_a_folder_without_a_series(tmp_path):
    refused(tmp_path, "no DICOM series")


def test_an_absent_file(tmp_path):
    refused(tmp_path / "gone.nii.gz", "does not exist")


@pytest.fixture
def volume(tmp_path):
    values = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)
    return sitk.GetImageFromArray(values)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(tmp_path, volume, suffix, keep):
    path = tmp_path / f"ct.{suffix}"
    sitk.WriteImage(volume, str(path), suffix != "nii")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(path, r"ct\.\S+ (cannot be read|is truncated)")


def test_a_flipped_bit_in_a_compressed_file(tmp_path, volume):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(volume, str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused(path, "cannot be read")


def test_whole_gzip_around_a_truncated_nifti(tmp_path, volume):
    sitk.WriteImage(volume, str(tmp_path / "ct.nii"))
    content = (tmp_path / "ct.nii").read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(gzip.compress(content[: len(content) - 100]))
    refused(path, r"truncated: 48,252 of 48,352 bytes")


def test_not_an_image(tmp_path):
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(b"not an image at all")
    refused(path, "cannot be read")


def test_pictures_and_vectors_are_not_volumes(tmp_path):
    flat = sitk.Image([8, 8], sitk.sitkInt16)
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    refused(tmp_path / "flat.mha", "8x8, not a volume")
    sitk.WriteImage(sitk.Image([8, 8, 1], sitk.sitkInt16), str(tmp_path / "one.mha"))
    refused(tmp_path / "one.mha", "8x8x1, not a volume")
    colour = sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3)
    sitk.WriteImage(colour, str(tmp_path / "colour.mha"))
    refused(tmp_path / "colour.mha", "3 channels")


def test_four_dimensions_of_one_frame_are_a_volume(tmp_path, volume):
    sitk.WriteImage(sitk.JoinSeries([volume]), str(tmp_path / "four.nii.gz"))
    assert read_volume(tmp_path / "four.nii.gz", "case").GetSize() == volume.GetSize()
    sitk.WriteImage(sitk.JoinSeries([volume, volume]), str(tmp_path / "two.nii.gz"))
    refused(tmp_path / "two.nii.gz", "40x30x20x2, not a volume")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", [sitk.sitkFloat32, sitk.sitkFloat64])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_nifti_is_seen_although_itk_reads_zeros(tmp_path, volume, suffix, kind, value):
    values = sitk.GetArrayFromImage(sitk.Cast(volume, kind))
    values[19, 29, 39] = value  # the very last voxel
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"ct.{suffix}"))
    refused(tmp_path / f"ct.{suffix}", "holds 1 NaN or infinite")
