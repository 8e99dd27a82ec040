"""First-order maps against statistics of each window one by one, and PyRadiomics."""

from __future__ import annotations

import logging
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from osteojax.ops.texture import first_order
from osteojax.ops.texture.first_order import FEATURES, OF_LEVELS, OF_VALUES, first_order_maps
from osteojax.ops.texture.grey_levels import radiomics_levels
from tests.oracles import first_order as oracle

# Compiling costs more than computing here: the tests share this shape, radii and the dtype.
CUBE = (6, 6, 6)
maps_64 = partial(first_order_maps, dtype=np.float64)


def assert_maps_equal(maps, expected, rtol=1e-12, atol=1e-12):
    assert list(maps) == [name for name in maps if name in expected]
    for name, image in maps.items():
        np.testing.assert_allclose(image, expected[name], rtol=rtol, atol=atol, err_msg=name)


def random_mask(fraction=0.6, seed=1):
    return np.random.default_rng(seed).random(CUBE) < fraction


def random_image(low=-200, high=1000, dtype=np.int32, seed=3):
    return np.random.default_rng(seed).integers(low, high, CUBE).astype(dtype)


# ---------------------------------------------------------------- against the definition


@settings(max_examples=25, deadline=None)
@given(
    image=hnp.arrays(np.int32, CUBE, elements=st.integers(-1024, 3071)),
    mask=hnp.arrays(np.bool_, CUBE),
    window=st.sampled_from([(1, True, None), (2, True, None), (2, False, None), (1, True, 1)]),
    bin_width=st.sampled_from([25, 400]),
    shift=st.sampled_from([0, 1024]),
)
def test_equals_the_definition(image, mask, window, bin_width, shift):
    radius, masked_kernel, force_2d_axis = window
    levels = radiomics_levels(image, None, bin_width=bin_width)
    maps = maps_64(
        image, mask, kernel_radius=radius, levels=levels, masked_kernel=masked_kernel,
        force_2d_axis=force_2d_axis, voxel_array_shift=shift, init_value=-7,
    )  # fmt: skip
    expected = oracle.maps(
        image, levels, mask, radius, masked_kernel=masked_kernel, force_2d_axis=force_2d_axis,
        shift=shift, init_value=-7,
    )  # fmt: skip
    assert list(maps) == list(FEATURES)
    assert_maps_equal(maps, expected)


@settings(max_examples=15, deadline=None)
@given(
    image=hnp.arrays(np.float64, CUBE, elements=st.floats(-1e4, 1e4)),
    mask=hnp.arrays(np.bool_, CUBE),
    radius=st.sampled_from([1, 2]),
)
def test_float_images_equal_the_definition(image, mask, radius):
    maps = maps_64(image, mask, kernel_radius=radius, features=OF_VALUES, voxel_array_shift=5)
    expected = oracle.maps(image, np.ones(CUBE, int), mask, radius, shift=5)
    # Means and deviations are sums of terms up to 1e4.
    assert_maps_equal(maps, expected, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int64, np.uint64, np.float16])
def test_no_type_of_image_overflows(dtype):
    top = 1000 if dtype == np.float16 else min(np.iinfo(dtype).max, 2**40)
    image = random_image(0, top, np.int64).astype(dtype)
    image[:3] = image[:3] // 2 + dtype(top // 2)
    features = ("Variance", "Range", "Energy")
    maps = maps_64(image, kernel_radius=1, features=features, voxel_array_shift=3)
    full = np.ones(CUBE, bool)
    assert_maps_equal(maps, oracle.maps(image, image, full, 1, shift=3))


def test_float32_maps_are_the_float64_maps_rounded():
    image, mask = random_image(), random_mask()
    call = partial(first_order_maps, image, mask, kernel_radius=1)
    levels = radiomics_levels(image, mask, bin_width=25)
    narrow, wide = call(levels=levels), call(levels=levels, dtype=np.float64)
    for name in FEATURES:
        assert narrow[name].dtype == np.float32
        assert wide[name].dtype == np.float64
        np.testing.assert_array_equal(narrow[name], np.asarray(wide[name]).astype(np.float32))
    assert jax.numpy.ones(1).dtype == np.float32  # the caller's types are as they were


# ---------------------------------------------------------------- smooth and wide data


def test_variance_of_smooth_data_is_not_cancelled():
    """A far offset, exact in binary, changes nothing: float32 sums would lose all digits."""
    steps = random_image(0, 5)
    truth = oracle.maps(steps, steps, np.ones(CUBE, bool), 1)["Variance"]
    variance = partial(maps_64, kernel_radius=1, features=("Variance",))
    np.testing.assert_allclose(variance(steps + 10**8)["Variance"], truth, rtol=1e-15)
    shifted = 1e6 + steps * 2.0**-10
    np.testing.assert_allclose(
        variance(shifted)["Variance"], truth * 2.0**-20, rtol=1e-12, atol=1e-25
    )
    # The same inside a ragged mask, beside one voxel of metal that the mask leaves in.
    mask, shifted[0, 0, 0] = random_mask(), 3e4
    mask[0, 0, 0] = True
    expected = oracle.maps(shifted, steps, mask, 1)["Variance"]
    np.testing.assert_allclose(variance(shifted, mask)["Variance"], expected, rtol=1e-6)


@pytest.mark.parametrize("beyond", [False, True])
def test_integer_sums_at_the_edge_of_64_bits(beyond):
    spread = 112_481_499 + beyond  # (27 * spread)^2 reaches 2^63 with the last step
    image = np.where(random_image(0, 2) == 1, spread, 0)
    exact = first_order._exact_sums(jax.numpy.asarray(image), first_order._Extent(0, spread), 27, 0)
    assert exact is not beyond
    maps = maps_64(image, kernel_radius=1, features=OF_VALUES)
    assert_maps_equal(maps, oracle.maps(image, image, np.ones(CUBE, bool), 1))


def test_the_whole_range_of_int32():
    image = random_image(-(2**31), 2**31, np.int64).astype(np.int32)
    image[0, 0, :2] = -(2**31), 2**31 - 1
    maps = maps_64(image, kernel_radius=1, features=OF_VALUES, voxel_array_shift=2**31)
    expected = oracle.maps(image, image, np.ones(CUBE, bool), 1, shift=2**31)
    assert_maps_equal(maps, expected, atol=1e-6)


def test_levels_with_gaps_cost_no_time_and_no_bits():
    levels = np.array([1, 10**6, 2**31 - 2])[random_image(0, 3)]
    maps = maps_64(levels, random_mask(), kernel_radius=1, features=OF_LEVELS, levels=levels)
    assert_maps_equal(maps, oracle.maps(levels, levels, random_mask(), 1))


# ---------------------------------------------------------------- regions that went wrong


def test_constant_region_is_exact():
    for image in (np.full(CUBE, 100), np.full(CUBE, 0.1)):
        maps = maps_64(image, random_mask(), kernel_radius=1, levels=np.ones(CUBE, int))
        inside = {name: np.unique(np.asarray(m)[random_mask()]) for name, m in maps.items()}
        for name in ("Variance", "Range", "Entropy"):
            np.testing.assert_array_equal(inside[name], [0], err_msg=name)
        np.testing.assert_array_equal(inside["Uniformity"], [1])
        np.testing.assert_array_equal(inside["Minimum"], [image[0, 0, 0]])


def test_one_voxel_is_its_own_window():
    image, mask = random_image(), np.zeros(CUBE, bool)
    mask[2, 3, 4] = True
    maps = maps_64(image, mask, kernel_radius=1, levels=np.ones(CUBE, int), init_value=np.nan)
    value = image[2, 3, 4]
    expected = dict(
        zip(FEATURES, (value, 0, value, value, 0, abs(value), value**2, 0, 1), strict=True)
    )
    for name, image in maps.items():
        assert np.asarray(image)[2, 3, 4] == expected[name], name
        assert np.isnan(np.asarray(image)[~mask]).all(), name


@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_empty_mask(dtype):
    """Nothing to count, nothing to check: NaN is as good as any value outside a mask."""
    image = np.full(CUBE, np.nan) if dtype == np.float64 else random_image()
    maps = maps_64(
        image, np.zeros(CUBE, bool), kernel_radius=1, levels=np.zeros(CUBE, int), init_value=4
    )
    for name in FEATURES:
        np.testing.assert_array_equal(maps[name], np.full(CUBE, 4.0), err_msg=name)


def test_empty_array():
    maps = first_order_maps(np.zeros((2, 0, 5, 5)), kernel_radius=1, features=("Mean", "Range"))
    assert {name: image.shape for name, image in maps.items()} == {
        "Mean": (2, 0, 5, 5),
        "Range": (2, 0, 5, 5),
    }


def test_nan_counts_inside_only():
    image, mask = random_image().astype(float), random_mask()
    clean = maps_64(image, mask, kernel_radius=1, features=OF_VALUES)
    image[~mask] = np.nan
    assert_maps_equal(maps_64(image, mask, kernel_radius=1, features=OF_VALUES), clean)
    image[np.nonzero(mask)[0][:3], np.nonzero(mask)[1][:3], np.nonzero(mask)[2][:3]] = np.inf
    with pytest.raises(ValueError, match=r"3 of the \d+ voxels .* are NaN or infinite"):
        maps_64(image, mask, kernel_radius=1, features=OF_VALUES)
    with pytest.raises(ValueError, match="of the 216 voxels"):
        maps_64(image, mask, kernel_radius=1, features=OF_VALUES, masked_kernel=False)


def test_radius_beyond_the_array_is_the_whole_region():
    image, mask = random_image(), random_mask()
    levels = radiomics_levels(image, mask, bin_width=100)
    maps = maps_64(image, mask, kernel_radius=50, levels=levels)
    expected = oracle.statistics(image[mask].tolist(), levels[mask].tolist())
    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(maps[name])[mask], value, rtol=1e-12)


# ---------------------------------------------------------------- invariants


def test_batch_and_jit_agree_with_one_by_one():
    image = np.stack([random_image(seed=seed) for seed in range(4)]).reshape(2, 2, *CUBE)
    mask = np.stack([random_mask(seed=seed) for seed in range(4)]).reshape(2, 2, *CUBE)
    levels = radiomics_levels(image, mask, bin_width=25)
    features = ("Mean", "Variance", "Range", "Entropy")
    call = partial(maps_64, kernel_radius=1, features=features)
    batch = call(image, mask, levels=levels)
    for index in np.ndindex(2, 2):
        one = call(image[index], mask[index], levels=levels[index])
        assert_maps_equal({name: image[index] for name, image in batch.items()}, one)
    with jax.enable_x64(True):
        first = [array[0, 0] for array in (image, mask, levels)]
        jitted = jax.jit(lambda i, m, g: call(i, m, levels=g))(*first)
    assert_maps_equal(jitted, {name: image[0, 0] for name, image in batch.items()})


def test_flips_and_axes_commute_with_the_maps():
    image, mask = random_image(), random_mask()
    levels = radiomics_levels(image, mask, bin_width=25)
    call = partial(maps_64, kernel_radius=1)
    straight = call(image, mask, levels=levels)
    for turn in (lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.transpose(2, 0, 1)):
        turned = call(turn(image), turn(mask), levels=turn(levels))
        assert_maps_equal(turned, {n: turn(np.asarray(m)) for n, m in straight.items()})


def test_thin_windows_are_those_of_single_slices():
    image, mask = random_image(), random_mask()
    levels = radiomics_levels(image, mask, bin_width=25)
    thin = maps_64(image, mask, kernel_radius=1, levels=levels, force_2d_axis=0)
    features = ("Variance", "Maximum", "Entropy")
    slices = maps_64(
        image[:, None], mask[:, None], kernel_radius=1, levels=levels[:, None], features=features
    )
    assert_maps_equal({n: np.asarray(m)[:, 0] for n, m in slices.items()}, thin)


def test_asked_features_in_the_order_asked():
    maps = first_order_maps(random_image(), kernel_radius=1, features=("Range", "Mean"))
    assert list(maps) == ["Range", "Mean"]


# ---------------------------------------------------------------- PyRadiomics itself


def pyradiomics(image, mask, radius, **settings):
    """Maps by name as PyRadiomics makes them, its own discretisation included."""
    radiomics = pytest.importorskip("radiomics", reason="PyRadiomics needs Python < 3.12")
    import SimpleITK as sitk
    from radiomics.firstorder import RadiomicsFirstOrder

    radiomics.setVerbosity(logging.ERROR)
    extractor = RadiomicsFirstOrder(
        sitk.GetImageFromArray(image),
        sitk.GetImageFromArray(mask.astype(np.uint8)),
        voxelBased=True,
        kernelRadius=radius,
        voxelBatch=500,
        **settings,
    )
    for name in FEATURES:
        extractor.enableFeatureByName(name)
    return {n: sitk.GetArrayFromImage(m) for n, m in extractor.execute().items()}


def assert_parity(
    image, mask, radius, bins=(("bin_width", 25),), masked_kernel=True, shift=0, force_2d_axis=None
):
    bins = dict(bins)
    names = {"bin_width": "binWidth", "bin_count": "binCount"}
    reference = pyradiomics(
        image, mask, radius, maskedKernel=masked_kernel, voxelArrayShift=shift,
        force2D=force_2d_axis is not None, force2Ddimension=force_2d_axis or 0, initValue=-3,
        **{names[name]: value for name, value in bins.items()},
    )  # fmt: skip
    # Its first-order class discretises in float64 whatever the image's type.
    levels = radiomics_levels(image.astype(np.float64), mask if masked_kernel else None, **bins)
    maps = maps_64(
        image, mask, kernel_radius=radius, levels=levels, masked_kernel=masked_kernel,
        voxel_array_shift=shift, force_2d_axis=force_2d_axis, init_value=-3,
    )  # fmt: skip
    assert list(maps) == list(FEATURES)
    assert_maps_equal(maps, reference, rtol=1e-9, atol=1e-9)


def roi(kind):
    """(image in HU, mask) of an ROI that has gone wrong somewhere."""
    image, mask = random_image(), random_mask()
    if kind == "flat":
        image = np.full(CUBE, 100, np.int32)
    elif kind == "two-level":
        image = np.where(image > 300, 500, 0).astype(np.int32)
    elif kind == "one-slice":
        image, mask = image[:1], mask[:1]
    elif kind == "line":
        mask = np.zeros(CUBE, bool)
        mask[3, 2, :] = True
    elif kind == "border":
        mask = np.zeros(CUBE, bool)
        mask[:3, :, 4:] = True
    elif kind == "full":
        mask = np.ones(CUBE, bool)
    return image, mask


KINDS = ("random", "full", "flat", "two-level", "one-slice", "line", "border")


@pytest.mark.parametrize(
    ("kind", "radius"),
    [(kind, r) for kind in KINDS for r in (1, 2, 3) if kind != "one-slice"] + [("one-slice", 2)],
)
def test_pyradiomics_parity(kind, radius):
    image, mask = roi(kind)
    assert_parity(image, mask, radius)


@pytest.mark.parametrize(
    "setting",
    [
        {"masked_kernel": False, "radius": 2},
        {"masked_kernel": False, "radius": 2, "shift": 300},
        {"shift": 1024},
        {"force_2d_axis": 0},
        {"force_2d_axis": 1},
        {"force_2d_axis": 2},
        {"bins": {"bin_count": 16}},
        {"bins": {"bin_width": 2.5}},
    ],
    ids=str,
)
def test_pyradiomics_parity_of_settings(setting):
    image, mask = roi("random")
    assert_parity(image, mask, **({"radius": 1} | setting))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_pyradiomics_parity_of_image_types(dtype):
    image = random_image(0, 250)
    image = image.astype(dtype) if np.issubdtype(dtype, np.integer) else (image / 7).astype(dtype)
    assert_parity(image, random_mask(), 1, bins={"bin_width": 3})


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
    assert_parity(image[window].astype(np.int32), mask[window], radius)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.ones((4, 4))}, r"image\[None\]"),
        ({"image": np.ones(CUBE, bool)}, "integers or floats"),
        ({"mask": np.ones((4, 4, 3), bool)}, "mask is"),
        ({"mask": np.ones(CUBE, int)}, "must be bool"),
        ({"kernel_radius": 0}, "kernel_radius is 0"),
        ({"kernel_radius": 1.5}, "kernel_radius is 1.5"),
        ({"features": ("Skewness",)}, "Skewness"),
        ({"features": "Mean"}, "tuple of names"),
        ({"features": ("Mean", "Entropy")}, "radiomics_levels"),
        ({"features": FEATURES, "levels": np.ones(CUBE)}, "levels are float64"),
        ({"features": FEATURES, "levels": np.ones((4, 4, 4), int)}, "of shape"),
        ({"features": FEATURES, "levels": np.zeros(CUBE, int)}, "from 0 to 0"),
        ({"features": FEATURES, "levels": np.full(CUBE, 2**40)}, "2\\^31 - 2"),
        ({"voxel_array_shift": 0.5}, "voxel_array_shift is 0.5"),
        ({"force_2d_axis": True}, "force_2d_axis is True"),
        ({"force_2d_axis": 3}, "force_2d_axis is 3"),
        ({"dtype": np.float16}, "float16"),
        ({"image": np.full(CUBE, 2**60)}, "subtract an offset"),
        ({"image": np.full(CUBE, 2**63, np.uint64)}, "subtract an offset"),
        ({"image": np.full(CUBE, 1e19, np.float32)}, "ask for dtype float64"),
        ({"image": np.full(CUBE, 1e200), "dtype": np.float64}, "rescale the image"),
    ],
)
def test_refuses_what_it_cannot_do(change, message):
    arguments = {"image": np.ones(CUBE, int), "kernel_radius": 1, "features": OF_VALUES} | change
    with pytest.raises(ValueError, match=message):
        first_order_maps(arguments.pop("image"), arguments.pop("mask", None), **arguments)


def test_large_values_that_fit_are_not_refused():
    image = np.full(CUBE, 1e19, np.float32)
    energy = maps_64(image, kernel_radius=1, features=("Energy",))["Energy"]
    np.testing.assert_allclose(energy[2, 2, 2], 27 * float(image[0, 0, 0]) ** 2, rtol=1e-15)
    mean = first_order_maps(image, kernel_radius=1, features=("Mean",))["Mean"]
    np.testing.assert_array_equal(mean, image)


def test_jit_without_64_bits_is_refused():
    call = jax.jit(partial(first_order_maps, kernel_radius=1, features=OF_VALUES))
    with pytest.raises(ValueError, match="enable_x64"):
        call(random_image())
    with jax.enable_x64(True), pytest.raises(ValueError, match="cast it to int32"):
        call(random_image(dtype=np.int64))
