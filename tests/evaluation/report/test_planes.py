"""Planes of the page of one patient: where they lie, on an image whose values are its indices."""

from __future__ import annotations

import numpy as np

from osteojax.evaluation.report.planes import reformat


def test_axial_planes_lie_at_the_centres_and_end_with_the_image() -> None:
    z, y, x = np.indices((40, 90, 100))
    hu, classes = (10_000.0 * z + 100 * y + x).astype(np.float32), (z % 18 + 1).astype(np.uint8)
    planes = reformat(hu, classes, np.array([[30.2, 44.6, 50.0], [10.0, 5.0, 95.0]]))
    whole, cut = planes.axial
    # 45 mm of 1.5 mm to each side, about voxel (30, 45, 50)
    np.testing.assert_array_equal(whole.hu, hu[30, 15:76, 20:81])
    np.testing.assert_array_equal(whole.classes, np.full((61, 61), 30 % 18 + 1))
    np.testing.assert_array_equal(cut.hu, hu[10, 0:36, 65:100])


def test_long_planes_follow_the_centres() -> None:
    z, y, x = np.indices((40, 90, 100))
    hu = (10_000.0 * z + 100 * y + x).astype(np.float32)
    planes = reformat(hu, np.zeros(hu.shape, np.uint8), np.array([[30, 44, 50], [10, 64, 30]]))
    np.testing.assert_array_equal(planes.sagittal_hu[20], hu[20, :, 40])  # half-way
    np.testing.assert_array_equal(planes.coronal_hu[20], hu[20, 54, :])
    np.testing.assert_array_equal(planes.coronal_hu[39], hu[39, 44, :])  # above the uppermost
