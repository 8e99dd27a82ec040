"""Geometry of CT and mask, NaN, constant images and HU, each broken on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.vertebrae.verify import (
    align_mask,
    check_hu,
    check_slices,
    check_varies,
    load_case,
)
from data_prep.volumes import check_finite
from osteojax.errors import CaseError
from tests.data_prep.phantom import class_mask, spine, write_scan


@pytest.fixture(scope="module")
def phantom():
    return spine(("L1", "L2"), spacing_mm=3.0)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAS", "PIR", "SAL"])
def test_the_same_grid_in_any_orientation_is_turned(phantom, orientation):
    mask = class_mask(phantom.mask)
    turned = align_mask(phantom.ct, sitk.DICOMOrient(mask, orientation), "case")
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(turned), sitk.GetArrayViewFromImage(mask)
    )
    assert turned.GetOrigin() == phantom.ct.GetOrigin()


def test_header_rounding_is_tolerated(phantom):
    mask = class_mask(phantom.mask)
    mask.SetOrigin([x + 0.01 for x in mask.GetOrigin()])
    mask.SetSpacing([s * 1.00005 for s in mask.GetSpacing()])
    align_mask(phantom.ct, mask, "case")


def shifted(mask):
    mask.SetOrigin([x + 3.0 for x in mask.GetOrigin()])
    return mask


def respaced(mask):
    mask.SetSpacing([3.0, 3.0, 3.1])
    return mask


def cropped(mask):
    return mask[:, :, 1:]


def tilted(mask):
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.1, 0, 0)
    mask.SetDirection(turn.GetMatrix())
    return mask


@pytest.mark.parametrize("spoil", [shifted, respaced, cropped, tilted])
def test_another_geometry_is_refused_with_both_named(phantom, spoil):
    with pytest.raises(CaseError, match=r"differ in geometry: CT .*voxels of 3x3x3 mm.*; mask"):
        align_mask(phantom.ct, spoil(class_mask(phantom.mask)), "case")


def changed(image, function):
    values = function(sitk.GetArrayFromImage(image).astype(np.float64))
    other = sitk.GetImageFromArray(values)
    other.CopyInformation(image)
    return other


@pytest.mark.parametrize(
    "function",
    [lambda v: np.where(v > 100, np.nan, v), lambda v: np.where(v > 100, np.inf, v)],
)
def test_voxels_that_are_no_numbers(phantom, function):
    with pytest.raises(CaseError, match="NaN or infinite"):
        check_finite(changed(phantom.ct, function), "case", "CT")


def test_a_constant_image(phantom):
    with pytest.raises(CaseError, match=r"constant \(7\)"):
        check_varies(changed(phantom.ct, lambda v: np.full_like(v, 7.0)), "case")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda v: np.clip((v + 1000) / 8, 0, 255).round(), "8-bit picture"),
        (lambda v: np.maximum(v + 1024, 0), r"offset of about \+1024"),
        (lambda v: (v - v.min()) / (v.max() - v.min()), "8-bit picture"),
        (lambda v: (v - v.mean()) / v.std(), "no air and no fat"),
        (lambda v: v - 1024, "not bone in HU"),
        (lambda v: v * 10, "not bone in HU"),
    ],
)
def test_values_that_are_not_hu(phantom, function, message):
    with pytest.raises(CaseError, match=message):
        check_hu(changed(phantom.ct, function), class_mask(phantom.mask), "case")


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_slices_in_another_unit_are_named(phantom, orientation):
    """Every second slice too; along the patient's axis in any order of the file's axes."""
    z = np.arange(phantom.ct.GetSize()[2])
    for off, place in ((z % 2 == 1, "higher"), (z < 3, "higher"), (z > len(z) - 5, "lower")):
        step = 1024 if place == "higher" else -1024
        spoiled = changed(phantom.ct, lambda v, o=off, s=step: v + s * o[:, None, None])
        spoiled = sitk.DICOMOrient(spoiled, orientation)
        with pytest.raises(
            CaseError, match=rf"{off.sum()} of .* about 1020 HU {place} than the others"
        ):
            check_slices(spoiled, "case")


def test_slices_of_padding_are_not_in_another_unit(phantom):
    padded = changed(phantom.ct, lambda v: np.concatenate([np.full_like(v[:5], -3024), v[5:]]))
    check_slices(padded, "case")


@pytest.mark.parametrize("bone_hu", [60.0, 180.0, 400.0])
def test_plausible_bone_passes(bone_hu):
    phantom = spine(("L1",), spacing_mm=3.0, bone_hu=bone_hu)
    check_finite(phantom.ct, "case", "CT")
    check_varies(phantom.ct, "case")
    check_hu(phantom.ct, class_mask(phantom.mask), "case")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha"])
def test_formats_give_the_same_case(tmp_path, phantom, suffix):
    sitk.WriteImage(phantom.ct, str(tmp_path / f"ct.{suffix}"))
    sitk.WriteImage(phantom.mask, str(tmp_path / f"mask.{suffix}"))
    ct, mask = load_case(tmp_path / f"ct.{suffix}", tmp_path / f"mask.{suffix}", "verse", "case")
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(ct), sitk.GetArrayViewFromImage(phantom.ct)
    )
    np.testing.assert_allclose(ct.GetOrigin(), phantom.ct.GetOrigin(), atol=1e-4)
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) == {0, 13, 14}


def test_nothing_of_the_header_but_geometry_is_kept(tmp_path, phantom):
    image = sitk.Image(phantom.ct)
    image.SetMetaData("PatientName", "Somebody")
    sitk.WriteImage(image, str(tmp_path / "ct.mha"))
    row = write_scan(tmp_path, "one", phantom)
    ct, mask = load_case(tmp_path / "ct.mha", tmp_path / str(row["mask"]), "verse", "case")
    assert sitk.ReadImage(str(tmp_path / "ct.mha")).GetMetaData("PatientName") == "Somebody"
    assert ct.GetMetaDataKeys() == mask.GetMetaDataKeys() == ()
