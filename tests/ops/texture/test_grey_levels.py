"""Grey levels against PyRadiomics' own binning, its documented formulas and known answers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from osteojax.ops.texture import grey_levels
from osteojax.ops.texture.grey_levels import MOST_LEVELS, radiomics_levels
from tests.oracles import grey_levels as oracle


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


# ---------------------------------------------------------------- PyRadiomics' settings

KNOWN: dict[str, tuple[np.ndarray, dict[str, float], list[int]]] = {
    "edges at multiples of the width, half-open": (
        np.array([-30, -25, -1, 0, 24.99, 25, 50]), {"bin_width": 25}, [1, 2, 2, 3, 3, 4, 5],
    ),
    "width 0.1 in float32": (
        np.linspace(0, 1, 11, dtype=np.float32), {"bin_width": 0.1},
        [1, 2, 3, 4, 5, 5, 7, 7, 9, 9, 10],
    ),
    "width 0.1 in float64": (
        np.linspace(0, 1, 11, dtype=np.float32).astype(float), {"bin_width": 0.1},
        [1, 2, 3, 4, 5, 6, 7, 7, 9, 9, 11],
    ),
    "uint8 does not overflow": (
        np.array([10, 100, 200, 250], np.uint8), {"bin_width": 25}, [1, 5, 9, 11],
    ),
    "int8 does not overflow": (
        np.array([-128, -1, 0, 127], np.int8), {"bin_width": 25}, [1, 6, 7, 12],
    ),
    "int16 as uint8": (np.array([10, 100, 200, 250], np.int16), {"bin_width": 25}, [1, 5, 9, 11]),
    "binCount 4": (np.array([0, 2.4, 2.5, 5, 7.5, 10]), {"bin_count": 4}, [1, 1, 2, 3, 4, 4]),
    "flat, binCount 4": (np.full(5, 7.0), {"bin_count": 4}, [3] * 5),
    "flat, integers, binCount 4": (np.full(5, 7, np.uint8), {"bin_count": 4}, [3] * 5),
    "flat, binWidth": (np.full(5, 7), {"bin_width": 25}, [1] * 5),
    "a smallest value that rounds onto its edge": (
        np.array([-499.2, -499.1]), {"bin_width": 0.3}, [2, 2],
    ),
    "the largest value of float32 beyond 2^24, binCount": (
        np.array([0, 2**25], np.float32), {"bin_count": 4}, [1, 4],
    ),
    "a width beyond all values": (np.array([-5, 0, 5]), {"bin_width": 1e30}, [1, 2, 2]),
    "half precision": (np.array([0, 24.98, 25], np.float16), {"bin_width": 25}, [1, 1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_known_levels(case):
    image, setting, expected = KNOWN[case]
    levels = radiomics_levels(image, **setting)  # type: ignore[arg-type]
    assert levels.dtype == np.int32
    np.testing.assert_array_equal(levels, expected)


@settings(max_examples=60, deadline=None)
@given(
    image=hnp.arrays(
        st.sampled_from([np.int16, np.uint8, np.float32, np.float64]), (4, 3, 3),
        elements=st.integers(0, 120),
    ),
    mask=hnp.arrays(np.bool_, (4, 3, 3)),
    width=st.sampled_from([1, 7, 25, 2.5, 0.375, 500]),
)  # fmt: skip
def test_levels_by_width_are_the_formula(image, mask, width):
    """Exactly, where widths and values have short binary fractions."""
    mask[0, 0, 0] = True
    np.testing.assert_array_equal(
        radiomics_levels(image, mask, bin_width=width), oracle.by_width(image, mask, width)
    )


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.int32, (20,), elements=st.integers(-1000, 3000), unique=True),
    count=st.sampled_from([1, 2, 8, 32, 64]),
)
def test_levels_by_count_are_the_formula(values, count):
    levels = radiomics_levels(values, bin_count=count)
    truth = oracle.by_count(values, count)
    # An edge is rounded to float64: a value that lies on it may fall to either side.
    low, high = int(values.min()), int(values.max())
    on_edge = (values.astype(np.int64) - low) * count % (high - low) == 0
    np.testing.assert_array_equal(levels[~on_edge], truth[~on_edge])
    assert np.abs(levels - truth).max() <= 1
    assert levels.max() == count


def pyradiomics(image, mask, **setting):
    operations = pytest.importorskip("radiomics.imageoperations", reason="needs Python < 3.12")
    return operations.binImage(image, mask, **setting)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("width", [0.05, 0.1, 0.3, 1, 2.5, 7, 25])
def test_levels_by_width_are_pyradiomics(dtype, width):
    """On values at and beside edges, with PyRadiomics' roundings; the mask's range only."""
    rng = np.random.default_rng(0)
    for offset, scale in ((0, 1), (-5, 10), (40, 100)):
        image = np.round(rng.normal(size=(5, 6, 7)) * scale + offset, 1).astype(dtype)
        mask = random_mask(image.shape, 0.5)
        expected, edges = pyradiomics(image, mask, binWidth=width)
        assert expected.max() < len(edges)  # its edges reach the largest value
        levels = radiomics_levels(image, mask, bin_width=width)
        np.testing.assert_array_equal(levels[mask], expected[mask])
        assert levels.min() >= 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 4, 10, 33])
def test_levels_by_count_are_pyradiomics(dtype, count):
    image = np.random.default_rng(0).integers(0, 250, (5, 6, 7)).astype(dtype)
    mask = random_mask(image.shape, 0.5)
    for used in (image, image // 3):
        expected, _ = pyradiomics(used, mask, binCount=count)
        levels = radiomics_levels(used, mask, bin_count=count)
        np.testing.assert_array_equal(levels[mask], expected[mask])


def test_pyradiomics_accidents_are_where_the_docstring_says():
    uint8, full = np.array([10, 100, 200, 250], np.uint8), np.ones(4, bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # its overflow
        assert pyradiomics(uint8, full, binWidth=25)[0].tolist() == [1, 2, 2, 2]
    wide = np.array([0, 2**25], np.float32)
    assert pyradiomics(wide, full[:2], binCount=4)[0].tolist() == [1, 5]
    # Edges 0.09998 apart for a width of 0.1: they end before the largest value is reached.
    drift = np.linspace(1000, 2000, 9001, dtype=np.float32)
    theirs, edges = pyradiomics(drift, np.ones(9001, bool), binWidth=0.1)
    ours = radiomics_levels(drift, bin_width=0.1)
    reached = drift < edges[-1]
    assert theirs.max() == len(edges)
    np.testing.assert_array_equal(ours[reached], theirs[reached])
    assert (np.diff(ours[~reached]) >= 0).all()
    assert ours.max() > theirs.max()


def test_levels_agree_with_those_of_the_device():
    hu = np.random.default_rng(0).integers(-1024, 3072, (6, 6, 6)).astype(np.int16)
    mask = random_mask(hu.shape, 0.5)
    np.testing.assert_array_equal(
        radiomics_levels(hu, mask, bin_width=25), grey_levels.discretise(hu, 25, mask=mask)
    )


def test_what_is_outside_the_mask_falls_where_it_may():
    mask = np.array([False, True, True, False, False, False, False])
    floats = np.array([-1e30, 0, 50, 75, 1e30, np.nan, -np.inf])
    levels = radiomics_levels(floats, mask, bin_width=25)
    np.testing.assert_array_equal(levels, [0, 1, 3, 4, MOST_LEVELS, 0, 0])
    np.testing.assert_array_equal(
        radiomics_levels(floats, mask, bin_count=2), [0, 1, 2, 2, 2, 0, 0]
    )
    extremes = np.array([-(2**63), 0, 50, 75, 2**63 - 1, -1, -26])
    np.testing.assert_array_equal(
        radiomics_levels(extremes, mask, bin_width=25), [0, 1, 3, 4, MOST_LEVELS, 0, 0]
    )


def test_the_ends_of_int64_do_not_wrap():
    ends = np.array([-(2**63), 2**63 - 1])
    np.testing.assert_array_equal(radiomics_levels(ends, bin_width=2**50), [1, 2**14])
    np.testing.assert_array_equal(radiomics_levels(ends, bin_width=2.0**60), [1, 16])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bin_width": None}, "give one of the two"),
        ({"bin_count": 4}, "give one of the two"),
        ({"bin_width": 0}, "bin_width is 0"),
        ({"bin_width": -2.5}, "positive"),
        ({"bin_width": np.nan}, "bin_width is nan"),
        ({"bin_width": None, "bin_count": 0}, "bin_count is 0"),
        ({"bin_width": None, "bin_count": 2.5}, "whole number"),
        ({"mask": np.zeros(4, bool)}, "no voxel is inside"),
        ({"mask": np.ones(3, bool)}, r"must be bool\(4,\)"),
        ({"mask": np.ones(4, int)}, "mask is int64"),
        ({"image": np.array([0, np.nan, np.inf, 5])}, "2 of 4 voxels inside the mask are NaN"),
        ({"image": np.ones(4, bool)}, "integers or floats"),
        ({"image": np.array([0, 1, 2, 2**63], np.uint64)}, "beyond int64"),
        ({"bin_width": 1e-6}, "take a wider bin"),
        ({"image": np.array([0, 1, 2, 10**9])}, "take a wider bin"),
        ({"image": np.full(4, 2**25, np.float32), "bin_width": 0.5}, "as float64"),
    ],
)
def test_refuses_what_it_cannot_level(change, message):
    arguments = {"image": np.arange(4.0), "bin_width": 25} | change
    with pytest.raises(ValueError, match=message):
        radiomics_levels(arguments.pop("image"), arguments.pop("mask", None), **arguments)


def test_refuses_levels_of_a_float_image():
    with pytest.raises(ValueError, match="exact for integers"):
        grey_levels.discretise(np.array([24.99]), 25)
    with pytest.raises(ValueError, match=r"bin width 0\.1"):
        grey_levels.discretise(np.array([24]), 0.1)  # type: ignore[arg-type]
