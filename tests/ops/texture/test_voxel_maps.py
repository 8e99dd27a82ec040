"""PyRadiomics' voxel-based extraction under its own settings, and what is refused of it."""

from __future__ import annotations

import numpy as np
import pytest

from osteojax.ops.texture import first_order
from osteojax.ops.texture.pair_features import ABSENT_FEATURES, ALL_FEATURES
from osteojax.ops.texture.voxel_maps import VoxelSettings, voxel_maps
from tests.oracles import pyradiomics as peer

CUBE = (6, 6, 6)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def scan(seed=3):
    return np.random.default_rng(seed).integers(-200, 200, CUBE).astype(np.int32)


def roi(kind):
    """(image in HU, mask) of an ROI that has gone wrong somewhere."""
    image = scan()
    mask = np.random.default_rng(1).random(CUBE) < 0.6
    if kind == "flat":
        image = np.full_like(image, 100)
    elif kind == "two-level":
        image = np.where(image > 0, 500, 0).astype(np.int32)
    elif kind == "one-slice":
        image, mask = image[:1], mask[:1]
    elif kind == "line":
        mask = np.zeros(CUBE, bool)
        mask[3, 2, :] = True
    elif kind == "border":
        mask = np.zeros(CUBE, bool)
        mask[:3, :, 4:] = True
    return image, mask


def glcm(image, mask, spacing_mm=(1, 1, 1), features=ALL_FEATURES, **settings):
    maps = voxel_maps(
        image, mask, {"glcm": features}, VoxelSettings.from_dict(settings), spacing_mm=spacing_mm
    )
    return {name.removeprefix("glcm_"): np.asarray(image) for name, image in maps.items()}


def assert_parity(image, mask, spacing_mm=(1, 1, 1), **settings):
    ours = glcm(image, mask, spacing_mm, **settings)
    theirs = peer.glcm_maps(image, mask, ALL_FEATURES, spacing_mm, **settings)
    # All voxels are in one batch, so PyRadiomics' JointAverage is NaN wherever any angle is empty
    # that another window has; ours is the mean over the angles that have a pair (the oracle's).
    accident = np.isnan(theirs["JointAverage"]) & ~np.isnan(theirs["Contrast"])
    theirs["JointAverage"] = np.where(accident, ours["JointAverage"], theirs["JointAverage"])
    for name in ALL_FEATURES:
        np.testing.assert_allclose(ours[name], theirs[name], **TOLERANCE, err_msg=name)
    return accident


@pytest.mark.parametrize("kind", ["random", "flat", "two-level", "one-slice", "line", "border"])
def test_every_feature_on_every_roi(kind):
    assert_parity(*roi(kind), kernelRadius=2)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"binWidth": 40, "kernelRadius": 1}, marks=pytest.mark.slow),
        {"binCount": 9, "kernelRadius": 1},
        {"maskedKernel": False, "kernelRadius": 1},
        {"distances": [2]},
        {"distances": [1, 2]},
        {"force2D": True, "force2Ddimension": 0},
        {"force2D": True, "force2Ddimension": 2},
        {"symmetricalGLCM": False},
        pytest.param({"weightingNorm": "no_weighting"}, marks=pytest.mark.slow),
        {"weightingNorm": "infinity"},
        {"weightingNorm": "euclidean"},
        {"weightingNorm": "manhattan"},
        {"initValue": -7.0},
    ],
    ids=lambda settings: ",".join(f"{k}={v}" for k, v in settings.items()),
)
def test_every_setting(settings):
    """Distances of 2 leave no window of radius 2 without a degenerate angle; the images are noise,
    so that no angle of a window is flat by chance where matrices are not symmetric (there
    PyRadiomics' Correlation divides rounding errors)."""
    image = scan(5)
    mask = np.ones(CUBE, bool)
    mask[0, 0, :3] = False
    assert_parity(image, mask, (2.0, 0.5, 0.5), **({"kernelRadius": 2} | settings))


def test_masked_kernel_false_is_the_class_and_a_crop_is_the_extractor(monkeypatch):
    """The class bins the whole array; the extractor first crops to the mask and the radius."""
    pytest.importorskip("radiomics", reason="PyRadiomics needs Python < 3.12")
    import SimpleITK as sitk
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    image = scan()
    image[0] = -1000  # far from the mask, and below everything in it
    mask = np.zeros(CUBE, bool)
    mask[3:5, 2:4, 2:4] = True
    settings = {"maskedKernel": False, "kernelRadius": 1}
    whole = glcm(image, mask, features=("JointAverage",), **settings)["JointAverage"]
    class_map = peer.glcm_maps(image, mask, ("JointAverage",), **settings)["JointAverage"]
    np.testing.assert_allclose(whole, class_map, **TOLERANCE)
    extractor = RadiomicsFeatureExtractor(
        {
            "setting": {"binWidth": 25, "additionalInfo": False},
            "voxelSetting": settings,
            "imageType": {"Original": {}},
            "featureClass": {"glcm": ["JointAverage"]},
        }
    )
    found = extractor.execute(
        sitk.GetImageFromArray(image),
        sitk.GetImageFromArray(mask.astype(np.uint8)),
        voxelBased=True,
    )
    extracted = sitk.GetArrayFromImage(found["original_glcm_JointAverage"])
    around = (slice(2, 6), slice(1, 5), slice(1, 5))
    cropped = glcm(image[around], mask[around], features=("JointAverage",), **settings)
    values = cropped["JointAverage"][mask[around]]
    np.testing.assert_allclose(values, extracted[extracted != 0], **TOLERANCE)
    assert whole[mask].min() > values.max() + 10  # 25 levels lie between the two origins


def test_masked_kernel_counts_only_the_mask():
    image, mask = roi("border")
    inside = glcm(image, mask, features=("JointAverage",), kernelRadius=1)["JointAverage"]
    outside = np.where(mask, image, 5000).astype(np.int32)
    changed = glcm(outside, mask, features=("JointAverage",), kernelRadius=1)["JointAverage"]
    np.testing.assert_array_equal(inside, changed)
    whole = glcm(outside, mask, features=("JointAverage",), kernelRadius=1, maskedKernel=False)[
        "JointAverage"
    ]
    assert whole[mask].max() > 10 * inside.max()


def test_uint8_does_not_overflow():
    image = (scan() % 256).astype(np.uint8)
    mask = np.ones(CUBE, bool)
    narrow, wide = (glcm(array, mask) for array in (image, image.astype(np.int32)))
    for name in ALL_FEATURES:
        np.testing.assert_array_equal(narrow[name], wide[name])


def test_joint_average_is_the_mean_over_the_angles_that_have_a_pair():
    """PyRadiomics: NaN where an angle is empty, if another window of the batch has that angle."""
    image, mask = roi("random")
    mask[:, 3:] = False
    mask[5, 5, 4:] = True  # two neighbours far from the others: one angle
    accident = assert_parity(image, mask, kernelRadius=1)
    assert accident.any()
    ours = glcm(image, mask, features=("JointAverage",), kernelRadius=1)["JointAverage"]
    assert not np.isnan(ours[accident]).any()


def test_idn_and_idmn_depend_on_the_levels_of_the_roi():
    image, mask = np.zeros(CUBE, np.int32), np.ones(CUBE, bool)
    image[::2] = 25  # the same windows, in ROIs of 2 and of 21 levels
    wide = image.copy()
    wide[5, 5, 5] = 500
    for name in ("Idn", "Idmn"):
        few, many = (
            glcm(i, mask, features=(name,), kernelRadius=1)[name][1, 1, 1] for i in (image, wide)
        )
        assert many > few + 0.05


def test_first_order_and_glcm_in_one_call():
    image, mask = roi("random")
    features = {"glcm": ["Contrast"], "firstorder": list(first_order.FEATURES)}
    maps = voxel_maps(image, mask, features, VoxelSettings(kernelRadius=1))
    assert list(maps) == ["glcm_Contrast", *(f"firstorder_{n}" for n in first_order.FEATURES)]
    z, y, x = np.argwhere(mask)[0]
    window = tuple(slice(max(c - 1, 0), c + 2) for c in (z, y, x))
    inside = image[window][mask[window]]
    assert float(maps["firstorder_Mean"][z, y, x]) == pytest.approx(inside.mean(), rel=1e-6)
    counts = np.unique(inside // 25, return_counts=True)[1] / inside.size
    assert float(maps["firstorder_Uniformity"][z, y, x]) == pytest.approx((counts**2).sum())


# ---------------------------------------------------------------- bad input


def test_a_mask_of_one_voxel_is_nan_and_an_empty_one_is_told():
    image, mask = scan(), np.zeros(CUBE, bool)
    with pytest.raises(ValueError, match="no voxel is inside the mask"):
        glcm(image, mask)
    mask[2, 2, 2] = True
    maps = glcm(image, mask, features=("Contrast", "Correlation"))
    for name in maps:
        assert np.isnan(maps[name][2, 2, 2])
        assert not maps[name][~mask].any()


def test_a_radius_beyond_the_image_sees_all_of_it():
    image, mask = scan()[:3, :3, :3], np.ones((3, 3, 3), bool)
    near, far = (glcm(image, mask, kernelRadius=radius) for radius in (3, 50))
    for name in ALL_FEATURES:
        np.testing.assert_array_equal(near[name], far[name])


def test_float_images_take_bins_of_any_width():
    """0..1 at width 0.1, as a parameter map from elsewhere would be."""
    image = np.random.default_rng(0).random(CUBE)
    mask = np.ones(CUBE, bool)
    ours = glcm(image, mask, features=("JointAverage",), binWidth=0.1, kernelRadius=1)
    theirs = peer.glcm_maps(image, mask, ("JointAverage",), binWidth=0.1, kernelRadius=1)
    np.testing.assert_allclose(ours["JointAverage"], theirs["JointAverage"], **TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.full(CUBE, np.nan)}, "216 of 216 .* NaN"),
        ({"image": scan()[0], "mask": np.ones((6, 6), bool)}, r"image\[None\]"),
        ({"mask": np.ones((6, 6, 5), bool)}, "one shape"),
        ({"mask": np.ones(CUBE, int)}, "bool"),
        ({"features": {"glcm": ["JointEntropy"]}}, "JointEntropy needs the matrix itself"),
        ({"features": {"glcm": ["SumEntropy"]}}, "SumEntropy needs the histogram"),
        ({"features": {"glcm": ["Contrats"]}}, "no texture map named 'Contrats'"),
        ({"features": {"glrlm": ["RunEntropy"]}}, "no feature class 'glrlm'.*firstorder"),
    ],
)
def test_refuses_what_it_cannot_do(change, message):
    arguments = {
        "image": scan(),
        "mask": np.ones(CUBE, bool),
        "features": {"glcm": ["Contrast"]},
    } | change
    with pytest.raises(ValueError, match=message):
        voxel_maps(**arguments)


def test_settings_that_are_not_supported_are_named():
    with pytest.raises(ValueError, match=r"gldm_a, resampledPixelSpacing are not supported.*bin"):
        VoxelSettings.from_dict({"gldm_a": 1, "resampledPixelSpacing": [1, 1, 1]})


def test_every_glcm_feature_of_pyradiomics_is_made_or_named_as_absent():
    pytest.importorskip("radiomics", reason="PyRadiomics needs Python < 3.12")
    from radiomics.glcm import RadiomicsGLCM

    theirs = {
        name for name, deprecated in RadiomicsGLCM.getFeatureNames().items() if not deprecated
    }
    assert theirs == set(ALL_FEATURES) | set(ABSENT_FEATURES)
