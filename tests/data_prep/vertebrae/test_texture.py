"""The texture pool: exact levels from codes, both domains, both engines, and its refusals."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from data_prep.vertebrae import texture
from data_prep.vertebrae.texture import TextureSettings, texture_pool, texture_pools
from launch.cli import main
from osteojax.data.vertebrae import HU_MAX, HU_MIN, POOL, image_spec
from osteojax.errors import UserError
from tests.oracles import glcm as oracle

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
needs_pyradiomics = pytest.mark.skipif(
    importlib.util.find_spec("radiomics") is None, reason="PyRadiomics needs Python < 3.12"
)


def random_codes(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 240, shape).astype(np.uint8)


def test_box_pool_is_the_oracle_of_the_hu_levels():
    """Level 1 starts at -200 HU whatever is in the box: nothing here is below 100 HU."""
    hu = np.random.default_rng(0).integers(100, 900, (6, 6, 6))
    codes = ((hu - HU_MIN) // 5).astype(np.uint8)
    levels = ((hu + 200) // 25 + 1).astype(int)
    pool = texture_pool(codes, None, TextureSettings(kernel_radius=1))
    assert tuple(pool) == POOL[1:]
    for name, truth in oracle.maps(levels, None, 1).items():
        assert pool[name].dtype == np.float32
        np.testing.assert_allclose(pool[name], truth, **TOLERANCE, err_msg=name)


def test_vertebra_pool_fills_what_has_no_texture_with_the_lowest_value():
    codes = random_codes((6, 6, 6))
    mask = np.zeros(codes.shape, bool)
    mask[:3, :3, :3] = True
    mask[5, 5, 5] = True  # isolated: NaN in the maps
    pool = texture_pool(codes, mask, TextureSettings(domain="vertebra", kernel_radius=1))
    expected = oracle.maps(codes.astype(int) // 5 + 1, mask, 1, init_value=np.nan)
    lowest = {"Autocorrelation": 1, "JointAverage": 1, "Contrast": 0, "DifferenceAverage": 0}
    for name, truth in expected.items():
        assert np.isnan(truth[5, 5, 5])
        truth = np.where(np.isnan(truth), lowest[name], truth)
        np.testing.assert_allclose(pool[name], truth, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("domain", texture.DOMAINS)
def test_a_batch_is_its_members(domain):
    codes, settings = random_codes((3, 6, 6, 6)), TextureSettings(domain=domain, kernel_radius=2)
    masks = np.random.default_rng(1).random(codes.shape) < 0.7
    pools = texture_pools(codes, masks, settings)
    for index in range(3):
        for name, single in texture_pool(codes[index], masks[index], settings).items():
            np.testing.assert_array_equal(pools[name][index], single)


def test_patches_have_grey_levels_of_their_own():
    """Against the definition at the patch centres: the smallest level of every patch is 1."""
    codes = random_codes((7, 7, 7))
    settings = TextureSettings(kernel_radius=1, patch_stride=2)
    pool = texture_pool(codes, None, settings)
    for centre in ((1, 1, 1), (3, 5, 1), (5, 5, 5)):
        patch = codes[tuple(slice(c - 1, c + 2) for c in centre)].astype(int) // 5
        truth = oracle.region_features(patch - patch.min() + 1, np.ones(patch.shape, bool))
        for name in POOL[1:]:
            np.testing.assert_allclose(pool[name][centre], truth[name], **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("bin_width", [25, 35, 1200])
def test_values_stay_inside_the_range_of_the_settings(bin_width):
    """The extremes of the codes, side by side and flat."""
    settings = TextureSettings(bin_width=bin_width, kernel_radius=1)
    top = settings.num_levels
    assert top == int((HU_MAX - 1 - HU_MIN) // bin_width) + 1
    checkers = (np.indices((6, 6, 6)).sum(0) % 2 * 239).astype(np.uint8)
    for codes in (checkers, np.full((6, 6, 6), 239, np.uint8), np.zeros((6, 6, 6), np.uint8)):
        pool = texture_pool(codes, None, settings)
        highest = (top**2, top, (top - 1) ** 2, top - 1)
        for name, high in zip(POOL[1:], highest, strict=True):
            low = texture.LOWEST_VALUE[name]
            assert pool[name].min() >= low * (1 - 1e-6)
            assert pool[name].max() <= high * (1 + 1e-6)


@needs_pyradiomics
@pytest.mark.parametrize("domain", texture.DOMAINS)
def test_engines_agree(domain):
    codes = random_codes((6, 6, 6))
    mask = np.zeros(codes.shape, bool)
    mask[:5, 1:, :] = np.random.default_rng(1).random((5, 5, 6)) < 0.8
    ours, reference = (
        texture_pool(codes, mask, TextureSettings(domain=domain, kernel_radius=2, engine=engine))
        for engine in texture.ENGINES
    )
    for name in POOL[1:]:
        np.testing.assert_allclose(ours[name], reference[name], **TOLERANCE, err_msg=name)


@needs_pyradiomics
def test_engines_agree_on_a_real_vertebra(real_data):
    import SimpleITK as sitk

    folder = real_data / "totalsegmentator"
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "example_ct.nii.gz")))
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "totalseg.nii.gz"))) == 28
    center = np.rint(np.argwhere(mask).mean(0)).astype(int)
    window = tuple(slice(c - 3, c + 3) for c in center)
    hu, mask = np.clip(hu[window], HU_MIN, HU_MAX - 1), mask[window]
    assert 50 < mask.sum() < mask.size
    codes = np.floor((hu - HU_MIN) / 5).astype(np.uint8)
    np.testing.assert_array_equal(image_spec().encode(hu // 5 * 5 + 2.5), codes)
    ours, reference = (
        texture_pool(codes, mask, TextureSettings(domain="vertebra", engine=engine))
        for engine in texture.ENGINES
    )
    for name in POOL[1:]:
        np.testing.assert_allclose(ours[name], reference[name], **TOLERANCE, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bin_width": 12.0}, "12 HU.*multiple of 5"),
        ({"bin_width": 0.0}, "bin width 0"),
        ({"bin_width": 1205.0}, "1205"),
        ({"bin_width": float("nan")}, "bin width nan"),
        ({"kernel_radius": 0}, "kernel radius 0"),
        ({"domain": "body"}, "'body'.*box, vertebra"),
        ({"patch_stride": 0}, "patch stride 0"),
        ({"patch_stride": 3, "engine": "pyradiomics"}, "dense maps only"),
        ({"engine": "torch"}, "'torch'.*jax, pyradiomics"),
    ],
)
def test_settings_refuse_what_cannot_be(change, message):
    with pytest.raises(UserError, match=message):
        TextureSettings(**change)


def test_vertebra_domain_needs_a_mask():
    codes, settings = random_codes((4, 4, 4)), TextureSettings(domain="vertebra")
    with pytest.raises(UserError, match="there is none"):
        texture_pool(codes, None, settings)
    with pytest.raises(UserError, match="mask is empty"):
        texture_pool(codes, np.zeros(codes.shape, bool), settings)
    with pytest.raises(UserError, match=r"\(4, 4, 3\)"):
        texture_pool(codes, np.ones((4, 4, 3), bool), settings)


def test_codes_that_are_not_image_codes():
    with pytest.raises(ValueError, match="image code 240"):
        texture_pool(np.full((4, 4, 4), 240, np.uint8), None, TextureSettings())
    with pytest.raises(ValueError, match="float32"):
        texture_pool(np.zeros((4, 4, 4), np.float32), None, TextureSettings())


def test_absent_reference_engine_is_told_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "radiomics", None)
    with pytest.raises(UserError, match=r"install.*'osteojax\[reference\]'"):
        texture_pool(random_codes((4, 4, 4)), None, TextureSettings(engine="pyradiomics"))
    out = tmp_path / "pool"
    tables = ("--cohort", str(tmp_path / "no.csv"), "--dxa", str(tmp_path / "no.csv"))
    assert main(["prepare", *tables, "--out", str(out), "--texture-engine", "pyradiomics"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
