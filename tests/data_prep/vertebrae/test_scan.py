"""What a scan's rows say of the CT itself."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.vertebrae.cohort import Scan
from data_prep.vertebrae.pool import RoiSettings
from data_prep.vertebrae.scan import prepare_scan, slice_mm, thickness_doubt
from data_prep.vertebrae.texture import TextureSettings
from tests.data_prep.phantom import spine, write_scan


@pytest.mark.parametrize(("slice_axis", "tilt_degrees"), [(0, 0), (1, 0), (2, 0), (2, 20), (0, 30)])
def test_slices_lie_along_the_axis_nearest_to_the_patients_own(slice_axis, tilt_degrees):
    """Any storage order, flipped, and with a tilted gantry."""
    angle = np.radians(tilt_degrees)
    tilt = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    order = [axis for axis in range(3) if axis != slice_axis]
    columns = np.zeros((3, 3))
    columns[:, slice_axis] = -np.array(tilt)[:, 2]  # stored from the head downwards
    columns[:, order] = np.array(tilt)[:, :2]
    image = sitk.Image(4, 4, 4, sitk.sitkInt16)
    image.SetDirection(columns.ravel().tolist())
    spacing = [0.7, 0.7, 0.7]
    spacing[slice_axis] = 5.0
    image.SetSpacing(spacing)
    assert slice_mm(image) == 5.0


def test_a_thin_slice_is_not_taken_for_the_larger_in_plane_spacing():
    image = sitk.Image(4, 4, 4, sitk.sitkInt16)
    image.SetSpacing([0.9, 0.9, 0.5])
    assert slice_mm(image) == 0.5


@pytest.mark.parametrize(("slice_mm", "doubted"), [(0.7, False), (3.0, False), (4.9999998, True)])
def test_thick_slices_are_doubted(slice_mm, doubted):
    assert [reason for reason, _ in thickness_doubt(slice_mm)] == (
        ["its slices are 5 mm apart: they show mean HU but no texture"] if doubted else []
    )


def test_a_mask_beside_the_bone_is_kept_and_doubted(tmp_path):
    phantom = spine(("L1", "L2"), 3.0)
    row = write_scan(tmp_path, "s", phantom)

    def prepared(name: str):
        scan = Scan(0, "p", "s", "A", "train", None, None, str(tmp_path / str(row["ct"])),
                    str(tmp_path / name), "verse", {})  # fmt: skip
        return prepare_scan(scan, RoiSettings(32, False, TextureSettings()), with_maps=False)[0]

    assert prepared(str(row["mask"])).doubts == []
    moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(phantom.mask), -2, axis=1))
    moved.CopyInformation(phantom.mask)
    sitk.WriteImage(moved, str(tmp_path / "moved.nii.gz"))
    report = prepared("moved.nii.gz")
    assert len(report.rows) == 2
    ((case, reason, _),) = report.doubts
    assert case == "s"
    assert reason.startswith("the mask is shifted")
    assert reason.endswith("6 mm back.")
