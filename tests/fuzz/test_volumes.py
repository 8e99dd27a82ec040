"""Damaged headers of images: a clean error, or an image whose numbers can be a CT's."""

from __future__ import annotations

import functools
import gzip
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given

from data_prep.volume_file import GEOMETRY_MM
from data_prep.volumes import FARTHEST_MM, SPACING_MM, read_volume
from osteojax.errors import CaseError
from tests.dicom_series import SECRETS, write_series
from tests.fuzz.mutations import damage, damaged, fuzz
from tests.fuzz.test_tables import clean
from tests.oracles.volumes import assert_same, second_reading

VALUES = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


@functools.cache
def folder() -> Path:
    import atexit

    place = tempfile.mkdtemp(prefix="osteojax-fuzz-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


def ct() -> sitk.Image:
    image = sitk.GetImageFromArray(VALUES)
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-10.0, 20.0, -300.0))
    return image


said: list[str] = []
"""Every message so far."""


def check_readable(path: Path) -> sitk.Image | None:
    """Reads it; a CaseError is fine, and so is an image that can be one."""
    try:
        image = read_volume(path, "case")
    except CaseError as error:
        clean(error)
        said.append(str(error))
        return None
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    axes = np.array(image.GetDirection()).reshape(3, 3)
    assert image.GetDimension() == 3
    assert ((spacing >= SPACING_MM[0]) & (spacing <= SPACING_MM[1])).all()
    assert (np.abs(origin) < FARTHEST_MM).all()
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-3)
    assert np.isfinite(sitk.GetArrayViewFromImage(image)).all()
    assert image.GetMetaDataKeys() == ()
    return image


FORMS = {
    "nii": ("ct.NII", "ct.NII", False),
    "nii_gz": ("ct.nii.gz", "ct.nii.gz", False),
    "nii_gz_inside": ("ct.nii.gz", "ct.nii.gz", True),
    "hdr": ("ct.hdr", "ct.hdr", False),
    "hdr_img": ("ct.hdr", "ct.img", False),
    "nrrd": ("ct.nrrd", "ct.nrrd", False),
    "nrrd_gzip": ("ct.nrrd", "ct.nrrd", False),
    "nhdr": ("ct.nhdr", "ct.nhdr", False),
    "nhdr_raw": ("ct.nhdr", "ct.raw", False),
    "mha": ("ct.mha", "ct.mha", False),
    "mha_packed": ("ct.mha", "ct.mha", False),
    "mhd": ("ct.mhd", "ct.mhd", False),
    "mhd_packed": ("ct.mhd", "ct.zraw", False),
    "dicom": ("", "1.dcm", False),
}
"""Form: the path that is read, the file that is damaged, whether that is done before packing it."""
PACKED = ("nrrd_gzip", "mha_packed", "mhd_packed")


def write_form(form: str) -> tuple[Path, Path, bool]:
    """Writes the CT; the path to read, the file to damage, and whether inside its packing."""
    base = folder() / form
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    read, harmed, inside = FORMS[form]
    if form == "dicom":
        for i, path in enumerate(write_series(base, ct()[:, :, :3])):
            path.rename(base / f"{i}.dcm")
        return base, base / harmed, inside
    if form.startswith("hdr"):  # SimpleITK makes pairs, in lower case
        sitk.WriteImage(ct(), str(base / "ct.img"))
    else:
        sitk.WriteImage(ct(), str(base / read.lower()), form in PACKED)
        (base / read.lower()).rename(base / read)
    return base / read, base / harmed, inside


def fuzz_form(form: str, seeds: range) -> int:
    """Damages the form once for each seed; the number of damaged files that were read."""
    path, harmed, inside = write_form(form)
    content = harmed.read_bytes()
    plain = gzip.decompress(content) if inside else content
    read = 0
    for seed in seeds:
        changed = damage(plain, seed, 352 if "nii" in form or form == "hdr" else 420)
        harmed.write_bytes(gzip.compress(changed, 1) if inside else changed)
        image = check_readable(path)
        if image is not None:
            read += 1
            try:
                second = second_reading(path)
            except Exception as error:
                raise AssertionError(f"seed {seed}: only one reader reads it") from error
            assert_same(image, second, corner_mm=GEOMETRY_MM)
    return read


@pytest.mark.parametrize("form", list(FORMS))
def test_damaged_files_are_read_as_another_library_reads_them_or_not_at_all(
    form: str, capfd: pytest.CaptureFixture
) -> None:
    fuzz_form(form, range(40))
    streams = capfd.readouterr()
    everything = streams.out + streams.err + "".join(said)
    assert not any(secret in everything for secret in SECRETS)


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMS))
def test_ten_thousand_damaged_files(form: str) -> None:
    assert fuzz_form(form, range(10_000)) < 10_000


@fuzz(30)
@given(damaged(VALUES.tobytes()))
def test_voxels_that_change_are_read_as_they_are(changed: bytes) -> None:
    path = folder() / "voxels.nii"
    sitk.WriteImage(ct(), str(path))
    path.write_bytes(path.read_bytes()[:352] + changed)
    image = check_readable(path)
    if len(changed) < VALUES.nbytes:
        assert image is None
    else:
        expected = np.frombuffer(changed[: VALUES.nbytes], np.int16)
        assert image is not None
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).ravel(), expected)
