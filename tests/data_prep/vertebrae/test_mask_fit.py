"""Masks that are shifted, flipped or another patient's, on phantoms and on real CTs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.vertebrae.mask_fit import check_fit, measure_fit, posterior_doubt
from data_prep.vertebrae.roi import measure_vertebrae
from osteojax.errors import CaseError
from tests.data_prep.phantom import class_mask, spine
from tests.data_prep.test_real_input import CASES, load

LEVELS = ("T12", "L1", "L2", "L3")


@pytest.fixture(scope="module")
def torso() -> tuple[sitk.Image, sitk.Image]:
    phantom = spine(LEVELS, 3.0)
    return phantom.ct, class_mask(phantom.mask)


@pytest.fixture(scope="module")
def real(real_data: Path) -> dict[str, tuple[sitk.Image, sitk.Image]]:
    return {name: load(real_data, name) for name in CASES}


def moved(mask: sitk.Image, onto: sitk.Image, shift_mm: np.ndarray) -> sitk.Image:
    """The mask, moved in space, on the grid of a CT."""
    image = sitk.Image(mask)
    image.SetOrigin((np.array(image.GetOrigin()) + shift_mm).tolist())
    return sitk.Resample(image, onto, sitk.Transform(), sitk.sitkNearestNeighbor, 0)


def flipped(image: sitk.Image, axis: int) -> sitk.Image:
    turned = sitk.Flip(image, [axis == i for i in range(3)])
    turned.CopyInformation(image)
    return turned


@pytest.mark.parametrize("bone_hu", [60.0, 180.0, 400.0])
@pytest.mark.parametrize("bodies_only", [False, True])
def test_a_mask_on_its_own_ct(bone_hu, bodies_only):
    phantom = spine(("L1", "L2"), 3.0, bone_hu=bone_hu, bodies_only=bodies_only)
    assert check_fit(phantom.ct, class_mask(phantom.mask), "case") == []


@pytest.mark.parametrize("name", CASES)
def test_no_alarm_on_real_cts(real, name):
    ct, mask = real[name]
    assert check_fit(ct, mask, "case") == []
    assert posterior_doubt(measure_vertebrae(mask, "case")) == []
    fit = measure_fit(ct, mask)
    assert fit.distance_mm < 1.0
    assert fit.apart_mm < 0.8
    assert fit.edge > 0.35


@pytest.mark.parametrize("shift_mm", [(10, 0, 0), (0, -6, 0), (4, 4, -8)])
def test_the_way_back_of_a_shifted_mask_is_told(torso, shift_mm):
    ct, mask = torso
    fit = measure_fit(ct, moved(mask, ct, np.array(shift_mm)))
    np.testing.assert_allclose(fit.shift_mm, -np.array(shift_mm), atol=1.5)
    ((reason, _),) = check_fit(ct, moved(mask, ct, np.array(shift_mm)), "case")
    assert "the mask is shifted" in reason
    if shift_mm == (10, 0, 0):
        assert "moves 9 mm right" in reason or "moves 10 mm right" in reason


@pytest.mark.parametrize("name", CASES)
def test_a_shift_of_10_mm_is_seen_in_every_real_ct(real, name):
    ct, mask = real[name]
    way = np.random.default_rng(0).normal(size=3)
    assert not measure_fit(ct, moved(mask, ct, 10 * way / np.linalg.norm(way))).is_good


@pytest.mark.slow
def test_rates_of_shifts(real):
    """The table of docs/data.md."""
    rng = np.random.default_rng(0)
    for length_mm, least in ((5.0, 0.9), (10.0, 1.0)):
        for ct, mask in real.values():
            ways = rng.normal(size=(20, 3))
            ways *= length_mm / np.linalg.norm(ways, axis=1, keepdims=True)
            seen = [not measure_fit(ct, moved(mask, ct, way)).is_good for way in ways]
            assert np.mean(seen) >= least


@pytest.mark.parametrize(("axis", "words"), [(0, "left to right"), (1, "front to back"),
                                             (2, "upside down")])  # fmt: skip
@pytest.mark.parametrize("what", ["mask", "ct"])
def test_a_flip_of_one_of_them_is_named(real, what, axis, words):
    ct, mask = real["whole"]
    pair = (ct, flipped(mask, axis)) if what == "mask" else (flipped(ct, axis), mask)
    ((reason, remedy),) = check_fit(*pair, "case")
    assert reason == f"mask or CT is flipped {words}"
    assert "orientation" in remedy


def test_a_flip_of_both_from_front_to_back_is_seen_by_the_elements(real):
    ct, mask = (flipped(image, 1) for image in real["whole"])
    assert check_fit(ct, mask, "case") == []
    ((reason, _),) = posterior_doubt(measure_vertebrae(mask, "case"))
    assert "in front of their bodies" in reason


@pytest.mark.parametrize(("of", "on"), [("pir", "whole"), ("whole", "pir"), ("dicom", "pir")])
def test_a_mask_of_another_patient_is_refused_even_in_the_middle_of_the_spine(real, of, on):
    (ct, own), (_, mask) = real[on], real[of]
    centres = [np.mean([v.centre_mm for v in measure_vertebrae(m, "case")], axis=0)
               for m in (own, mask)]  # fmt: skip
    with pytest.raises(CaseError, match=r"does not fit the CT.*another patient"):
        check_fit(ct, moved(mask, ct, centres[0] - centres[1]), "case")
