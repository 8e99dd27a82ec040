"""Texture maps against co-occurrence matrices counted one by one, PyRadiomics and IBSI."""

from __future__ import annotations

import logging
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from osteojax.ops.texture import glcm, grey_levels, whole_box
from tests.oracles import glcm as oracle

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def assert_maps_equal(maps, expected, **tolerance):
    assert set(maps) == set(expected)
    for name, truth in expected.items():
        np.testing.assert_allclose(
            np.asarray(maps[name]), truth, **(TOLERANCE | tolerance), err_msg=name
        )


def random_levels(shape, num_levels, seed=0):
    return np.random.default_rng(seed).integers(1, num_levels + 1, shape)


# Compiling costs more than computing here: the tests share shapes, radii and this number.
NUM_LEVELS = 48
CUBE = (6, 6, 6)


def random_mask(shape, fraction, seed=1):
    return np.random.default_rng(seed).random(shape) < fraction


# ---------------------------------------------------------------- against the definition


@settings(max_examples=12, deadline=None)
@given(
    levels=hnp.arrays(np.uint8, CUBE, elements=st.integers(1, NUM_LEVELS)),
    mask=st.none() | hnp.arrays(np.bool_, CUBE),
    radius=st.sampled_from([1, 2]),
)
def test_equals_the_definition(levels, mask, radius):
    maps = glcm.texture_maps(levels, mask, kernel_radius=radius, num_levels=NUM_LEVELS)
    assert_maps_equal(maps, oracle.maps(levels, mask, radius))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 4), (4, 1, 5), (1, 1, 6), (1, 1, 1), (2, 2, 2)], ids=str)
def test_thin_arrays_have_fewer_angles(shape, masked):
    levels = random_levels(shape, 9)
    mask = random_mask(shape, 0.8) | (np.indices(shape).sum(0) == 0) if masked else None
    features = ("JointAverage", "Contrast")
    maps = glcm.texture_maps(
        levels, mask, kernel_radius=3, num_levels=9, features=features, init_value=-1
    )
    expected = oracle.maps(levels, mask, 3, init_value=-1)
    assert_maps_equal(maps, {name: expected[name] for name in features})


@pytest.mark.parametrize("num_levels", [1000, 60_000])
@pytest.mark.parametrize("masked", [False, True])
def test_wide_levels_never_wrap(num_levels, masked):
    """int32 and float32 accumulators, two integer words and a float one, at their worst."""
    shape = (3, 4, 5)
    mask = np.ones(shape, bool) if masked else None
    extremes = np.where(np.indices(shape).sum(0) % 2, 1, num_levels)
    for levels in (np.full(shape, num_levels), extremes, random_levels(shape, num_levels)):
        features = ("Autocorrelation", "Contrast")
        maps = glcm.texture_maps(
            levels, mask, kernel_radius=4, num_levels=num_levels, features=features
        )
        expected = oracle.maps(levels, mask, 4)
        assert_maps_equal(maps, {name: expected[name] for name in features})


def test_full_windows_at_the_edge_of_each_accumulator():
    """7^3 windows of the largest level that uint16 sums and packed words take, and of one more."""
    largest = {False: int(np.sqrt((2**16 - 1) / 28)), True: int(np.sqrt((2**23 - 1) / 294))}
    assert whole_box.integer_or_float(28 * largest[False] ** 2) == jax.numpy.uint16
    assert whole_box.integer_or_float(28 * (largest[False] + 1) ** 2) == jax.numpy.int32
    for masked, top in largest.items():
        mask = np.ones((7, 7, 7), bool) if masked else None
        for num_levels in (top, top + 1):
            levels = np.full((7, 7, 7), num_levels)
            maps = glcm.texture_maps(
                levels, mask, kernel_radius=3, num_levels=num_levels, features=("Autocorrelation",)
            )
            np.testing.assert_allclose(maps["Autocorrelation"], num_levels**2, rtol=1e-6)


# ---------------------------------------------------------------- invariants


def test_no_mask_is_the_whole_box():
    maps = partial(glcm.texture_maps, kernel_radius=3, num_levels=NUM_LEVELS)
    levels = random_levels(CUBE, NUM_LEVELS)
    whole, masked = maps(levels), maps(levels, np.ones(CUBE, bool))
    assert_maps_equal(whole, masked, rtol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_batch_loop_and_jit_agree(masked):
    levels = random_levels((2, 2, 5, 6, 4), 20)
    mask = random_mask(levels.shape, 0.7) if masked else None
    maps = partial(glcm.texture_maps, kernel_radius=2, num_levels=20, features=("Autocorrelation",))
    batch, jitted = maps(levels, mask), jax.jit(maps)(levels, mask)
    assert_maps_equal(jitted, batch, rtol=2e-6)
    for index in np.ndindex(2, 2):
        single = maps(levels[index], mask[index] if masked else None)
        assert_maps_equal({n: m[index] for n, m in batch.items()}, single, rtol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("depth", [10, 23])
def test_slabs_join_without_a_seam(monkeypatch, masked, depth):
    levels = random_levels((depth, 4, 5), 30)
    mask = random_mask(levels.shape, 0.8) if masked else None
    maps = partial(
        glcm.texture_maps, levels, mask, kernel_radius=2, num_levels=30, features=("Contrast",)
    )
    whole = maps()
    monkeypatch.setattr(glcm, "_SLAB_VOXELS", {"box": 180, "masked": 180})
    assert_maps_equal(maps(), whole, rtol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_flips_and_axes_commute_with_the_maps(masked):
    levels = random_levels(CUBE, 12)
    mask = random_mask(levels.shape, 0.6) if masked else None
    maps = partial(glcm.texture_maps, kernel_radius=1, num_levels=NUM_LEVELS)
    straight = maps(levels, mask)
    for turn in (lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.transpose(2, 0, 1)):
        turned = maps(turn(levels), turn(mask) if masked else None)
        assert_maps_equal(turned, {n: turn(np.asarray(m)) for n, m in straight.items()}, rtol=2e-6)


def test_an_offset_of_the_levels_moves_the_maps_by_algebra():
    levels, offset = random_levels(CUBE, 20), 13
    maps = partial(glcm.texture_maps, kernel_radius=2, num_levels=NUM_LEVELS)
    low, high = maps(levels), maps(levels + offset)
    expected = {
        "Autocorrelation": low["Autocorrelation"] + 2 * offset * low["JointAverage"] + offset**2,
        "JointAverage": low["JointAverage"] + offset,
        "Contrast": low["Contrast"],
        "DifferenceAverage": low["DifferenceAverage"],
    }
    assert_maps_equal(high, expected)


def test_asked_features_only():
    levels = random_levels((4, 4, 4), 5)
    maps = glcm.texture_maps(levels, kernel_radius=1, num_levels=5, features=("Contrast",))
    assert list(maps) == ["Contrast"]
    assert maps["Contrast"].dtype == np.float32


# ---------------------------------------------------------------- published values


def phantom(real_data):
    import SimpleITK as sitk

    arrays = [
        sitk.GetArrayFromImage(
            sitk.ReadImage(str(real_data / "ibsi" / f"ibsi_1_digital_phantom_{what}.nii.gz"))
        )
        for what in ("image", "mask")
    ]
    return np.rint(arrays[0]).astype(int), arrays[1] > 0


def test_ibsi_digital_phantom(real_data):
    """3D, averaged over angles; a radius that puts the whole phantom into every window."""
    levels, mask = phantom(real_data)
    maps = glcm.texture_maps(levels, mask, kernel_radius=5, num_levels=int(levels.max()))
    expected = {
        "JointAverage": 2.14,
        "Contrast": 5.32,
        "DifferenceAverage": 1.43,
        "Autocorrelation": 5.06,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(maps[name])[mask], value, atol=0.005, err_msg=name)


def test_ibsi_digital_phantom_by_slice(real_data):
    """2D, averaged over angles and slices."""
    levels, mask = phantom(real_data)
    maps = glcm.texture_maps(
        levels[:, None], mask[:, None], kernel_radius=5, num_levels=int(levels.max())
    )
    expected = {
        "JointAverage": 2.14,
        "Contrast": 5.28,
        "DifferenceAverage": 1.42,
        "Autocorrelation": 5.09,
    }
    for name, value in expected.items():
        slices = [np.asarray(maps[name])[z, 0][mask[z]][0] for z in range(len(levels))]
        assert np.mean(slices) == pytest.approx(value, abs=0.005), name


def test_windows_clip_at_the_border():
    """The corner of a 4^3 ramp is its 2^3 patch (PyRadiomics: 106 and 11.5)."""
    ramp = np.arange(1, 65).reshape(4, 4, 4)
    maps = glcm.texture_maps(ramp, kernel_radius=1, num_levels=64)
    assert float(maps["Autocorrelation"][0, 0, 0]) == pytest.approx(106, rel=1e-6)
    assert float(maps["JointAverage"][0, 0, 0]) == pytest.approx(11.5, rel=1e-6)


def test_flat_roi():
    levels = np.ones(CUBE, np.uint8)
    for mask in (None, random_mask(levels.shape, 0.7)):
        maps = glcm.texture_maps(levels, mask, kernel_radius=1, num_levels=NUM_LEVELS)
        inside = np.ones(levels.shape, bool) if mask is None else mask
        for name, value in zip(oracle.NAMES, (1, 1, 0, 0), strict=True):
            np.testing.assert_allclose(np.asarray(maps[name])[inside], value, rtol=1e-6)


def test_isolated_voxel_is_nan_and_outside_is_the_initial_value():
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 2, 2] = True
    levels = random_levels(mask.shape, 7)
    maps = glcm.texture_maps(
        levels, mask, kernel_radius=1, num_levels=7, features=("JointAverage",), init_value=-5
    )
    for image in maps.values():
        assert np.isnan(image[2, 2, 2])
        assert np.all(np.asarray(image)[~mask] == -5)


def test_empty_mask():
    maps = glcm.texture_maps(
        random_levels(CUBE, 7), np.zeros(CUBE, bool), kernel_radius=1, num_levels=NUM_LEVELS
    )
    assert all(not np.any(image) for image in maps.values())


# ---------------------------------------------------------------- PyRadiomics itself


def pyradiomics(image, mask, radius, bin_width):
    """Maps by name as PyRadiomics makes them from an image, its own discretisation included."""
    radiomics = pytest.importorskip("radiomics", reason="PyRadiomics needs Python < 3.12")
    import SimpleITK as sitk
    from radiomics.glcm import RadiomicsGLCM

    radiomics.setVerbosity(logging.ERROR)
    extractor = RadiomicsGLCM(
        sitk.GetImageFromArray(image.astype(np.int32)),
        sitk.GetImageFromArray(mask.astype(np.uint8)),
        voxelBased=True,
        kernelRadius=radius,
        voxelBatch=100,
        binWidth=bin_width,
        initValue=0,
    )
    for name in oracle.NAMES:
        extractor.enableFeatureByName(name)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {n: sitk.GetArrayFromImage(m) for n, m in extractor.execute().items()}


def assert_parity(image, mask, radius, bin_width=25, num_levels=NUM_LEVELS):
    reference = pyradiomics(image, mask, radius, bin_width)
    levels = np.asarray(grey_levels.discretise(image, bin_width, mask=mask))
    levels = np.where(mask, levels, 0)
    maps = glcm.texture_maps(levels, mask, kernel_radius=radius, num_levels=num_levels)
    # PyRadiomics' JointAverage is NaN where an angle is empty and its batch has that angle; ours
    # is the mean over the others, which the oracle checks above.
    accident = np.isnan(reference["JointAverage"]) & ~np.isnan(reference["Contrast"])
    truth = reference["JointAverage"]
    reference["JointAverage"] = np.where(accident, maps["JointAverage"], truth)
    assert_maps_equal(maps, reference)
    return accident


def roi(kind):
    """(image in HU, mask) of an ROI that has gone wrong somewhere."""
    shape = CUBE
    image = np.random.default_rng(3).integers(-200, 1000, shape)
    mask = random_mask(shape, 0.6)
    if kind == "flat":
        image = np.full(shape, 100)
    elif kind == "two-level":
        image = np.where(image > 300, 500, 0)
    elif kind == "one-slice":
        image, mask = image[:1], mask[:1]
    elif kind == "line":
        mask = np.zeros(shape, bool)
        mask[3, 2, :] = True
    elif kind == "border":
        mask = np.zeros(shape, bool)
        mask[:3, :, 4:] = True
    elif kind == "full":
        mask = np.ones(shape, bool)
    return image, mask


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize(
    "kind", ["random", "full", "flat", "two-level", "one-slice", "line", "border"]
)
def test_pyradiomics_parity(kind, radius):
    image, mask = roi(kind)
    accident = assert_parity(image, mask, radius)
    if kind == "full":
        assert not accident.any()
        levels = np.asarray(grey_levels.discretise(image, 25))
        whole = glcm.texture_maps(levels, kernel_radius=radius, num_levels=NUM_LEVELS)
        assert_maps_equal(whole, pyradiomics(image, mask, radius, 25))


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize(
    "radius",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_pyradiomics_parity_on_a_real_vertebra(real_data, radius):
    import SimpleITK as sitk

    folder = real_data / "totalsegmentator"
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "example_ct.nii.gz")))
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "totalseg.nii.gz"))) == 29
    center = np.rint(np.argwhere(mask).mean(0)).astype(int)
    window = tuple(slice(c - 5, c + 6) for c in center)
    assert mask[window].sum() > 400
    # Cortex and endplates reach 3,000 HU: more levels than the others.
    assert_parity(image[window].astype(int), mask[window], radius, num_levels=192)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": np.ones((4, 4), int)}, "levels\\[None\\]"),
        ({"levels": np.ones((4, 4, 4))}, "discretise"),
        ({"levels": np.full((4, 4, 4), 10)}, "num_levels is 9"),
        ({"levels": np.full((4, 4, 4), -1)}, "from -1"),
        ({"mask": np.ones((4, 4, 3), bool)}, "mask is"),
        ({"mask": np.ones((4, 4, 4), int)}, "must be bool"),
        ({"kernel_radius": 0}, "kernel_radius is 0"),
        ({"num_levels": 0}, "num_levels is 0"),
        ({"features": ("JointEnergy",)}, "JointEnergy"),
    ],
)
def test_refuses_what_it_cannot_do(change, message):
    arguments = {"levels": np.ones((4, 4, 4), int), "kernel_radius": 1, "num_levels": 9} | change
    with pytest.raises(ValueError, match=message):
        glcm.texture_maps(arguments.pop("levels"), arguments.pop("mask", None), **arguments)
