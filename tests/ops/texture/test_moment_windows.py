"""Central moments from narrow sums, at their extremes: against 64-bit sums and counted matrices.

A shape, a mask or none, and a bound of the levels cost seconds of compiling: images share them.
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from osteojax.ops.texture import moment_windows
from osteojax.ops.texture.glcm import window_maps
from osteojax.ops.texture.pair_features import MOMENTS
from osteojax.ops.texture.windows import Window, pair_ends
from tests.oracles import glcm as oracle

SHAPE = (7, 8, 7)
"""Voxels of its middle have the whole window of radius 3; the others have clipped ones."""
NUM_LEVELS = 48
WINDOW = Window(3)


def images(num_levels: int, shape=SHAPE) -> np.ndarray:
    """Images on which float32 moments fail, or sums are as large as they can be."""
    place = np.indices(shape)
    flat = np.full(shape, num_levels)
    one_off = flat.copy()
    one_off[tuple(size // 2 for size in shape)] -= 1
    two_off = np.ones(shape, int)
    two_off.ravel()[[0, -1]] = 3  # corners: pairs along some angles do not see them
    ramp = num_levels - place.sum(0)
    stripes = np.where(place[1] % 2, 1, num_levels)
    noise = np.random.default_rng(0).integers(1, num_levels + 1, shape)
    return np.stack([flat, one_off, two_off, ramp, stripes, noise])


def masks(shape=SHAPE) -> np.ndarray:
    """Of each image: a part, with a voxel that has no neighbour."""
    rng = np.random.default_rng(1)
    inside = rng.random((6, *shape)) < np.array([1, 0.9, 0.7, 0.5, 0.2, 0.05]).reshape(6, 1, 1, 1)
    inside[-1, :, :, :4] = False
    inside[-1, 0, 0, 0] = True
    return inside


def assert_exact(found, truth):
    """Within a few float32 roundings, however smooth the image."""
    for name, expected in truth.items():
        image = np.asarray(found[name])
        assert image.dtype == np.float32
        # 13 float32 terms; those of Correlation have both signs.
        size = 1e-6 if name == "Correlation" else 1e-7 * NUM_LEVELS**2 * (name == "ClusterShade")
        np.testing.assert_allclose(image, expected, rtol=1e-6, atol=size + 1e-10, err_msg=name)


@pytest.fixture(scope="module")
def moments():
    """Maps of all images: without a mask, and inside masks."""
    maps = partial(window_maps, window=WINDOW, num_levels=NUM_LEVELS, features=MOMENTS)
    levels = images(NUM_LEVELS)
    return {
        masked: (maps(levels, inside), maps(levels, inside, dtype=np.float64))
        for masked, inside in ((False, None), (True, masks()))
    }


@pytest.mark.parametrize("masked", [False, True])
def test_equal_to_64_bit_sums(moments, masked):
    found, truth = moments[masked]
    assert_exact(found, truth)


def test_flat_windows_are_exactly_flat(moments):
    found, _ = moments[False]
    for name in MOMENTS:
        value = float(name == "Correlation")
        np.testing.assert_allclose(found[name][0], value, rtol=1e-6, err_msg=name)


def test_a_voxel_without_neighbours_is_nan(moments):
    found, _ = moments[True]
    assert np.isnan([found[name][-1, 0, 0, 0] for name in MOMENTS]).all()


def test_one_other_voxel_against_counted_matrices(moments):
    """Independent of all code here: the smooth image that loses the most digits."""
    found, _ = moments[False]
    levels = images(NUM_LEVELS)[1]
    for center in ((3, 3, 3), (0, 1, 6)):
        window = tuple(slice(max(c - 3, 0), c + 4) for c in center)
        inside = np.ones(levels[window].shape, bool)
        truth = oracle.region_features(levels[window], inside)
        for name in MOMENTS:
            assert found[name][1][center] == pytest.approx(truth[name], rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("num_levels", [384, 385])
def test_the_largest_levels_and_one_more(num_levels):
    """Beyond the largest, ClusterProminence alone takes 64-bit sums; in one slice, for time."""
    shape = (1, 9, 8)
    held = {n for n in MOMENTS if moment_windows.fits(n, WINDOW, shape, num_levels)}
    assert held == set(MOMENTS) - ({"ClusterProminence"} if num_levels == 385 else set())
    levels = images(num_levels, shape)
    maps = partial(window_maps, levels, None, WINDOW, num_levels=num_levels, features=MOMENTS)
    found = {name: np.asarray(image) for name, image in maps().items()}
    truth = {name: np.asarray(image) for name, image in maps(dtype=np.float64).items()}
    for name in MOMENTS:
        size = np.abs(truth[name]).max() * 1e-7
        np.testing.assert_allclose(found[name], truth[name], rtol=1e-6, atol=size, err_msg=name)
    smooth = [0, 1, 3]  # the error is relative on these, too
    for name in set(MOMENTS) - {"ClusterShade", "Correlation"}:
        np.testing.assert_allclose(
            found[name][smooth], truth[name][smooth], rtol=1e-6, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("top", [48, 96, 192, 384])
def test_the_largest_sums_of_each_type_are_exact(top):
    """Whole windows of the largest |s| of each sign, for every power."""
    with jax.enable_x64(True):
        for power in (1, 2, 3, 4):
            add = jax.jit(
                partial(
                    moment_windows._window_sums,
                    power=power,
                    step=(0, 0, 1),
                    radii=(3, 3, 3),
                    top=top,
                )
            )
            for sign in (-1, 1):
                value = sign * (top + 1)
                image = pair_ends(np.full((7, 7, 7), value, np.int16), (0, 0, 1))[0]
                assert int(add(image)[3, 3, 3]) == 7 * 7 * 6 * value**power


def test_a_batch_at_once():
    """Leading axes, which `window_maps` takes apart on a CPU."""
    levels, inside = images(NUM_LEVELS, (1, 4, 5))[:, None], masks((1, 4, 5))[:, None]
    features = ("ClusterShade", "Correlation")
    with jax.enable_x64(True):
        found = moment_windows.moment_maps(
            jax.numpy.asarray(levels), jax.numpy.asarray(inside), Window(1), features, NUM_LEVELS
        )
    truth = window_maps(
        levels, inside, Window(1), num_levels=NUM_LEVELS, features=features, dtype=np.float64
    )
    assert_exact({name: np.where(inside, image, 0) for name, image in found.items()}, truth)
