"""Whole regions against stored values, and strided patches against PyRadiomics on each patch."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from osteojax.ops.texture.grey_levels import radiomics_levels
from osteojax.ops.texture.packed_patches import packs
from osteojax.ops.texture.pair_features import ALL_FEATURES, FEATURES
from osteojax.ops.texture.patches import patch_maps, region_features
from osteojax.ops.texture.windows import Window
from tests.oracles import glcm as oracle
from tests.oracles import pyradiomics as peer


def ct(shape, seed=0):
    """Integer HU with a gradient: patches differ in their smallest level."""
    rng = np.random.default_rng(seed)
    ramp = 40 * np.add.outer(
        np.add.outer(np.arange(shape[0]), np.arange(shape[1])), np.arange(shape[2])
    )
    return (ramp + rng.integers(0, 200, shape)).astype(np.int32)


# ---------------------------------------------------------------- whole regions

IBSI = {
    "JointAverage": 2.14,
    "SumSquares": 3.1,
    "DifferenceAverage": 1.43,
    "DifferenceVariance": 3.06,
    "SumAverage": 4.29,
    "Contrast": 5.32,
    "Id": 0.677,
    "Idn": 0.851,
    "Idm": 0.618,
    "Idmn": 0.898,
    "InverseVariance": 0.0604,
    "Correlation": 0.157,
    "Autocorrelation": 5.06,
    "ClusterTendency": 7.07,
    "ClusterShade": 16.6,
    "ClusterProminence": 145,
}
"""IBSI reference manual, digital phantom, co-occurrence matrix, 3D averaged."""


def test_ibsi_digital_phantom(real_data):
    import SimpleITK as sitk

    image, mask = (
        sitk.GetArrayFromImage(
            sitk.ReadImage(str(real_data / "ibsi" / f"ibsi_1_digital_phantom_{what}.nii.gz"))
        )
        for what in ("image", "mask")
    )
    found = region_features(np.rint(image).astype(int), mask > 0, features=tuple(IBSI))
    for name, value in IBSI.items():
        digits = len(str(value).replace(".", "").lstrip("0"))
        assert float(f"{float(found[name]):.{digits}g}") == value, name


@pytest.mark.parametrize(
    ("case", "bins"),
    [
        ("brain1", {"bin_width": 25}),
        ("breast1", {"bin_width": 25}),
        ("brain1_2d", {"bin_width": 25}),
        ("breast1_FBN", {"bin_count": 64}),
    ],
)
def test_stored_pyradiomics_baselines(real_data, case, bins):
    import SimpleITK as sitk

    folder = real_data / "pyradiomics"
    with (folder / "baseline_glcm.csv").open() as stream:
        stored = {row["featureName"]: row[case] for row in csv.DictReader(stream)}
    stored_settings = stored["diagnostics_Configuration_Settings"]
    name = case.split("_")[0]
    image, mask = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}_{what}.nrrd")))
        for what in ("image", "label")
    )
    x, y, z, *size = eval_box(stored["diagnostics_Mask-original_BoundingBox"])
    box = tuple(slice(a, a + n) for a, n in zip((z, y, x), size[::-1], strict=True))
    image, mask = image[box], mask[box] == 1
    axis = 0 if "2d" in case else None
    assert ("'force2D': True" in stored_settings) == (axis is not None), stored_settings
    levels = np.where(mask, radiomics_levels(image, mask, **bins), 0)
    window = Window(force_2d_axis=axis)
    found = region_features(levels, mask, window, features=ALL_FEATURES)
    for name in ALL_FEATURES:
        truth = float(stored[f"original_glcm_{name}"])
        assert float(found[name]) == pytest.approx(truth, rel=1e-10), name


def eval_box(text):
    return [int(part) for part in text.strip("()").split(",")]


def test_regions_are_a_batch():
    rng = np.random.default_rng(0)
    levels, mask = rng.integers(1, 9, (3, 4, 4, 4)), rng.random((3, 4, 4, 4)) < 0.8
    found = region_features(levels, mask, features=ALL_FEATURES)
    for index in range(3):
        truth = oracle.region_features(levels[index], mask[index])
        for name in ALL_FEATURES:
            assert found[name][index] == pytest.approx(truth[name], rel=1e-12, abs=1e-12), name


# ---------------------------------------------------------------- strided patches


@pytest.mark.parametrize("masked", [False, True])
def test_patch_centres_are_pyradiomics_on_each_patch(masked):
    """Per-patch grey levels: the smallest value of every patch is in level 1."""
    image, radius, stride = ct((8, 7, 9)), 2, 3
    mask = (
        np.random.default_rng(1).random(image.shape) < 0.7 if masked else np.ones(image.shape, bool)
    )
    levels = image // 25
    found = patch_maps(
        levels,
        mask,
        Window(radius),
        stride=stride,
        features=ALL_FEATURES,
        dtype=np.float64,
        init_value=np.nan,
    )
    compared = 0
    for centre in np.ndindex(2, 1, 2):
        z, y, x = (radius + stride * c for c in centre)
        if not mask[z, y, x]:
            continue
        patch = tuple(slice(c - radius, c + radius + 1) for c in (z, y, x))
        truth = peer.glcm_features(image[patch], mask[patch], ALL_FEATURES)
        for name in ALL_FEATURES:
            value = float(found[name][z, y, x])
            assert value == pytest.approx(truth[name], rel=1e-11, abs=1e-11), (name, centre)
        compared += 1
    assert compared >= 2


def test_between_the_centres_values_are_interpolated_and_beyond_them_repeated():
    image, radius, stride = ct((9, 9, 9)), 1, 2
    found = np.asarray(
        patch_maps(
            image // 25,
            None,
            Window(radius),
            stride=stride,
            features=("Contrast",),
            dtype=np.float64,
        )["Contrast"]
    )
    centres = np.arange(radius, 9 - radius, stride)
    grid = found[np.ix_(centres, centres, centres)]
    voxels = np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing="ij"), -1)
    inside = np.clip(voxels, centres[0], centres[-1])  # centres aligned, ends repeated
    truth = RegularGridInterpolator([centres] * 3, grid)(inside)
    np.testing.assert_allclose(found, truth, rtol=1e-12)


def test_features_of_differences_are_the_dense_ones_at_the_centres():
    from osteojax.ops.texture.glcm import texture_maps

    levels = np.random.default_rng(0).integers(5, 30, (7, 7, 7))
    dense = texture_maps(levels, kernel_radius=2, num_levels=29)
    strided = patch_maps(levels, None, Window(2), stride=1)
    centre = (slice(2, 5),) * 3
    for name in ("Contrast", "DifferenceAverage"):
        np.testing.assert_allclose(strided[name][centre], dense[name][centre], rtol=1e-6)
    # Autocorrelation loses 2 o * JointAverage - o^2, with o the patch's smallest level - 1.
    lowest = np.lib.stride_tricks.sliding_window_view(levels, (5, 5, 5)).min((-3, -2, -1)) - 1
    joint, auto = (np.asarray(dense[n])[centre] for n in ("JointAverage", "Autocorrelation"))
    np.testing.assert_allclose(strided["JointAverage"][centre], joint - lowest, rtol=1e-5)
    expected = auto - 2 * lowest * joint + lowest**2
    np.testing.assert_allclose(strided["Autocorrelation"][centre], expected, rtol=1e-4)


@pytest.mark.parametrize(("masked", "num_levels"), [(False, 768), (True, 48)])
def test_packed_sums_are_the_exact_ones(masked, num_levels):
    """The paper's features in float32 come from strided box sums, in float64 from cut-out patches.
    The last number of levels is near what 31 bits hold."""
    rng = np.random.default_rng(0)
    levels = rng.integers(num_levels // 2, num_levels + 1, (9, 8, 12))
    mask = rng.random(levels.shape) < 0.4 if masked else None
    assert packs(Window(2), FEATURES, num_levels // 2 + 1, levels.shape)
    packed, exact = (
        patch_maps(levels, mask, Window(2), stride=3, dtype=dtype, init_value=-1)
        for dtype in (np.float32, np.float64)
    )
    for name in FEATURES:
        np.testing.assert_allclose(packed[name], exact[name], rtol=2e-6, err_msg=name)


def test_an_offset_of_the_levels_changes_nothing():
    levels = np.random.default_rng(0).integers(1, 30, (6, 6, 6))
    low, high = (patch_maps(x, None, Window(1), stride=2) for x in (levels, levels + 1000))
    for name in low:
        np.testing.assert_array_equal(low[name], high[name])


def test_narrow_levels_do_not_wrap():
    """uint8 from 0 to 255 is 256 levels."""
    levels = np.random.default_rng(0).integers(0, 256, (6, 6, 6))
    levels[0, 0, :2] = 0, 255
    wide, narrow = (patch_maps(x, None, Window(1), stride=2) for x in (levels, np.uint8(levels)))
    for name in wide:
        np.testing.assert_array_equal(narrow[name], wide[name])


def test_patches_without_a_pair_take_no_part():
    """The mask is at one end; voxels near it take the value of the patches that saw it."""
    levels = np.random.default_rng(0).integers(1, 9, (3, 3, 12))
    mask = np.zeros(levels.shape, bool)
    mask[:, :, :4] = True
    mask[1, 1, 11] = True  # alone
    found = np.asarray(
        patch_maps(levels, mask, Window(1), stride=3, features=("Contrast",), init_value=-1)[
            "Contrast"
        ]
    )
    assert np.isfinite(found[:, :, :4]).all()
    assert np.isnan(found[1, 1, 11])
    assert (found[~mask] == -1).all()


def test_an_array_smaller_than_a_patch_is_one_clipped_patch():
    levels = np.random.default_rng(0).integers(1, 9, (3, 4, 5))
    found = patch_maps(levels, None, Window(4), stride=2, features=ALL_FEATURES, dtype=np.float64)
    truth = oracle.region_features(levels - levels.min() + 1, np.ones(levels.shape, bool))
    for name in ALL_FEATURES:
        np.testing.assert_allclose(found[name], truth[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"levels": np.ones((4, 4), int)}, r"integer\[D, H, W\]"),
        ({"levels": np.ones((4, 4, 4))}, "float"),
        ({"mask": np.ones((4, 4, 3), bool)}, "mask is"),
        ({"features": ("MCC",)}, "MCC needs the matrix"),
    ],
)
def test_refuses_what_it_cannot_do(change, message):
    arguments = {"levels": np.ones((4, 4, 4), int), "stride": 2} | change
    with pytest.raises(ValueError, match=message):
        patch_maps(**arguments)
