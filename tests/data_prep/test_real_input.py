"""Real CTs through the ROI and the whole of `prepare`.

The bounds on centres and axes compare two programs' masks of one CT: whole vertebrae
(TotalSegmentator v2 ids) and bodies only (VerSe ids).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage

from data_prep.vertebrae.body_numbers import body_row
from data_prep.vertebrae.roi import Roi, extract_roi, extract_rois
from data_prep.vertebrae.verify import load_case
from launch.cli import main
from osteojax.data.boxes import BOXES, cube_grid
from osteojax.data.manifest import load_manifest
from osteojax.data.vertebrae import POOL, about
from osteojax.errors import CaseError
from tests.data_prep.phantom import write_table

LUMBAR = ("L1", "L2", "L3", "L4", "L5")

CASES = {
    "whole": ("example_ct.nii.gz", "totalseg.nii.gz", "totalsegmentator_v2"),
    "bodies": ("example_ct.nii.gz", "totalseg_vertebrae_pp_refined.nii.gz", "verse"),
    "organs": ("example_ct_sm.nii.gz", "example_seg.nii.gz", "totalsegmentator_v2"),
    "dicom": ("dicom", "example_seg_dicom.nii.gz", "totalsegmentator_v2"),
    "pir": (
        "../tptbox/sub-ct_label-22_ct.nii.gz",
        "../tptbox/sub-ct_seg-vert_label-22_msk.nii.gz",
        "verse",
    ),
}


def load(real_data: Path, name: str) -> tuple[sitk.Image, sitk.Image]:
    ct, mask, scheme = CASES[name]
    folder = real_data / "totalsegmentator"
    return load_case(folder / ct, folder / mask, scheme, name)


@pytest.fixture(scope="module")
def rois(real_data) -> dict[str, dict[str, Roi]]:
    """Case -> level -> ROI at 96^3."""
    found = {}
    for name in CASES:
        extracted = extract_rois(*load(real_data, name), cube_grid(96, 1.0), name)
        found[name] = {roi.vertebra.level: roi for roi in extracted}
    return found


def test_levels_and_flags(rois):
    cut = {
        name: {level: roi.vertebra.truncated for level, roi in levels.items()}
        for name, levels in rois.items()
    }
    whole = dict.fromkeys(LUMBAR, False)
    assert cut["whole"] == {"T11": True, "T12": True, **whole}
    assert cut["bodies"] == {"T12": True, **whole}
    assert cut["organs"] == {"T11": True, "T12": True, "L1": False, "L2": True}
    assert cut["dicom"] == {"T11": True, "T12": True}
    assert cut["pir"] == {"L2": True, "L3": False, "L4": True}


def untruncated(rois: dict[str, dict[str, Roi]], name: str) -> list[Roi]:
    return [roi for roi in rois[name].values() if not roi.vertebra.truncated]


@pytest.mark.parametrize("name", ["whole", "bodies", "organs", "pir"])
def test_the_body_lies_in_the_mask_and_holds_its_centre(rois, name):
    for roi in untruncated(rois, name):
        assert not (roi.body & ~roi.mask).any()
        assert roi.body[47:49, 47:49, 47:49].all()  # its centroid is the middle of the cube
        assert roi.body.sum() == pytest.approx(roi.vertebra.body_volume_mm3, rel=0.01)
        assert body_row(roi.hu, roi.body, 1.0)["body_places"] > 0


def test_two_programs_masks_give_the_same_body(rois):
    for level in LUMBAR:
        whole, bodies = rois["whole"][level], rois["bodies"][level]
        place_mm = whole.vertebra.centre_mm - bodies.vertebra.centre_mm
        volumes = [roi.body.sum() for roi in (whole, bodies)]
        assert max(volumes) < 1.35 * min(volumes)
        assert np.linalg.norm(place_mm) < 5.0


@pytest.mark.parametrize("name", ["whole", "organs", "pir"])
def test_the_smaller_boxes_hold_what_they_are_for(real_data, rois, name):
    """More of every vertebra than the cube, in half of its voxels; and all of every body."""
    ct, mask = load(real_data, name)
    for roi in untruncated(rois, name):
        boxes = {
            box: extract_roi(ct, mask, roi.vertebra, BOXES[box].grid(1.0))
            for box in ("vertebra", "body")
        }
        shown = {box: own.grid.window for box, own in boxes.items()}
        vertebra, body = boxes["vertebra"], boxes["body"]
        assert vertebra.mask[shown["vertebra"]].sum() >= 0.985 * roi.mask.sum()
        assert vertebra.fraction_in_frame > max(roi.fraction_in_frame, 0.965)
        assert np.prod(vertebra.grid.shown) < 0.5 * roi.mask.size
        assert body.body[shown["body"]].sum() >= 0.995 * roi.body.sum()


@pytest.mark.parametrize("level", LUMBAR)
def test_whole_vertebrae_and_bodies_agree(rois, level):
    whole, bodies = rois["whole"][level].vertebra, rois["bodies"][level].vertebra
    assert (whole.posterior_rule, bodies.posterior_rule) == ("elements", "header")
    assert np.linalg.norm(whole.centre_mm - bodies.centre_mm) < 5.0
    cosines = (whole.axes * bodies.axes).sum(axis=1)
    assert np.degrees(np.arccos(np.clip(cosines, -1, 1))).max() < 10.0


@pytest.mark.parametrize("level", LUMBAR)
def test_the_body_is_in_the_middle_upright_and_whole(rois, level):
    mask = rois["bodies"][level].mask
    assert rois["bodies"][level].fraction_in_frame == pytest.approx(1.0)
    where = np.argwhere(mask)
    assert np.abs(where.mean(axis=0) - 47.5).max() < 4.0
    height, depth, width = np.ptp(where, axis=0) + 1
    assert 18 < height < 45  # mm; a body is wider than it is deep, and deeper than it is high
    assert 25 < depth < 45
    assert 38 < width < 70
    process = np.argwhere(rois["whole"][level].mask & ~mask)
    assert process[:, 1].mean() > 60  # posterior elements lie towards the end of axis 1


@pytest.mark.parametrize(("name", "level"), [("dicom", "T11"), ("dicom", "T12")])
def test_mean_hu_of_fine_cts_agrees_within_3_percent(rois, name, level):
    roi = rois[name][level]
    assert roi.hu[roi.mask].mean() == pytest.approx(roi.mean_hu, rel=0.03)


@pytest.mark.parametrize("name", ["whole", "bodies", "pir"])
def test_mean_hu_of_coarse_cts_agrees_but_for_interpolation_at_the_edge(rois, real_data, name):
    """Voxels of 1.5 to 3 mm: the cortex is one voxel thick, and linear interpolation to 1 mm mixes
    it with the soft tissue beside it (2 to 11% of the mean). The mean over a voxel's cube of the
    linear interpolant is the CT filtered by [1, 6, 1]/8 along each axis; that mean, over the
    label's own voxels, is what the ROI must have, within 3%."""
    ct, mask = load(real_data, name)
    values = sitk.GetArrayFromImage(ct).astype(np.float64)
    classes = sitk.GetArrayFromImage(mask)
    mixed = values
    for axis in range(3):
        mixed = ndimage.convolve1d(mixed, np.array([1, 6, 1]) / 8, axis, mode="nearest")
    for roi in rois[name].values():
        if roi.vertebra.truncated:
            continue
        inside = _in_frame(roi, ct, classes == roi.vertebra.level_class)
        assert values[inside].mean() == pytest.approx(roi.mean_hu, rel=1e-6)
        assert roi.hu[roi.mask].mean() == pytest.approx(mixed[inside].mean(), rel=0.03)


@pytest.mark.parametrize(("name", "level"), [("whole", "L5"), ("dicom", "T12"), ("pir", "L3")])
def test_every_voxel_is_the_ct_s_at_its_place(rois, real_data, name, level):
    """SciPy on the CT's array, with the header's matrix inverted by NumPy."""
    ct, _ = load(real_data, name)
    roi = rois[name][level]
    index = np.random.default_rng(0).integers(0, 96, (4000, 3))
    place_mm = (index - 47.5) @ roi.vertebra.axes + roi.vertebra.centre_mm
    matrix = np.array(ct.GetDirection()).reshape(3, 3) * ct.GetSpacing()
    xyz = (place_mm - ct.GetOrigin()) @ np.linalg.inv(matrix).T
    size = np.array(ct.GetSize())
    within = np.all((xyz > 0) & (xyz < size - 1), axis=1)
    beyond = np.any((xyz < -0.51) | (xyz > size - 0.49), axis=1)
    assert within.sum() > 1000
    values = sitk.GetArrayFromImage(ct).astype(np.float64)
    expected = ndimage.map_coordinates(values, xyz[within].T[::-1], order=1)
    found = roi.hu[tuple(index.T)]
    np.testing.assert_allclose(found[within], expected, atol=0.05)
    assert roi.valid[tuple(index[within].T)].all()
    assert not roi.valid[tuple(index[beyond].T)].any()


def _places_mm(ct: sitk.Image, voxels: np.ndarray) -> np.ndarray:
    """f64[N, 3] LPS positions of the true voxels, one by one."""
    return np.array(
        [
            ct.TransformIndexToPhysicalPoint([int(x), int(y), int(z)])
            for z, y, x in np.argwhere(voxels)
        ]
    )


def _in_frame(roi: Roi, ct: sitk.Image, label: np.ndarray) -> np.ndarray:
    """bool like `label`: its voxels inside the ROI's 96 mm frame."""
    local = (_places_mm(ct, label) - roi.vertebra.centre_mm) @ roi.vertebra.axes.T
    inside = np.zeros_like(label)
    inside[label] = np.abs(local).max(axis=1) <= 48.0
    return inside


def test_prepare_runs_through_all_of_it(real_data, tmp_path):
    folder = real_data / "totalsegmentator"
    rows = [
        {
            "patient_id": f"p{i}",
            "scan_id": name,
            "site": "A",
            "ct": folder / ct,
            "mask": folder / mask,
            "label_scheme": scheme,
        }
        for i, (name, (ct, mask, scheme)) in enumerate(CASES.items())
    ]
    table = write_table(tmp_path / "cohort.csv", rows)
    options = ["--size", "32", "--workers", "1", "--keep-truncated"]
    out = tmp_path / "out"
    assert main(["prepare", "--cohort", str(table), "--out", str(out), *options]) == 0
    assert len(pd.read_csv(out / "failures.csv")) == 0
    # Two rows have one CT, and the aorta of another is bright; nothing else is suspicious.
    doubts = pd.read_csv(out / "doubts.csv")
    assert doubts.case.tolist() == ["bodies", "dicom"]
    assert doubts.reason[1].startswith("contrast agent suspected (vessels 1")
    found = pd.read_csv(out / "vertebrae.csv").groupby("scan_id")["level"].apply(list).to_dict()
    assert found == {
        "whole": ["T11", "T12", *LUMBAR],
        "bodies": ["T12", *LUMBAR],
        "organs": ["T11", "T12", "L1", "L2"],
        "dicom": ["T11", "T12"],
        "pir": ["L2", "L3", "L4"],
    }
    manifest = load_manifest(out)
    assert about(manifest).label_scheme == "mixed"
    assert [spec.name for spec in about(manifest).maps] == list(POOL)
    # The DICOM series and its file names carry identifiers: none may be in what we write.
    texts = [path.read_text() for path in out.rglob("*.csv")]
    texts += [path.read_text() for path in out.rglob("*.json")]
    assert not any("1.3.12.2" in text for text in texts)
    assert main(["inspect", str(out), "--vertebrae", "2"]) == 0


def test_the_wrong_scheme_is_refused(real_data):
    folder = real_data / "totalsegmentator"
    ct, whole, bodies = (
        folder / name
        for name in ("example_ct.nii.gz", "totalseg.nii.gz", "totalseg_vertebrae_pp_refined.nii.gz")
    )
    with pytest.raises(CaseError, match="29, 30, 31, 32, 33 are unknown to label scheme 'verse'"):
        load_case(ct, whole, "verse", "case")
    # VerSe numbers are all known to TotalSegmentator v1, where they run the other way.
    with pytest.raises(CaseError, match=r"numbered from below upwards.*label scheme 'verse'"):
        load_case(ct, bodies, "totalsegmentator_v1", "case")
    # Those of version 2 are the other version's T9 to T2, in the same order.
    with pytest.raises(CaseError, match=r"T2 to T9 are 1\.48 times .*'totalsegmentator_v2'"):
        load_case(ct, whole, "totalsegmentator_v1", "case")
    with pytest.raises(CaseError, match=r"T1 is 5 pieces up to 169 mm apart.*task vertebrae_body"):
        load_case(ct, folder / "totalseg_vertebrae_body.nii.gz", "vertebral_bodies_ct", "case")
