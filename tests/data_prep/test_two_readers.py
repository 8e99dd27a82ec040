"""What `read_volume` accepts, an independent library reads in the same way; the rest is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.volumes import read_volume
from osteojax.errors import CaseError
from tests.oracles.volumes import assert_same, second_reading

VALUES = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
TURNS = {
    "lps": np.eye(3),
    "ras": np.diag([-1.0, -1.0, 1.0]),
    "lps_left_handed": np.diag([1.0, 1.0, -1.0]),
    "pir": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "oblique": sitk.VersorTransform((0.2, -0.3, 0.1, 0.9)).GetMatrix(),
}


def ct(kind: str = "i2", turn: str = "oblique") -> sitk.Image:
    values = (VALUES % 120 if kind[0] == "u" or kind == "i1" else VALUES).astype(kind)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-10.5, 20.25, -300.125))
    image.SetDirection(np.array(TURNS[turn]).ravel().tolist())
    return image


def agree(path: Path) -> sitk.Image:
    image = read_volume(path, "case")
    assert_same(image, second_reading(path))
    return image


def refused(path: Path, message: str) -> None:
    with pytest.raises(CaseError, match=message) as caught:
        read_volume(path, "case")
    assert "\n" not in str(caught.value)
    assert len(caught.value.remedy) > 10


SPELLINGS = {
    "nii": ("ct.nii", "ct.NII", "ct.nii.gz", "ct", "ct.nrrd", "1.2.840"),
    "nii.gz": ("ct.nii.gz", "ct.Nii.GZ", "ct.NII.gz", "ct.nii", "ct", "ct.hdr"),
    "nrrd": ("ct.nrrd", "ct.NRRD", "ct", "ct.nii.gz", "ct.nhdr"),
    "mha": ("ct.mha", "ct.MHA", "ct", "ct.nii"),
}


@pytest.mark.parametrize("turn", list(TURNS))
@pytest.mark.parametrize("written", list(SPELLINGS))
def test_every_spelling_and_orientation(tmp_path, written, turn):
    base = tmp_path / f"base.{written}"
    sitk.WriteImage(ct(turn=turn), str(base), written in ("nrrd", "mha"))
    before = sitk.ReadImage(str(base))
    for name in SPELLINGS[written]:
        path = tmp_path / name
        path.write_bytes(base.read_bytes())
        image = agree(path)
        # Prepared folders keep their bytes: place and type are ITK's, to the last bit.
        assert image.GetPixelID() == before.GetPixelID()
        for place in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, place)() == getattr(before, place)()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(before))


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd", "ct.mha", "ct.mhd", "ct.nhdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_type_of_voxel(tmp_path, kind, name, packed):
    sitk.WriteImage(ct(kind), str(tmp_path / name), packed)
    agree(tmp_path / name)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("slope", [(1.0, 0.0), (2.0, -1024.0), (5e-4, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("kind", ["i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("forms", [(1, 1), (0, 2), (1, 0)])
def test_headers_of_nifti(tmp_path, order, slope, kind, forms):
    nib = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [np.array(TURNS["oblique"]).reshape(3, 3) * [0.8, 0.9, 2.5], [-10.5, 20, -300]]
    )
    header = nib.Nifti1Header(endianness=order)
    header.set_data_shape((6, 5, 4))
    header.set_data_dtype(np.dtype(order + kind))
    header.set_qform(affine, forms[0])
    header.set_sform(affine, forms[1])
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, *slope
    content = header.binaryblock + bytes(4) + VALUES.astype(order + kind).tobytes()
    for name, written in (("ct.nii", content), ("ct.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
        image = agree(tmp_path / name)
        before = tmp_path / "before.nii"
        before.write_bytes(content)
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(sitk.ReadImage(str(before)))
        )


@pytest.mark.parametrize(("head", "body"), [("hdr", "img"), ("HDR", "IMG"), ("hdr", "img.gz")])
def test_pairs_of_header_and_voxels(tmp_path, head, body):
    nib = pytest.importorskip("nibabel")
    affine = np.diag([-0.8, -0.9, 2.5, 1.0])
    pair = nib.Nifti1Pair(VALUES.T, affine)
    pair.set_qform(affine, 1)
    nib.save(pair, str(tmp_path / "base.hdr"))
    folder = tmp_path / "pair"
    folder.mkdir()
    content = (tmp_path / "base.img").read_bytes()
    (folder / f"ct.{head}").write_bytes((tmp_path / "base.hdr").read_bytes())
    voxels = folder / f"ct.{body}"
    voxels.write_bytes(gzip.compress(content) if body.endswith("gz") else content)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(agree(folder / f"ct.{head}")),
        sitk.GetArrayFromImage(read_volume(voxels, "case")),
    )
    voxels.write_bytes(voxels.read_bytes()[:40])
    refused(folder / f"ct.{head}", "truncated")
    voxels.unlink()
    refused(folder / f"ct.{head}", "one half of a pair")


@pytest.mark.parametrize("written", ["nii", "nii.gz", "nrrd", "mha", "mhd", "nhdr"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", ["", ".NII", ".nii.gz", ".mha"])
def test_truncated_under_any_name(tmp_path, written, packed, suffix):
    sitk.WriteImage(ct(), str(tmp_path / f"base.{written}"), packed)
    cut = f"base.{written}"
    path = tmp_path / cut
    if written in ("mhd", "nhdr"):
        (data,) = [entry for entry in tmp_path.iterdir() if entry != path]
        data.write_bytes(data.read_bytes()[:-30])
        refused(path, r"is truncated: \d+ of \d+( compressed)? bytes")
        return
    path.write_bytes(path.read_bytes()[:-30])
    path = path.rename(tmp_path / f"ct{suffix}")
    refused(path, r"is truncated: \d+ of \d+( compressed)? bytes")


@pytest.mark.parametrize("written", ["nrrd", "mha"])
@pytest.mark.parametrize("packed", [False, True])
def test_more_bytes_than_the_header_says(tmp_path, written, packed):
    path = tmp_path / f"ct.{written}"
    sitk.WriteImage(ct(), str(path), packed)
    path.write_bytes(path.read_bytes() + b"12345678")
    refused(path, "more than|after the end of the compressed data")


@pytest.mark.parametrize("written", ["nii", "nrrd", "mha", "mhd", "nhdr"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_is_never_a_number(tmp_path, written, value):
    values = VALUES.astype("f4")
    values[0, 0, 0] = value
    image = sitk.GetImageFromArray(values)
    sitk.WriteImage(image, str(tmp_path / f"ct.{written}"))
    refused(tmp_path / f"ct.{written}", "the CT holds 1 NaN or infinite voxels")


def changed_nifti(folder: Path, *changes: tuple[int, str, tuple]) -> Path:
    sitk.WriteImage(ct(turn="lps"), str(folder / "base.nii"))
    content = bytearray((folder / "base.nii").read_bytes())
    for at, code, numbers in changes:
        struct.pack_into("<" + code, content, at, *numbers)
    path = folder / "ct.NII"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("shift_mm", [0.4, 0.7, 30.0])
def test_forms_that_disagree(tmp_path, shift_mm):
    path = changed_nifti(tmp_path, (268, "f", (10.5 + shift_mm,)))
    if shift_mm < 0.5:
        read_volume(path, "case")
    else:
        refused(path, rf"a qform and a sform that place it {shift_mm:.2f} mm apart")


def test_a_mirrored_sform(tmp_path):
    path = changed_nifti(tmp_path, (280, "4f", (0.8, 0, 0, 10.5)))
    refused(path, r"that place it 8\.00 mm apart")  # 5 voxels of 0.8 mm, there and back


def test_neither_form(tmp_path):
    path = changed_nifti(tmp_path, (252, "2h", (0, 0)))
    refused(path, "qform_code and sform_code are 0")
    path = changed_nifti(tmp_path, (252, "2h", (0, 13)))
    refused(path, "qform_code 0 and sform_code 13")  # nibabel takes 13 as 0, ITK as valid


def test_other_headers_of_the_same_look(tmp_path):
    refused(changed_nifti(tmp_path, (344, "4s", (b"\0" * 4,))), "Analyze 7.5")
    refused(changed_nifti(tmp_path, (0, "i", (540,))), "NIfTI-2")
    refused(changed_nifti(tmp_path, (123, "B", (1,))), "metres")
    refused(changed_nifti(tmp_path, (72, "h", (32,))), "data type 4 with 32 bits")
    refused(changed_nifti(tmp_path, (70, "2h", (128, 24))), "3 channels")
    # By the format a slope of 0 means no scaling, yet ITK would add 7.
    refused(changed_nifti(tmp_path, (112, "2f", (0, 7))), "scl_slope 0 and scl_inter 7")


@pytest.mark.parametrize("suffix", ["gipl", "vtk", "tif", "nia"])
def test_other_formats_are_refused_with_the_list(tmp_path, suffix):
    path = tmp_path / f"ct.{suffix}"
    if suffix != "nia":
        sitk.WriteImage(ct("u2", "lps"), str(path))
    else:
        path.write_text("348\n")
    refused(path, "a format that is not read.*NIfTI-1.*NRRD.*MetaImage.*DICOM")


def changed_text(folder: Path, suffix: str, old: bytes, new: bytes) -> Path:
    base = folder / f"base.{suffix}"
    sitk.WriteImage(ct(), str(base))
    content = base.read_bytes()
    assert old in content
    path = folder / f"ct.{suffix}"
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("suffix", "old", "new", "message"),
    [
        ("nrrd", b"encoding: raw", b"encoding: hex", "encoding 'hex'"),
        ("nrrd", b"encoding: raw", b"encoding: raw\nbyte skip: 4", "byte skip '4'"),
        ("nrrd", b"space: left-posterior-superior\n", b"", "without 'space'"),
        ("nrrd", b"left-posterior-superior", b"scanner-xyz", "space 'scanner-xyz'"),
        ("nrrd", b"endian: little\n", b"", "endian ''"),
        ("nrrd", b"sizes: 6 5 4", b"sizes: 6 5 5", "truncated"),
        ("nrrd", b"sizes: 6 5 4", b"sizes: 6 5 3", "60 more than its header says"),
        ("mha", b"DimSize = 6 5 4", b"DimSize = 6 5 9", "truncated"),
        ("mha", b"DimSize = 6 5 4", b"DimSize = 6 5 2", "120 more than its header says"),
        ("mha", b"DimSize", b"HeaderSize = 8\nDimSize", "HeaderSize '8'"),
        ("mha", b"ElementSpacing", b"ElementSpacinh", "0 lines of ElementSpacing"),
        ("mha", b"DimSize", b"Position = 1 2 3\nDimSize", "2 lines of Offset"),
        ("mha", b"BinaryData = True", b"BinaryData = False", "voxels as text"),
    ],
)
def test_headers_that_are_refused(tmp_path, suffix, old, new, message):
    refused(changed_text(tmp_path, suffix, old, new), message)


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [
        ("nrrd", b"left-posterior-superior", b"right-anterior-superior"),
        ("nrrd", b"left-posterior-superior", b"RAS"),
        ("nrrd", b"kinds:", b"Segment0_ID:=Segment_1\n# a comment\nkinds:"),
        ("nrrd", b"endian: little", b"endian: big"),
        ("mha", b"ByteOrderMSB = False", b"ByteOrderMSB = True"),
        ("mha", b"DimSize", b"Site = A\nDimSize"),
        ("mha", b"Offset", b"Origin"),
    ],
)
def test_headers_that_are_read(tmp_path, suffix, old, new):
    agree(changed_text(tmp_path, suffix, old, new))


def test_real_files_are_read_as_others_read_them(real_data):
    files = [
        path
        for path in sorted(real_data.rglob("*"))
        if path.name.endswith((".nii.gz", ".nrrd")) and path.stat().st_size < 3_000_000
    ]
    assert len(files) >= 10
    for path in files:
        agree(path)
