"""Damaged headers of images: a clean error, or an image whose numbers can be a CT's."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given

from data_prep.volumes import FARTHEST_MM, SPACING_MM, read_volume
from osteojax.errors import CaseError
from tests.dicom_series import SECRETS, write_series
from tests.fuzz.mutations import damaged, fuzz
from tests.fuzz.test_tables import clean

VALUES = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
HEADER = {"nii": 352, "nrrd": 330, "mha": 330}


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


def fuzz_header(suffix: str, examples: int) -> None:
    path = folder() / f"base.{suffix}"
    sitk.WriteImage(ct(), str(path))
    content = path.read_bytes()

    @fuzz(examples)
    @given(damaged(content, HEADER[suffix]))
    def check(changed: bytes) -> None:
        other = folder() / f"changed.{suffix}"
        other.write_bytes(changed)
        check_readable(other)

    check()


@pytest.mark.parametrize("suffix", list(HEADER))
def test_headers(suffix: str) -> None:
    fuzz_header(suffix, 80)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", list(HEADER))
def test_headers_at_length(suffix: str) -> None:
    fuzz_header(suffix, 4000)


def fuzz_series(examples: int) -> None:
    base = folder() / "series"
    shutil.rmtree(base, ignore_errors=True)
    paths = write_series(base, ct()[:, :, :3])
    content = paths[1].read_bytes()

    @fuzz(examples)
    @given(damaged(content[128:]))
    def check(changed: bytes) -> None:
        paths[1].write_bytes(bytes(128) + changed)
        image = check_readable(base)
        if image is not None and changed == content[128:]:
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VALUES[:3])

    check()


def test_dicom_headers(capfd: pytest.CaptureFixture) -> None:
    fuzz_series(6)
    streams = capfd.readouterr()
    everything = streams.out + streams.err + "".join(said)
    assert not any(secret in everything for secret in SECRETS)


@pytest.mark.slow
def test_dicom_headers_at_length(capfd: pytest.CaptureFixture) -> None:
    fuzz_series(300)
    streams = capfd.readouterr()
    everything = streams.out + streams.err + "".join(said)
    assert not any(secret in everything for secret in SECRETS)


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
