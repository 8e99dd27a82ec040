"""All GLCM features under every setting, against co-occurrence matrices counted one by one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from osteojax.ops.texture.glcm import _bounding_box, window_maps
from osteojax.ops.texture.pair_features import ALL_FEATURES, MOMENTS
from osteojax.ops.texture.windows import Window
from tests.oracles import glcm as oracle

SHAPE = (3, 4, 5)
NUM_LEVELS = 12
TOLERANCE = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 1e-12, "atol": 1e-12}}

WINDOWS = {
    "plain": Window(2),
    "distance 2": Window(2, distances=(2,)),
    "distances 1, 2": Window(1, distances=(1, 2)),
    "slices": Window(2, force_2d_axis=0),
    "columns": Window(1, force_2d_axis=2),
    "one way": Window(2, symmetrical=False),
    "weights": Window(2, weighting_norm="euclidean", spacing_mm=(2.0, 0.5, 0.5)),
    "one way, weights": Window(
        1, symmetrical=False, weighting_norm="infinity", spacing_mm=(2.0, 0.5, 0.5)
    ),
}


def expected(levels, mask, window, num_levels=NUM_LEVELS):
    return oracle.window_maps(
        levels,
        mask,
        window.kernel_radius,
        distances=window.distances,
        axis_2d=window.force_2d_axis,
        symmetrical=window.symmetrical,
        norm=window.weighting_norm,
        spacing_mm=window.spacing_mm,
        num_levels=num_levels,
    )


def maps_of(levels, mask, window, dtype="float64", num_levels=NUM_LEVELS, features=ALL_FEATURES):
    found = window_maps(levels, mask, window, num_levels=num_levels, features=features, dtype=dtype)
    assert all(image.dtype == dtype for image in found.values())
    return {name: np.asarray(image) for name, image in found.items()}


def assert_equal(found, truth, dtype):
    for name, image in found.items():
        np.testing.assert_allclose(image, truth[name], **TOLERANCE[dtype], err_msg=name)


def volume(seed=0):
    """Levels with a flat corner, and a mask."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(1, NUM_LEVELS + 1, SHAPE)
    levels[1:, 2:] = 7
    return levels, rng.random(SHAPE) < 0.7


@pytest.mark.parametrize("name", WINDOWS)
def test_every_feature_under_every_setting(name):
    levels, mask = volume()
    truth = expected(levels, mask, WINDOWS[name])
    for dtype in ("float32", "float64"):
        assert_equal(maps_of(levels, mask, WINDOWS[name], dtype), truth, dtype)


def test_without_a_mask():
    levels, _ = volume(1)
    truth = expected(levels, None, WINDOWS["plain"])
    for dtype in ("float32", "float64"):
        assert_equal(maps_of(levels, None, WINDOWS["plain"], dtype), truth, dtype)


@hypothesis_settings(max_examples=8, deadline=None)
@given(
    levels=hnp.arrays(np.uint8, SHAPE, elements=st.integers(1, NUM_LEVELS)),
    mask=hnp.arrays(np.bool_, SHAPE),
    name=st.sampled_from(["plain", "slices", "distances 1, 2", "one way, weights"]),
)
def test_drawn_volumes_masks_and_settings(levels, mask, name):
    truth = expected(levels, mask, WINDOWS[name])
    assert_equal(maps_of(levels, mask, WINDOWS[name]), truth, "float64")


def test_the_weights_of_far_angles_do_not_underflow():
    """exp(-60^2) is 0 in float64; only the ratios of the weights matter."""
    levels, mask = volume(2)
    near = Window(2, weighting_norm="no_weighting")
    far = Window(2, weighting_norm="manhattan", spacing_mm=(60.0, 60.0, 60.0))
    only_axes = expected(levels, mask, Window(2, weighting_norm="manhattan", spacing_mm=(9,) * 3))
    assert_equal(maps_of(levels, mask, near), expected(levels, mask, near), "float64")
    assert_equal(maps_of(levels, mask, far), only_axes, "float64")


@pytest.mark.parametrize("feature", ["Contrast", "SumSquares"])
def test_arrays_are_cut_to_their_mask(feature):
    """A small mask in a long array, as a vertebra in a CT; each volume of a batch by itself."""
    rng = np.random.default_rng(0)
    levels, mask = rng.integers(1, 13, (2, 3, 4, 40)), np.zeros((2, 3, 4, 40), bool)
    mask[0, :, :, 33:], mask[1, :, :, 2:9] = True, rng.random((3, 4, 7)) < 0.8
    levels[~mask] = 0
    cuts = [_bounding_box(m)[2] for m in mask]
    assert cuts == [slice(24, 40), slice(2, 18)]  # one compiled shape for both
    found = maps_of(levels, mask, Window(1), "float32", 12, (feature,))[feature]
    for index, where in enumerate((slice(33, 40), slice(2, 9))):
        own, inside = levels[index][..., where], mask[index][..., where]
        truth = expected(own, inside, Window(1))[feature]
        np.testing.assert_allclose(found[index][..., where], truth, rtol=1e-5, atol=1e-6)
    assert not found[~mask].any()


# ---------------------------------------------------------------- what float32 cannot do


def test_moments_of_smooth_images_do_not_cancel():
    """Two neighbouring levels far from 0, as in bone between trabeculae."""
    rng = np.random.default_rng(0)
    levels = 4000 + rng.integers(0, 2, SHAPE)
    found = maps_of(levels, None, WINDOWS["plain"], "float32", 4001, MOMENTS)
    assert_equal(found, expected(levels, None, WINDOWS["plain"], 4001), "float32")
    # The same from float32 raw moments is wrong, so the data are hard enough.
    raw = levels.ravel().astype(np.float32)
    naive = np.mean(raw * raw) - np.mean(raw) ** 2
    assert abs(naive - np.var(levels)) > 1e-2


def test_the_largest_levels_of_64_bit_sums():
    """Extremes side by side: the fourth moment of (L, L) against (1, 1) pairs is the largest."""
    top = 5000
    extremes = np.where(np.indices(SHAPE)[0] % 2, 1, top)
    found = maps_of(extremes, None, Window(2), num_levels=top, features=MOMENTS)
    truth = expected(extremes, None, Window(2), top)
    # The oracle itself rounds: third moments cancel to 0 from terms of 10^11.
    for name in MOMENTS:
        np.testing.assert_allclose(found[name], truth[name], rtol=1e-12, atol=1e-3, err_msg=name)
    with pytest.raises(ValueError, match=r"ClusterProminence of 60000 .* wider bin"):
        maps_of(extremes, None, Window(2), num_levels=60_000, features=MOMENTS)


def test_a_caller_s_jit_is_told_about_64_bits():
    levels, _ = volume()

    def traced(x):
        return window_maps(
            x, None, WINDOWS["plain"], num_levels=NUM_LEVELS, features=("SumSquares",)
        )

    with pytest.raises(ValueError, match="enable_x64"):
        jax.jit(traced)(levels)
    with jax.enable_x64(True):
        found = jax.jit(traced)(levels)["SumSquares"]
    truth = expected(levels, None, WINDOWS["plain"])
    np.testing.assert_allclose(found, truth["SumSquares"], rtol=1e-5, atol=1e-6)


def test_means_of_real_values_inside_a_mask_need_no_64_bits():
    levels, mask = volume()
    features = ("Id", "Idmn", "InverseVariance")

    def traced(x, inside):
        return window_maps(x, inside, WINDOWS["plain"], num_levels=NUM_LEVELS, features=features)

    truth = expected(levels, mask, WINDOWS["plain"])
    assert_equal(jax.jit(traced)(levels, mask), truth, "float32")


def test_levels_beyond_the_accumulators_are_nan_under_jit():
    """Where values cannot be seen, a wrong promise is answered by NaN, never by wrapped sums."""
    levels = np.full((3, 3, 3), 13)

    def traced(x):
        return window_maps(x, None, Window(1), num_levels=12, features=("Contrast",))

    assert np.isnan(jax.jit(traced)(levels)["Contrast"]).all()
    assert not np.isnan(jax.jit(traced)(levels - 1)["Contrast"]).any()


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("distances", "axis", "number"),
    [((1,), None, 13), ((2,), None, 49), ((1, 2), None, 62), ((3,), None, 109), ((1,), 1, 4)],
)
def test_number_of_angles(distances, axis, number):
    assert len(Window(3, distances, axis).angles((9, 9, 9))) == number


def test_angles_follow_the_size_of_the_image():
    assert len(Window(3).angles((1, 9, 9))) == 4
    assert len(Window(3).angles((1, 1, 9))) == 1
    assert Window(3).angles((1, 1, 1)) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_radius": 0}, "kernel_radius is 0"),
        ({"kernel_radius": 1.5}, "kernel_radius is 1.5"),
        ({"distances": ()}, "distances"),
        ({"distances": (0,)}, "distances"),
        ({"force_2d_axis": 3}, "force_2d_axis is 3"),
        ({"weighting_norm": "cityblock"}, "'cityblock'.*manhattan"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm"),
    ],
)
def test_windows_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        Window(**change)
