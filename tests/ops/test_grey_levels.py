"""Grey levels against PyRadiomics' own binning, its documented examples and plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from osteojax.ops import grey_levels


def random_mask(shape, fraction, seed=1):
    return np.random.default_rng(seed).random(shape) < fraction


# ---------------------------------------------------------------- discretise


def test_bin_edges_are_multiples_of_the_width_and_half_open():
    hu = np.array([-30, -25, -1, 0, 24, 25, 50])
    np.testing.assert_array_equal(grey_levels.discretise(hu, 25), [1, 2, 2, 3, 3, 4, 5])


def test_narrow_integers_do_not_overflow():
    hu = np.array([10, 100, 200, 250], np.uint8)
    np.testing.assert_array_equal(grey_levels.discretise(hu, 25), [1, 5, 9, 11])


def test_every_integer_near_every_edge():
    hu = np.arange(-1024, 3072)
    for width in (1, 5, 7, 25, 40):
        expected = [(value + 200) // width + 1 for value in hu.tolist()]
        np.testing.assert_array_equal(
            grey_levels.discretise(hu, width, origin=-200), np.maximum(expected, 0)
        )


def test_roi_minimum_rule_is_pyradiomics():
    operations = pytest.importorskip("radiomics.imageoperations", reason="needs Python < 3.12")
    hu = np.random.default_rng(0).integers(-1024, 3072, (6, 6, 6))
    mask = random_mask(hu.shape, 0.5)
    expected, _ = operations.binImage(hu, mask, binWidth=25)
    levels = np.asarray(grey_levels.discretise(hu, 25, mask=mask))
    np.testing.assert_array_equal(levels[mask], expected[mask])


def test_levels_of_codes_are_levels_of_the_hu_they_stand_for():
    codes = np.arange(240, dtype=np.uint8)
    hu = -200 + 5 * codes.astype(int)
    for width in (5, 25, 35, 1200):
        levels = grey_levels.levels_from_codes(codes, width // 5)
        np.testing.assert_array_equal(levels, grey_levels.discretise(hu, width, origin=-200))


def test_refuses_levels_of_a_float_image():
    with pytest.raises(ValueError, match="exact for integers"):
        grey_levels.discretise(np.array([24.99]), 25)
    with pytest.raises(ValueError, match=r"bin width 0\.1"):
        grey_levels.discretise(np.array([24]), 0.1)
