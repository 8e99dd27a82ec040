"""What a simulated CT shows, against the truth it was made from."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import ndimage

from data_prep.simulate import render as render_module
from data_prep.simulate.anatomy import (
    SIZES_MM,
    SPINE,
    body_distance,
    place_spine,
    posterior_distance,
)
from data_prep.simulate.cohort_writer import to_image
from data_prep.simulate.patients import Patient, Settings, draw_patient, generator
from data_prep.simulate.render import CONTRAST_TRABECULAR_HU, Rendering, ct_trabecular_hu, render

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


@pytest.mark.parametrize(
    ("number", "scanner"),  # kVp, shift, tilt, orientation, slices
    [(1, "scanner2"), (2, "scanner3"), (7, "scanner4"), (4, "low_dose"), (4, "thick")],
)
def test_hu_inside_bodies_tracks_the_truth(number, scanner):
    patient = dataclasses.replace(draw_patient(SHORT, number), scanner=scanner)
    rendering = render(SHORT, patient)
    spine = place_spine(patient, generator(SHORT.seed, patient.number, 1))
    grid = rendering.grid
    box = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    for level in SHORT.levels:
        vertebra = spine[level]
        coordinates = grid.frame_mm(box, vertebra.centre_mm, vertebra.frame)
        inside = body_distance(*coordinates, vertebra) < -max(4, grid.spacing_mm[2])
        assert inside.sum() > 200
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


def test_spine_is_curved_as_published():
    """Kyphosis T3-T12 37 degrees (9 to 53) and lordosis L1-S1 44 (14 to 69), Bernhardt and Bridwell
    1989; T1 leans to anterior by about 25; bodies grow downwards (Panjabi et al. 1991, 1992)."""
    kyphosis, lordosis, slope = [], [], []
    for number in range(60):
        patient = draw_patient(SETTINGS, number)
        spine = place_spine(patient, generator(0, number, 1))
        tilt = {v: np.degrees(np.arctan2(-s.frame[2, 1], s.frame[2, 2])) for v, s in spine.items()}
        kyphosis.append(tilt["T3"] - tilt["T12"])
        lordosis.append(tilt["S1"] - tilt["L1"])
        slope.append(tilt["T1"])
        heights = [s.centre_mm[2] for s in spine.values()]
        assert heights == sorted(heights, reverse=True)
    assert np.mean(kyphosis) == pytest.approx(37, abs=5)
    assert np.mean(lordosis) == pytest.approx(44, abs=6)
    assert np.mean(slope) == pytest.approx(26, abs=4)
    volumes = [np.prod(SIZES_MM[level][:3]) for level in SPINE[1:-1]]
    assert all(below > 0.97 * above for above, below in itertools.pairwise(volumes))


def test_upper_thoracic_levels_between_lungs_and_ribs():
    """Labels, truth, air on both sides, and ribs: bone beside the spine that is no vertebra."""
    settings = dataclasses.replace(SETTINGS, levels=("T4", "T5"), spacing_mm=2.0)
    patient = dataclasses.replace(draw_patient(settings, 4), scanner="scanner1", cut_top=False)
    rendering = render(settings, patient)
    hu, labels, grid = rendering.ct_hu, rendering.labels, rendering.grid
    assert set(np.unique(labels)) == {0, 11, 12}
    spine = place_spine(patient, generator(0, patient.number, 1))
    everywhere = tuple(slice(0, n) for n in grid.shape)
    u, v, w = grid.frame_mm(everywhere, spine["T5"].centre_mm, spine["T5"].frame)
    inside = body_distance(u, v, w, spine["T5"]) < -4
    truth = ct_trabecular_hu(patient.bones["T5"], patient)
    assert hu[inside].mean() == pytest.approx(truth, abs=6 + 0.08 * truth)
    for side in (u > 25, u < -25):
        beside = side & (np.abs(w) < 10)
        assert (hu[beside & (v < 0)] < -700).mean() > 0.5
        assert ((hu > 350) & (labels == 0) & beside).sum() > 20
    canal = np.hypot(u, v - spine["T5"].canal_centre_v_mm) < 4
    assert 0 < hu[canal & (np.abs(w) < 6)].mean() < 60


def test_slices_contrast_and_metal():
    settings = dataclasses.replace(SHORT, spacing_mm=2.0, slice_mm=5.0)
    patient = dataclasses.replace(draw_patient(settings, 4), contrast=False, screwed_levels=())
    plain = render(settings, patient)
    assert plain.grid.spacing_mm == (2.0, 2.0, 5.0)
    assert plain.ct_hu.max() < 3000
    enhanced = render(settings, dataclasses.replace(patient, contrast=True))
    spine = place_spine(patient, generator(0, patient.number, 1))
    everywhere = tuple(slice(0, n) for n in plain.grid.shape)
    frames = {
        v: plain.grid.frame_mm(everywhere, spine[v].centre_mm, spine[v].frame) for v in SHORT.levels
    }
    inside = np.logical_or.reduce([body_distance(*frames[v], spine[v]) < -4 for v in frames])
    difference = enhanced.ct_hu[inside].mean() - plain.ct_hu[inside].mean()
    assert difference == pytest.approx(CONTRAST_TRABECULAR_HU, abs=4)
    assert 8.16 < CONTRAST_TRABECULAR_HU < 14.22  # Pickhardt et al. 2016, 95% interval
    screwed = render(settings, dataclasses.replace(patient, screwed_levels=("L2", "L3")))
    metal = screwed.ct_hu > 2500
    assert screwed.ct_hu.max() == 3071
    np.testing.assert_array_equal(screwed.labels, plain.labels)
    far = ndimage.binary_dilation(metal, iterations=3)
    np.testing.assert_array_equal(screwed.ct_hu[~far], plain.ct_hu[~far])
    u = frames["L2"][0]
    assert 0.5 < metal[(u > 0)].sum() / metal[(u < 0)].sum() < 2  # one screw a side
    for level, (u, v, w) in frames.items():
        assert (metal & (body_distance(u, v, w, spine[level]) < -1)).sum() > 10
        canal = np.hypot(u, v - spine[level].canal_centre_v_mm) < 5
        assert not (metal & canal & (np.abs(w) < 8)).any()
