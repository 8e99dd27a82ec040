"""Centres and axes against a spine of known geometry; resampling against affine fields."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.vertebrae.roi import OUTSIDE_HU, extract_roi, extract_rois, measure_vertebrae
from osteojax.data.boxes import cube_grid
from osteojax.data.vertebrae import LEVELS
from osteojax.errors import CaseError
from tests.data_prep.phantom import class_mask, spine


def degrees_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((one * other).sum(axis=-1), -1, 1)))


def rotated_grid(image: sitk.Image, degrees: float, spacing_mm: tuple[float, ...]) -> sitk.Image:
    """The image on an oblique, anisotropic grid that contains it (nearest neighbour)."""
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*(np.radians([degrees, -degrees / 2, degrees / 3])))
    direction = np.array(transform.GetMatrix()).reshape(3, 3)
    extent = np.array(image.GetSize()) * image.GetSpacing()
    centre = np.array(
        image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    )
    size = np.ceil(1.3 * extent / spacing_mm).astype(int)
    origin = centre - direction @ ((size - 1) / 2 * spacing_mm)
    return sitk.Resample(
        image,
        size.tolist(),
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkNearestNeighbor,
        origin.tolist(),
        spacing_mm,
        direction.ravel().tolist(),
        0,
    )


@pytest.mark.parametrize("turn_degrees", [0.0, 20.0])
def test_centres_and_axes_of_whole_vertebrae_are_the_true_ones(turn_degrees):
    phantom = spine(("T12", "L1", "L2", "L3"), spacing_mm=1.5, turn_degrees=turn_degrees)
    found = measure_vertebrae(class_mask(phantom.mask), "case")
    assert [v.level for v in found] == ["T12", "L1", "L2", "L3"]
    for vertebra in found:
        # Stubs of the pedicles belong to the opened body: the centre may lie 2 mm further back.
        assert np.linalg.norm(vertebra.centre_mm - phantom.centre_mm[vertebra.level]) < 2.0
        assert degrees_between(vertebra.axes, phantom.axes[vertebra.level]).max() < 3.0
        assert (vertebra.axial_rule, vertebra.posterior_rule) == ("neighbours", "elements")
        assert not vertebra.truncated
        np.testing.assert_allclose(vertebra.axes @ vertebra.axes.T, np.eye(3), atol=1e-12)
        superior, posterior, left = vertebra.axes
        np.testing.assert_allclose(np.cross(left, posterior), superior, atol=1e-12)


def test_bodies_only_take_the_header_posterior_and_the_same_centre():
    whole = measure_vertebrae(class_mask(spine().mask), "case")
    bodies = measure_vertebrae(class_mask(spine(bodies_only=True).mask), "case")
    for one, other in zip(whole, bodies, strict=True):
        assert other.posterior_rule == "header"
        assert np.linalg.norm(one.centre_mm - other.centre_mm) < 2.0
        assert degrees_between(one.axes, other.axes).max() < 3.0


def test_a_single_vertebra_takes_the_header_superior():
    (vertebra,) = measure_vertebrae(class_mask(spine(("L3",)).mask), "case")
    assert vertebra.axial_rule == "header"
    np.testing.assert_array_equal(vertebra.axes[0], [0, 0, 1])


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "LSA"])
def test_storage_orientation_changes_nothing(orientation):
    phantom = spine(turn_degrees=10.0)
    turned = sitk.DICOMOrient(phantom.mask, orientation), sitk.DICOMOrient(phantom.ct, orientation)
    plain = extract_rois(phantom.ct, class_mask(phantom.mask), cube_grid(32, 3.0), "case")
    other = extract_rois(turned[1], class_mask(turned[0]), cube_grid(32, 3.0), "case")
    for one, two in zip(plain, other, strict=True):
        np.testing.assert_allclose(one.vertebra.centre_mm, two.vertebra.centre_mm, atol=0.6)
        assert degrees_between(one.vertebra.axes, two.vertebra.axes).max() < 1.0
        assert one.mean_hu == pytest.approx(two.mean_hu, rel=0.01)
        assert (one.mask == two.mask).mean() > 0.98


def test_oblique_anisotropic_grid_gives_the_same_frame():
    phantom = spine(spacing_mm=1.0)
    oblique = rotated_grid(phantom.mask, 25.0, (0.8, 1.0, 2.5))
    plain = measure_vertebrae(class_mask(phantom.mask), "case")
    for one, two in zip(plain, measure_vertebrae(class_mask(oblique), "case"), strict=True):
        np.testing.assert_allclose(one.centre_mm, two.centre_mm, atol=1.0)
        assert degrees_between(one.axes, two.axes).max() < 3.0


def test_values_of_an_affine_field_are_exact_in_the_frame():
    phantom = spine(spacing_mm=1.5, turn_degrees=15.0)
    gradient, constant = np.array([1.5, -2.0, 3.0]), 40.0
    oblique = rotated_grid(phantom.mask, 20.0, (1.5, 1.2, 2.0))
    index = np.stack(np.meshgrid(*map(np.arange, oblique.GetSize()), indexing="ij"), axis=-1)
    direction = np.array(oblique.GetDirection()).reshape(3, 3)
    place_mm = (index * oblique.GetSpacing()) @ direction.T + oblique.GetOrigin()
    ct = sitk.GetImageFromArray((place_mm @ gradient + constant).transpose(2, 1, 0))
    ct.CopyInformation(oblique)
    mask = class_mask(oblique)
    vertebra = measure_vertebrae(mask, "case")[1]
    roi = extract_roi(ct, mask, vertebra, cube_grid(40, 1.0))
    # Independent of SimpleITK: array index -> millimetres along superior, posterior, left.
    steps = np.arange(40) - 19.5
    local = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    expected = (local @ vertebra.axes + vertebra.centre_mm) @ gradient + constant
    assert roi.hu.dtype == np.float32
    assert roi.valid.all()
    np.testing.assert_allclose(roi.hu, expected, atol=2e-2)


def test_prefilter_keeps_means_and_removes_what_would_alias():
    phantom = spine(spacing_mm=1.0)
    mask = class_mask(phantom.mask)
    z, y, x = np.indices(sitk.GetArrayViewFromImage(mask).shape)
    ct = sitk.GetImageFromArray((100.0 + 300.0 * ((x + y + z) % 2)).astype(np.float32))
    ct.CopyInformation(mask)
    vertebra = measure_vertebrae(mask, "case")[1]
    fine = extract_roi(ct, mask, vertebra, cube_grid(24, 1.0)).hu
    coarse = extract_roi(ct, mask, vertebra, cube_grid(24, 3.0))
    assert fine.std() > 50  # not filtered at the CT's own spacing
    inner = coarse.hu[8:16, 8:16, 8:16]
    assert inner.std() < 5
    assert inner.mean() == pytest.approx(250, abs=2)


def test_outside_the_ct_is_air_and_marked():
    phantom = spine(("L1",))
    mask = class_mask(phantom.mask)
    larger_than_the_ct = cube_grid(32, 5.0)
    (roi,) = extract_rois(phantom.ct, mask, larger_than_the_ct, "case")
    assert roi.valid.any()
    assert not roi.valid.all()
    np.testing.assert_array_equal(roi.hu[~roi.valid], OUTSIDE_HU)
    assert not (roi.mask & ~roi.valid).any()


def test_mean_hu_and_volume_are_those_of_the_label_in_the_ct():
    phantom = spine()
    classes = sitk.GetArrayFromImage(class_mask(phantom.mask))
    values = sitk.GetArrayFromImage(phantom.ct).astype(np.float64)
    everything = cube_grid(64, 3.0)
    for roi in extract_rois(phantom.ct, class_mask(phantom.mask), everything, "case"):
        own = values[classes == roi.vertebra.level_class]
        assert roi.fraction_in_frame == pytest.approx(1.0)
        assert roi.mean_hu == pytest.approx(own.mean(), rel=1e-9)
        assert roi.vertebra.mask_volume_mm3 == pytest.approx(own.size * 2.0**3)
        assert roi.hu[roi.mask].mean() == pytest.approx(own.mean(), rel=0.12)  # edges blur


def test_mask_in_the_frame_has_the_label_s_volume_and_the_body_in_its_middle():
    phantom = spine(spacing_mm=1.0)
    for roi in extract_rois(phantom.ct, class_mask(phantom.mask), cube_grid(128, 1.0), "case"):
        assert roi.mask.sum() == pytest.approx(roi.vertebra.mask_volume_mm3, rel=0.02)
        assert roi.mask[64 - 8 : 64 + 8, 64 - 8 : 64 + 8, 64 - 12 : 64 + 12].all()
        where = np.argwhere(roi.mask)
        assert where[:, 1].max() - 64 > 45  # the spinous process is on the high side of axis 1
        assert 64 - where[:, 1].min() < 20


def test_border_contact_is_flagged():
    phantom = spine()
    size = phantom.mask.GetSize()
    cut = sitk.RegionOfInterest(phantom.mask, [size[0], size[1], size[2] - 14], [0, 0, 0])
    flags = {v.level: v.truncated for v in measure_vertebrae(class_mask(cut), "case")}
    assert flags == {"L1": True, "L2": False, "L3": False}


def test_a_spinous_process_alone_does_not_bend_its_neighbour_s_axis():
    phantom = spine(("T12", "L1", "L2"))
    ids = sitk.GetArrayFromImage(phantom.mask)
    t12 = ids == 19
    rows = np.argwhere(t12)
    y = np.arange(ids.shape[1])[None, :, None]
    keep_from = rows[:, 1].max() - 8  # only the tip of the process is left of T12
    ids[t12 & (np.broadcast_to(y, ids.shape) < keep_from)] = 0
    sliver = sitk.GetImageFromArray(ids)
    sliver.CopyInformation(phantom.mask)
    found = {v.level: v for v in measure_vertebrae(class_mask(sliver), "case")}
    assert degrees_between(found["L1"].axes, phantom.axes["L1"]).max() < 6.0


def test_levels_numbered_upwards_are_refused():
    phantom = spine(("L1", "L2", "L3"))
    classes = sitk.GetArrayFromImage(class_mask(phantom.mask))
    upside = np.where(classes > 0, 13 + 15 - classes.astype(int), 0).astype(np.uint8)
    image = sitk.GetImageFromArray(upside)
    image.CopyInformation(phantom.mask)
    with pytest.raises(CaseError, match="numbered from below upwards"):
        measure_vertebrae(image, "case")


def test_level_names_follow_the_class():
    (vertebra,) = measure_vertebrae(class_mask(spine(("T1",)).mask), "case")
    assert (vertebra.level, vertebra.level_class) == (LEVELS[0], 1)
