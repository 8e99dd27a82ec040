"""Bands and their borders."""

from __future__ import annotations

import numpy as np

from osteojax.evaluation import subgroups


def test_age_bands():
    ages = [20, 50, 59.9, 60, 79, 80, 95, np.nan]
    assert [subgroups.age_band(age) for age in ages] == [
        "under 50", "50-59", "50-59", "60-69", "70-79", "80 and over", "80 and over", "unknown",
    ]  # fmt: skip


def test_slice_bands():
    slices_mm = [0.5, 1.25, 1.2501, 2.5, 3, 5, 7.5, np.nan]
    assert [subgroups.slice_band(mm) for mm in slices_mm] == [
        "up to 1.25 mm", "up to 1.25 mm", "1.25-2.5 mm", "1.25-2.5 mm", "2.5-5 mm", "2.5-5 mm",
        "over 5 mm", "unknown",
    ]  # fmt: skip


def test_order():
    names = {"L1", "T12", "over 5 mm", "1.25-2.5 mm", "B", "unknown"}
    assert subgroups.in_order(names) == ["T12", "L1", "1.25-2.5 mm", "over 5 mm", "B", "unknown"]
