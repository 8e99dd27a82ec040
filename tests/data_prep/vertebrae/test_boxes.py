"""The boxes that a vertebra is cut as: what a cube has always held, and what the others add."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.vertebrae.pool import SIZES, LateMaps, RoiSettings
from data_prep.vertebrae.roi import Vertebra, extract_roi, extract_rois, measure_vertebrae
from data_prep.vertebrae.texture import TextureSettings
from osteojax.data.boxes import BOXES, Box, BoxGrid, cube_grid
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import POOL
from tests.data_prep.phantom import class_mask, spine
from tests.data_prep.prepared import prepare

CUBES_OF_0_2 = "6c45f39f3ddce550579924a458d9147b597ede5850d00a580e522a82d6cc575d"
"""SHA-256 of images and two mask planes that osteojax 0.2 wrote for the cohort of phantoms."""


@pytest.fixture(scope="module")
def vertebra_boxes(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    out = tmp_path_factory.mktemp("boxes") / "out"
    assert prepare(cohort_folder, out, "--box", "vertebra") == 0
    return PreparedCohort(out)


def test_cubes_are_stored_as_before(prepared: Path) -> None:
    cohort, found = PreparedCohort(prepared), hashlib.sha256()
    voxels = 32**3
    for row in range(len(cohort)):
        image, mask = cohort.records(row, ["image", "mask"])
        found.update(image + mask[: 2 * voxels // 8])
    assert found.hexdigest() == CUBES_OF_0_2


def test_edges_are_even_and_not_shorter_than_asked_for() -> None:
    shown = {name: [box.voxels(96 / size) for size in SIZES] for name, box in BOXES.items()}
    assert shown["cube"] == [(96, 96, 96), (64, 64, 64), (32, 32, 32)]
    assert shown["vertebra"] == [(56, 80, 96), (38, 54, 64), (20, 28, 32)]
    assert [box.margin(1.5) for box in BOXES.values()] == [0, 3, 3]
    for box in BOXES.values():
        for size in SIZES:
            grid = box.grid(96 / size)
            assert all(edge % 2 == 0 for edge in grid.shape)
            assert grid.shown == box.voxels(96 / size)
            assert grid.margin * grid.spacing_mm >= box.margin_mm
            lengths = np.array(grid.shown) * grid.spacing_mm
            assert (lengths >= box.shape_mm).all()
            assert (lengths < np.array(box.shape_mm) + 2 * grid.spacing_mm).all()
    assert Box("thin", (0.3, 1.2, 2.0), 0.0, 0.1).voxels(0.1) == (4, 12, 20)  # 0.3 / 0.1 > 3


def test_the_manifest_describes_the_box(vertebra_boxes: PreparedCohort) -> None:
    about = vertebra_boxes.about
    assert (about.box, about.size, about.spacing_mm, about.margin) == ("vertebra", 32, 3.0, 2)
    assert about.shape == (24, 32, 36)
    assert about.shown == (20, 28, 32)
    assert about.has_body
    assert vertebra_boxes.members(0, list(POOL)).shape == (5, *about.shape)
    assert vertebra_boxes.array(0, "mask").shape == (3, *about.shape)


def test_a_box_shows_what_the_cube_shows_there(
    vertebra_boxes: PreparedCohort, prepared: Path
) -> None:
    """12 mm back and 3 mm voxels: index (d, h, w) of the shown window is (d + 6, h + 6, w) of the
    cube of 32^3."""
    cubes = PreparedCohort(prepared)
    window = vertebra_boxes.about.window
    depth, _, width = vertebra_boxes.about.shown
    inside_cube = 32 - 6
    for row in range(len(cubes)):
        for name in ("image", "mask"):
            own = vertebra_boxes.array(row, name)[(..., *window)][..., :inside_cube, :]
            cube = cubes.array(row, name)[..., 6 : 6 + depth, 6:, :]
            assert own.shape[-3:] == (depth, inside_cube, width)
            np.testing.assert_array_equal(own, cube)


def test_the_centre_of_a_box_is_that_of_the_body(
    vertebra_boxes: PreparedCohort, prepared: Path
) -> None:
    about, cubes = vertebra_boxes.about, PreparedCohort(prepared)
    assert about.centre == (10, 10, 16)
    assert cubes.about.centre == (16, 16, 16)
    for row in range(len(cubes)):
        own = vertebra_boxes.array(row, "mask")[2][about.window]
        np.testing.assert_allclose(np.argwhere(own).mean(axis=0) + 0.5, about.centre, atol=0.5)


def test_maps_that_are_made_later_are_the_same(vertebra_boxes: PreparedCohort) -> None:
    """As where an accelerator makes the maps when a shard is written."""
    late = LateMaps(RoiSettings(32, False, TextureSettings(), box="vertebra"))
    expected = vertebra_boxes.records(3, list(vertebra_boxes.manifest.record_keys))
    ((found, counts),) = late.complete([[b"", expected[1], expected[-1]]])
    assert found[1:] == expected[1:]
    assert counts["Contrast of box"].sum() == np.prod(vertebra_boxes.about.shown)
    assert 0 < counts["Contrast of body"].sum() < counts["Contrast of vertebra"].sum()


def test_statistics_are_of_the_shown_voxels_of_each_region(vertebra_boxes: PreparedCohort) -> None:
    about = vertebra_boxes.about
    rows = vertebra_boxes.rows("train")
    for member, spec in enumerate(about.maps):
        values: dict[str, list[np.ndarray]] = {"box": [], "vertebra": [], "body": []}
        for row in rows:
            codes = vertebra_boxes.members(int(row), [spec.name])[0][about.window]
            mask, _, body = vertebra_boxes.array(int(row), "mask")[(..., *about.window)]
            t = spec.offset + spec.step * codes.astype(np.float64)
            for region, own in zip(values, (t.ravel(), t[mask], t[body]), strict=True):
                values[region].append(own)
        for region, parts in values.items():
            own = np.concatenate(parts)
            mean, std = about.statistics[region][member]
            assert mean == pytest.approx(own.mean(), rel=1e-9), (region, spec.name)
            assert std == pytest.approx(own.std(), rel=1e-9), (region, spec.name)
            scale, shift = about.map_affine(region)[member]
            assert scale == pytest.approx(spec.step / own.std(), rel=1e-6)
            assert shift == pytest.approx((spec.offset - own.mean()) / own.std(), rel=1e-5)
    assert about.statistics["body"] != about.statistics["vertebra"] != about.statistics["box"]


def aligned_vertebra(sitk_mask: sitk.Image) -> Vertebra:
    """The middle vertebra, its axes along the CT's, its centre on a grid of 0.25 mm: all positions
    are exact in binary."""
    vertebra = measure_vertebrae(sitk_mask, "case")[1]
    axes = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    return dataclasses.replace(vertebra, centre_mm=np.round(vertebra.centre_mm * 4) / 4, axes=axes)


@pytest.mark.parametrize("shift", [(0, 0, 0), (4, -3, 1), (-4, 4, -4)])
def test_a_shift_within_the_margin_is_the_box_extracted_there(shift: tuple[int, int, int]) -> None:
    phantom = spine()
    mask = class_mask(phantom.mask)
    vertebra, grid = aligned_vertebra(mask), BOXES["vertebra"].grid(1.0)
    stored = extract_roi(phantom.ct, mask, vertebra, grid)
    moved_mm = vertebra.centre_mm + np.array(shift) @ vertebra.axes
    there = extract_roi(
        phantom.ct,
        mask,
        dataclasses.replace(vertebra, centre_mm=moved_mm),
        BoxGrid(grid.shown, 1.0, grid.back_mm),
    )
    window = tuple(
        slice(grid.margin + s, grid.margin + s + edge)
        for s, edge in zip(shift, grid.shown, strict=True)
    )
    np.testing.assert_array_equal(stored.hu[window], there.hu)
    np.testing.assert_array_equal(stored.mask[window], there.mask)
    np.testing.assert_array_equal(stored.body[window], there.body)


def test_the_body_is_the_phantom_s_cylinder() -> None:
    """Against the formula that the phantom was made with, at the voxels' own coordinates."""
    phantom = spine(spacing_mm=1.0, turn_degrees=10.0)
    for roi in extract_rois(phantom.ct, class_mask(phantom.mask), BOXES["body"].grid(1.0), "case"):
        level = roi.vertebra.level
        up, back, left = (
            np.indices(roi.grid.shape) - (np.array(roi.grid.shape)[:, None, None, None] - 1) / 2
        )
        # The measured centre and axes differ a little from the true ones.
        local_mm = np.stack([up, back, left], axis=-1) @ roi.vertebra.axes
        local_mm = (local_mm + roi.vertebra.centre_mm - phantom.centre_mm[level]) @ phantom.axes[
            level
        ].T
        up, back, left = np.moveaxis(local_mm, -1, 0)
        cylinder = (np.abs(up) <= 12) & ((back / 15) ** 2 + (left / 21) ** 2 <= 1)
        beyond = (np.abs(up) > 13.5) | ((back / 17) ** 2 + (left / 23) ** 2 > 1)
        dice = 2 * (roi.body & cylinder).sum() / (roi.body.sum() + cylinder.sum())
        assert dice > 0.93, (level, dice)
        assert (roi.body & beyond).mean() < 0.002, level  # roots of the pedicles
        assert not (roi.body & ~roi.mask).any()
        assert roi.body.sum() == pytest.approx(roi.vertebra.body_volume_mm3, rel=0.02)


def test_a_body_out_of_the_frame_is_empty_and_no_error() -> None:
    phantom = spine(("L1", "L2"))
    mask = class_mask(phantom.mask)
    vertebra = measure_vertebrae(mask, "case")[0]
    away = BoxGrid((8, 8, 8), 1.0, back_mm=40.0)
    roi = extract_roi(phantom.ct, mask, vertebra, away)
    assert roi.mask.any()
    assert not roi.body.any()
    without = dataclasses.replace(vertebra, body=None)
    assert not extract_roi(phantom.ct, mask, without, cube_grid(32, 3.0)).body.any()


def test_a_body_that_was_found_on_a_coarser_grid_stays_within_the_mask() -> None:
    """A ball of 14.2 mm on voxels of 0.5 mm; bodies are looked for at 1 mm."""
    index = np.indices((70, 70, 70)) - 34.7
    ball = sitk.GetImageFromArray((np.sqrt((index**2).sum(axis=0)) * 0.5 < 14.2).astype(np.uint8))
    ball.SetSpacing([0.5] * 3)
    (roi,) = extract_rois(ball * 300, ball, BOXES["body"].grid(1.0), "case")
    assert not (roi.body & ~roi.mask).any()
    assert roi.body.sum() == pytest.approx(roi.vertebra.body_volume_mm3, rel=0.03)
