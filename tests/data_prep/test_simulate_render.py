"""What a simulated CT shows, against the truth it was made from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from data_prep.simulate import render as render_module
from data_prep.simulate.anatomy import body_distance, place_spine, posterior_distance
from data_prep.simulate.cohort_writer import to_image
from data_prep.simulate.patients import Patient, Settings, draw_patient, generator
from data_prep.simulate.render import Rendering, ct_trabecular_hu, render

SETTINGS = Settings(seed=0)
SHORT = dataclasses.replace(SETTINGS, levels=("L2", "L3"))
VERSE_IDS = {"T12": 19, "L1": 20, "L2": 21, "L3": 22, "L4": 23, "L5": 24}


@pytest.fixture(scope="module")
def whole() -> tuple[Patient, Rendering]:
    patient = draw_patient(SETTINGS, 4)
    return patient, render(SETTINGS, patient)


def test_labels_are_whole_vertebrae_in_verse_ids(whole):
    _, rendering = whole
    assert rendering.ct_hu.dtype == np.int16
    assert set(np.unique(rendering.labels)) == {0, *VERSE_IDS.values()}
    voxel_ml = np.prod(rendering.grid.spacing_mm) / 1000
    heights = []
    for label in VERSE_IDS.values():
        mask = rendering.labels == label
        assert 25 < mask.sum() * voxel_ml < 110  # the real torso CT's: 48-66 ml
        parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
        assert np.bincount(parts.ravel())[1:].max() > 0.98 * mask.sum(), (label, count)
        heights.append(np.nonzero(mask)[0].mean())
        rows = np.nonzero(mask.any((0, 2)))[0]
        middle = ndimage.center_of_mass(mask)[1]
        assert rows[-1] - middle > middle - rows[0]  # the spinous process reaches to posterior
    assert heights == sorted(heights, reverse=True)  # caudal is down
    assert rendering.labels[0].max() == rendering.labels[-1].max() == 0  # none cut


def test_tissues_are_where_they_belong(whole):
    """Rim brighter than the marrow space; canal, between body and lamina, is soft tissue."""
    patient, rendering = whole
    spine = place_spine(patient, generator(SETTINGS.seed, patient.number, 1))
    grid, vertebra = rendering.grid, spine["L3"]
    box = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    u, v, w = grid.frame_mm(box, vertebra.centre_mm, vertebra.frame)
    distance = body_distance(u, v, w, vertebra)
    hu = rendering.ct_hu
    rim = hu[(np.abs(distance + 0.3) < 0.7) & (v < 0)].mean()
    marrow = hu[distance < -4].mean()
    assert rim > marrow + 80
    canal = (np.hypot(u, v - vertebra.canal_centre_v_mm) < 5) & (np.abs(w) < 8)
    assert 0 < hu[canal].mean() < 50
    bone = np.minimum(distance, posterior_distance(u, v, w, vertebra)) < -0.5
    assert (rendering.labels[bone] == VERSE_IDS["L3"]).mean() > 0.97
    assert hu.min() > -1025
    assert (hu < -900).mean() > 0.001  # air behind the back, gas in the bowel


@pytest.mark.parametrize("number", [1, 2, 7])  # three scanners: kVp, shift, tilt, orientation
def test_hu_inside_bodies_tracks_the_truth(number):
    patient = draw_patient(SHORT, number)
    rendering = render(SHORT, patient)
    spine = place_spine(patient, generator(SHORT.seed, patient.number, 1))
    grid = rendering.grid
    box = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    for level in SHORT.levels:
        vertebra = spine[level]
        coordinates = grid.frame_mm(box, vertebra.centre_mm, vertebra.frame)
        inside = body_distance(*coordinates, vertebra) < -4
        assert inside.sum() > 500
        truth = ct_trabecular_hu(patient.bones[level], patient)
        assert rendering.ct_hu[inside].mean() == pytest.approx(truth, abs=4 + 0.08 * truth)


def test_wider_trabecular_spacing_leaves_more_texture():
    """The rendered image carries the structure parameters, beyond the mean HU."""
    patient = draw_patient(SHORT, 4)
    deviations = []
    for spacing in (0.7, 1.5):
        bones = {
            level: dataclasses.replace(bone, trabecular_hu=130.0, trabecular_spacing_mm=spacing)
            for level, bone in patient.bones.items()
        }
        changed = dataclasses.replace(patient, bones=bones)
        rendering = render(SHORT, changed)
        spine = place_spine(changed, generator(SHORT.seed, patient.number, 1))
        grid, vertebra = rendering.grid, spine["L2"]
        box = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
        inside = body_distance(*grid.frame_mm(box, vertebra.centre_mm, vertebra.frame), vertebra)
        deviations.append(rendering.ct_hu[inside < -4].std())
    assert deviations[1] > 1.3 * deviations[0]


def test_fracture_lowers_the_anterior_wall_and_a_cut_scan_ends_in_the_top_body():
    settings = dataclasses.replace(SHORT, spacing_mm=3.0)
    patient = draw_patient(settings, 4)
    broken = dataclasses.replace(patient, fractured_level="L2")
    spine = place_spine(broken, generator(0, patient.number, 1))
    front = -0.35 * spine["L2"].depth_mm
    heights = np.arange(-20, 20, 0.25, dtype=np.float32)
    zero = np.zeros_like(heights)
    after = (body_distance(zero, zero + np.float32(front), heights, spine["L2"]) < 0).sum()
    whole = dataclasses.replace(spine["L2"], crush=0.0)
    before = (body_distance(zero, zero + np.float32(front), heights, whole) < 0).sum()
    assert 0.5 < after / before < 0.85
    cut = render(settings, dataclasses.replace(patient, cut_top=True))
    assert 21 in cut.labels[-1]


def test_every_orientation_stores_the_same_patient(monkeypatch):
    """HU at a patient position do not depend on how the axes are stored."""
    monkeypatch.setattr(render_module, "FIELD_OF_VIEW_MM", (90.0, 96.0))
    settings = dataclasses.replace(SHORT, spacing_mm=3.0)
    patient = dataclasses.replace(draw_patient(settings, 4), scanner="scanner3")  # oblique
    rendering = render(settings, patient)
    images = {o: to_image(rendering.ct_hu, rendering.grid, o) for o in ("LPS", "RAS", "LAS")}
    spacing = rendering.grid.spacing_mm
    for image in images.values():
        assert image.GetSpacing() == spacing == (3.0, 3.0, 3.0)
        direction = np.array(image.GetDirection()).reshape(3, 3)
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
    for index in ((3, 5, 7), (20, 11, 30)):
        point = images["LPS"].TransformIndexToPhysicalPoint(index)
        values = {o: im[im.TransformPhysicalPointToIndex(point)] for o, im in images.items()}
        assert len(set(values.values())) == 1
        i, j, k = index
        expected = rendering.grid.origin_mm + rendering.grid.axes @ (np.array(index) * spacing)
        np.testing.assert_allclose(point, expected, atol=1e-9)
        assert values["LPS"] == rendering.ct_hu[k, j, i]
    tilt = np.degrees(np.arccos(rendering.grid.axes[2, 2]))
    assert tilt == pytest.approx(8.0)
