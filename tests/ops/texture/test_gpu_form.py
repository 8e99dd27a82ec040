"""The form of the texture maps for an NVIDIA GPU, on the CPU."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from osteojax.ops.texture import glcm
from osteojax.ops.texture.box_maps import separate_maps
from osteojax.ops.texture.masked_sums import layout
from osteojax.ops.texture.pair_features import FEATURES, PAIR_MEANS
from osteojax.ops.texture.shared_sums import SUMS, fit
from osteojax.ops.texture.windows import Window
from tests.oracles import glcm as oracle
from tests.platform_forms import traced_as_on

BOTH_FORMS = 4e-7 + 6e-7
"""Relative error of `whole_box` and of the shared sums."""


def on_a_gpu(levels, mask=None, **settings):
    """The maps of `glcm.texture_maps` as traced for a GPU."""

    def maps(levels):
        return glcm.texture_maps(levels, mask, **settings)

    with traced_as_on("cuda"):
        traced = jax.jit(maps).lower(levels)
    # A CPU's compiler takes its time over kernels that are made for a GPU's.
    program = traced.compile(compiler_options={"xla_backend_optimization_level": 0})
    return {name: np.asarray(image) for name, image in program(levels).items()}


def random_levels(shape, num_levels):
    return np.random.default_rng(0).integers(1, num_levels + 1, shape)


@pytest.mark.parametrize(
    ("shape", "radius", "num_levels"),
    [
        ((7, 4, 5), 3, 48),
        ((2, 7, 5), 2, 48),  # windows are longer than the depth
        ((1, 5, 4), 2, 30),  # no angle along the depth
        ((4, 1, 1), 1, 300),  # one angle
    ],
    ids=str,
)
def test_equals_the_definition(shape, radius, num_levels):
    levels = random_levels(shape, num_levels)
    batch = np.stack([levels, levels[::-1]])
    maps = on_a_gpu(batch, kernel_radius=radius, num_levels=num_levels)
    for name, truth in oracle.maps(levels, None, radius).items():
        expected = np.stack([truth, truth[::-1]])
        np.testing.assert_allclose(maps[name], expected, rtol=6e-7, atol=1e-7, err_msg=name)


def test_sums_at_the_edge_of_32_bits():
    """The largest levels whose sums fit, all of them equal and in a chessboard, and one more."""
    shape, radius = (3, 3, 3), 1
    largest = next(n for n in range(48, 10**6, 48) if not fit((n + 48) ** 2, shape, radius))
    for num_levels in (largest, largest + 48):
        chessboard = np.where(np.indices(shape).sum(0) % 2, 0, num_levels)
        for levels in (np.full(shape, num_levels), chessboard):
            maps = on_a_gpu(levels, kernel_radius=radius, num_levels=num_levels)
            cpu = separate_maps(levels, FEATURES, num_levels, radius)
            for name in FEATURES:
                np.testing.assert_allclose(maps[name], cpu[name], rtol=BOTH_FORMS, err_msg=name)


def test_a_box_of_one_voxel_has_no_pair():
    maps = on_a_gpu(np.ones((1, 1, 1), np.uint8), num_levels=1)
    assert all(np.isnan(image).all() for image in maps.values())


@pytest.mark.parametrize(
    ("shape", "radius", "num_levels"),
    [
        ((4, 4, 5), 1, 48),
        ((1, 4, 3), 1, 300),
        pytest.param((7, 4, 5), 3, 48, marks=pytest.mark.slow),  # a CPU compiles it in a minute
    ],
    ids=str,
)
def test_inside_a_mask_equals_the_definition(shape, radius, num_levels):
    levels = random_levels(shape, num_levels)
    mask = np.random.default_rng(1).random(shape) < 0.6
    mask[-1, -1] = False
    mask[-1, -1, -1] = True  # some windows have no pair along some angles, and some have none
    maps = on_a_gpu(levels, mask, kernel_radius=radius, num_levels=num_levels)
    for name, truth in oracle.maps(levels, mask, radius).items():
        np.testing.assert_allclose(maps[name], truth, rtol=1e-6, atol=1e-6, err_msg=name)


def test_full_words_inside_a_mask():
    """The largest levels that three words take, in windows without a gap, and larger ones."""
    shape, window = (3, 3, 3), Window(1)
    largest = next(n for n in range(48, 10**6, 48) if layout(window, shape, n + 48) is None)
    chessboard = np.indices(shape).sum(0) % 2
    mask = np.ones(shape, bool)
    for num_levels in (largest, 2 * largest):
        for levels in (np.full(shape, num_levels), num_levels * chessboard):
            maps = on_a_gpu(levels, mask, kernel_radius=1, num_levels=num_levels)
            cpu = separate_maps(levels, FEATURES, num_levels, 1)
            for name in FEATURES:
                np.testing.assert_allclose(maps[name], cpu[name], rtol=BOTH_FORMS, err_msg=name)


def test_maps_that_share_no_sums_have_their_own_program():
    features = ("Contrast", "Idn", "SumAverage", "InverseVariance")
    assert {PAIR_MEANS[name].value in SUMS for name in features} == {True, False}
    levels = random_levels((5, 6, 7), 48)
    maps = on_a_gpu(levels, kernel_radius=2, num_levels=48, features=features)
    assert set(maps) == set(features)
    cpu = separate_maps(levels, features, 48, 2)
    for name in features:
        np.testing.assert_allclose(maps[name], cpu[name], rtol=BOTH_FORMS, err_msg=name)
