"""Contrast, fracture and metal: on simulated CTs whose truth is known, and on real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.simulate.cohort_writer import to_image
from data_prep.simulate.patients import Settings, draw_patient
from data_prep.simulate.render import render
from data_prep.vertebrae.contrast import Contrast, find_contrast
from data_prep.vertebrae.roi import Roi, Vertebra, measure_vertebrae
from data_prep.vertebrae.verify import load_case
from launch.prediction.flags import contrast_flags
from launch.prediction.suspicions import body_shape, suspicions
from osteojax.data.boxes import cube_grid
from tests.data_prep.phantom import class_mask, spine

SHORT = Settings(seed=3, levels=("L2", "L3"))


def simulated(contrast: bool, number: int) -> Contrast:
    patient = dataclasses.replace(
        draw_patient(SHORT, number), contrast=contrast, fractured_level=None, cut_top=False
    )
    rendering = render(SHORT, patient)
    ct = to_image(rendering.ct_hu, rendering.grid, "LPS")
    mask = class_mask(to_image(rendering.labels, rendering.grid, "LPS"))
    return find_contrast(ct, mask, measure_vertebrae(mask, "case"))


@pytest.mark.parametrize(("contrast", "number"), [(False, 4), (True, 5)])
def test_simulated_contrast_agent(contrast: bool, number: int) -> None:
    found = simulated(contrast, number)
    assert found.suspected is contrast
    assert found.levels == 2
    # Blood is drawn at 44 HU, at 124 to 184 with agent.
    assert (30 < found.vessel_hu < 60) if not contrast else (115 < found.vessel_hu < 190)
    assert [flag.name for flag in contrast_flags(found)] == (["contrast"] if contrast else [])


@pytest.mark.slow
def test_contrast_agent_in_forty_simulated_patients() -> None:
    for number in range(2, 42):
        assert simulated(number % 2 == 1, number).suspected is (number % 2 == 1), number


REAL = {
    "plain": ("totalsegmentator/example_ct.nii.gz", "totalsegmentator/totalseg.nii.gz",
              "totalsegmentator_v2", False),
    "bodies": ("totalsegmentator/example_ct.nii.gz",
               "totalsegmentator/totalseg_vertebrae_pp_refined.nii.gz", "verse", False),
    # Looked at: aorta, spleen and portal vein are bright.
    "agent": ("totalsegmentator/dicom", "totalsegmentator/example_seg_dicom.nii.gz",
              "totalsegmentator_v2", True),
    "cropped": ("tptbox/sub-ct_label-22_ct.nii.gz", "tptbox/sub-ct_seg-vert_label-22_msk.nii.gz",
                "verse", None),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REAL))
def test_real_cts(real_data: Path, name: str) -> None:
    ct_path, mask_path, scheme, expected = REAL[name]
    ct, mask = load_case(real_data / ct_path, real_data / mask_path, scheme, name)
    found = find_contrast(ct, mask, measure_vertebrae(mask, name))
    assert found.suspected is expected
    names = {None: ["contrast_unknown"], True: ["contrast"], False: []}[expected]
    assert [flag.name for flag in contrast_flags(found)] == names


def test_plaque_and_bowel_before_one_level_are_not_contrast_agent() -> None:
    phantom = spine(("L1", "L2", "L3"), 2.0, radius_mm=1e5)
    ct, mask = phantom.ct, class_mask(phantom.mask)
    vertebrae = measure_vertebrae(mask, "case")
    assert find_contrast(ct, mask, vertebrae).suspected is False
    values = sitk.GetArrayFromImage(ct)

    def bright(level: str, radius_mm: float, hu: float) -> None:
        index = np.array(ct.TransformPhysicalPointToIndex(
            (phantom.centre_mm[level] + [0, -26, 0]).tolist()))[::-1]  # fmt: skip
        away = np.indices(values.shape) - index[:, None, None, None]
        values[np.linalg.norm(away, axis=0) * 2.0 < radius_mm] = hu

    def suspected() -> bool | None:
        changed = sitk.GetImageFromArray(values)
        changed.CopyInformation(ct)
        return find_contrast(changed, mask, vertebrae).suspected

    for level in ("L1", "L2", "L3"):
        bright(level, 3.0, 700.0)  # calcified plaque: smaller than a lumen
    assert suspected() is False
    bright("L2", 10.0, 300.0)  # one level of three: bowel
    assert suspected() is False
    bright("L3", 10.0, 300.0)
    assert suspected() is True


def make_roi(
    level_class: int,
    heights_mm: tuple[float, float, float] = (26, 26, 26),
    hu: float = 120.0,
    truncated: bool = False,
) -> Roi:
    """A box body 30 mm deep on 2 mm voxels whose height runs through three given values."""
    size, spacing = 48, 2.0
    z, y, x = (np.indices((size,) * 3) - (size - 1) / 2) * spacing
    height = np.interp(y, [-9, 0, 9], heights_mm)
    mask = (np.abs(z) <= height / 2) & (np.abs(y) <= 15) & (np.abs(x) <= 20)
    values = np.where(mask, hu, 40.0).astype(np.float32)
    vertebra = Vertebra(
        level_class, np.zeros(3), np.eye(3), "neighbours", "elements", truncated, 12.0, 1.0, 1.0
    )
    grid = cube_grid(size, spacing)
    return Roi(vertebra, grid, values, mask, np.ones_like(mask), mask, hu, 1.0)


def names(rois: list[Roi]) -> list[list[str]]:
    return [[flag.name for flag in found] for found in suspicions(rois)[1]]


def test_heights_are_measured() -> None:
    shape = body_shape(make_roi(13, (16, 20, 28)))
    assert shape.anterior_mm == pytest.approx(16, abs=2.1)
    assert shape.middle_mm == pytest.approx(20, abs=2.1)
    assert shape.posterior_mm == pytest.approx(28, abs=2.1)
    assert shape.core_hu == pytest.approx(120)


@pytest.mark.parametrize(
    ("heights", "flagged"),
    [((26, 26, 26), False), ((22, 25, 26), False), ((14, 20, 26), True), ((26, 14, 26), True),
     ((16, 16, 16), True)],
)  # fmt: skip
def test_a_body_that_lost_a_quarter_of_its_height(heights, flagged: bool) -> None:
    rois = [make_roi(13), make_roi(14, heights), make_roi(15)]
    assert names(rois) == [[], ["fracture_shape"] if flagged else [], []]


@pytest.mark.parametrize(
    ("hu", "expected"), [(150, []), (210, ["fracture_density"]), (30, ["low_density"])]
)
def test_a_core_unlike_its_neighbours(hu: float, expected: list[str]) -> None:
    assert names([make_roi(13), make_roi(14, hu=hu), make_roi(15)]) == [[], expected, []]


def test_vertebrae_that_the_border_cuts_are_not_compared() -> None:
    rois = [make_roi(13, hu=400, truncated=True), make_roi(14), make_roi(15)]
    assert names(rois) == [[], [], []]


def test_metal_in_and_beside_a_vertebra() -> None:
    screw, rod = make_roi(13), make_roi(14)
    screw.hu[20:28, 20:28, 20:22] = 1800.0
    rod.hu[:, 46:48, 46:48] = 3000.0
    assert names([screw, rod]) == [["metal"], ["metal"]]
