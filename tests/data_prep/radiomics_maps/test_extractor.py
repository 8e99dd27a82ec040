"""The extractor against PyRadiomics itself: keys, order, geometry, diagnostics, every voxel."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.radiomics_maps.extractor import RadiomicsFeatureExtractor
from osteojax.errors import UserError
from osteojax.ops.texture.voxel_maps import CLASSES

OURS_ALONE = ("diagnostics_Versions_PyRadiomics", "diagnostics_Versions_PyWavelet")
"""The two entries whose values name the engine."""
slow = pytest.mark.slow
ALL = {name: list(features) for name, features in CLASSES.items()}


def peer(parameters: dict[str, Any], image, mask, **call: Any) -> dict[str, Any]:
    """PyRadiomics' own answer."""
    radiomics = pytest.importorskip("radiomics", reason="PyRadiomics needs Python < 3.12")
    from radiomics.featureextractor import RadiomicsFeatureExtractor as Theirs

    radiomics.setVerbosity(logging.CRITICAL)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Theirs(parameters).execute(image, mask, voxelBased=True, **call)


def scan(seed: int = 0, size: tuple[int, int, int] = (9, 8, 7)) -> tuple[sitk.Image, sitk.Image]:
    """(image in HU, mask of labels 1 and 3) with an origin, a spacing and oblique axes."""
    random = np.random.default_rng(seed)
    hu = random.integers(-200, 400, size).astype(np.int16)
    labels = np.zeros(size, np.uint8)
    labels[2:8, 2:6, 2:6] = random.choice([0, 1, 3], (6, 4, 4), p=[0.1, 0.7, 0.2])
    turn = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    images = sitk.GetImageFromArray(hu), sitk.GetImageFromArray(labels)
    for image in images:
        image.SetSpacing((0.7, 0.8, 2.5))
        image.SetOrigin((-31.25, 12.5, 100.1))
        image.SetDirection(turn)
    return images


def parameters(features: dict[str, list[str]] | None = None, **settings: Any) -> dict[str, Any]:
    voxel = {n: settings.pop(n) for n in ("kernelRadius", "maskedKernel", "initValue", "voxelBatch")
             if n in settings}  # fmt: skip
    return {
        "imageType": {"Original": {}},
        "featureClass": features or {"glcm": ["Contrast", "ClusterShade"], "firstorder": ["Mean"]},
        "setting": settings,
        "voxelSetting": voxel,
    }


def assert_same(asked: dict[str, Any], image, mask, **call: Any) -> dict[str, int]:
    """Every entry equals PyRadiomics'; the voxels of the documented difference are counted.

    That difference: JointAverage is NaN there where one of the angles that other windows have is
    empty, and here the mean over the angles that have a pair.

    Returns:
      voxels (of all maps) and accidents (of JointAverage).
    """
    ours = RadiomicsFeatureExtractor(asked).execute(image, mask, voxelBased=True, **call)
    theirs = peer(asked, image, mask, **call)
    assert list(ours) == list(theirs)
    counts = {"voxels": 0, "accidents": 0}
    for name, expected in theirs.items():
        if not isinstance(expected, sitk.Image):
            if name not in OURS_ALONE:
                assert ours[name] == expected, name
                assert type(ours[name]) is type(expected), name
            continue
        found = ours[name]
        for what in ("Size", "Spacing", "Origin", "Direction", "PixelID"):
            assert getattr(found, f"Get{what}")() == getattr(expected, f"Get{what}")(), name
        values, truth = sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected)
        counts["voxels"] += values.size
        if name == "original_glcm_JointAverage":
            same = sitk.GetArrayFromImage(ours["original_glcm_Autocorrelation"])
            accident = np.isnan(truth) & ~np.isnan(same)
            inside = _inside(image, mask, call.get("label", 1), found)
            np.testing.assert_array_equal(accident, empty_angles(inside, asked))
            counts["accidents"] += int(accident.sum())
            assert np.isfinite(values[accident]).all()
            truth = np.where(accident, values, truth)
        scale = np.nanmax(np.abs(truth), initial=1.0)
        np.testing.assert_allclose(values, truth, rtol=1e-9, atol=1e-12 * scale, err_msg=name)
    return counts


def _inside(image, mask, label: int, found: sitk.Image) -> np.ndarray:
    """bool[D, H, W]: the label in the frame of a map."""
    start = image.TransformPhysicalPointToIndex(found.GetOrigin())
    place = tuple(slice(s, s + n) for s, n in zip(start, found.GetSize(), strict=True))
    return sitk.GetArrayFromImage(mask[place]) == label


def empty_angles(inside: np.ndarray, asked: dict[str, Any]) -> np.ndarray:
    """bool[D, H, W]: voxels whose window has pairs, but none along an angle that another window of
    PyRadiomics' batch has."""
    radius = asked["voxelSetting"].get("kernelRadius", 1)
    places = np.argwhere(inside)
    batch = asked["voxelSetting"].get("voxelBatch", len(places))
    angles = [a for a in itertools.product((-1, 0, 1), repeat=3) if a > (0, 0, 0)]
    has = np.zeros((len(angles), *inside.shape), bool)
    for z, y, x in places:
        window = inside[tuple(slice(max(c - radius, 0), c + radius + 1) for c in (z, y, x))]
        for number, angle in enumerate(angles):
            first = tuple(
                slice(max(-a, 0), n - max(a, 0)) for a, n in zip(angle, window.shape, strict=True)
            )
            second = tuple(
                slice(max(a, 0), n - max(-a, 0)) for a, n in zip(angle, window.shape, strict=True)
            )
            has[number, z, y, x] = (window[first] & window[second]).any()
    empty = np.zeros(inside.shape, bool)
    for start in range(0, len(places), batch):
        own = tuple(places[start : start + batch].T)
        found = has[:, *own]
        used = found.any(axis=1)
        empty[own] = found.any(axis=0) & ~found[used].all(axis=0)
    return empty


@pytest.mark.parametrize(
    "settings",
    [
        {"binWidth": 40.5},
        pytest.param({"binCount": 8, "initValue": math.nan, "voxelBatch": 50}, marks=slow),
        pytest.param({"maskedKernel": False, "voxelArrayShift": 300}, marks=slow),
        {"force2D": True, "force2Ddimension": 1, "distances": [1, 2], "kernelRadius": 2},
        pytest.param(
            {"symmetricalGLCM": False, "weightingNorm": "euclidean", "additionalInfo": False},
            marks=slow,
        ),
        {"preCrop": True, "padDistance": 1, "kernelRadius": 2, "maskedKernel": False},
        {"label": 3, "minimumROISize": 5, "minimumROIDimensions": 3, "geometryTolerance": 1e-3},
        pytest.param(
            {"interpolator": None, "resampledPixelSpacing": [1, 1, 1], "gldm_a": 0}, marks=slow
        ),
    ],
    ids=lambda settings: ",".join(settings) or "defaults",
)
def test_settings_are_pyradiomics_own(settings: dict[str, Any]) -> None:
    features = {"firstorder": ["Energy", "Uniformity"], "glcm": ["Correlation", "Contrast"]}
    assert_same(parameters(features, **settings), *scan())


def test_label_and_channel_of_the_call() -> None:
    image, mask = scan()
    assert_same(parameters(), image, mask, label=3)
    channels = sitk.Compose(mask * 0, mask)
    assert_same(parameters(), image, channels, label_channel=1)


def test_an_image_type_may_have_settings_of_its_own() -> None:
    asked = parameters({"glcm": ["Contrast"]}, binWidth=10)
    asked["imageType"] = {"Original": {"binWidth": 100}}
    assert_same(asked, *scan())


def test_shape_gives_no_maps_as_in_pyradiomics() -> None:
    assert_same(parameters({"shape": [], "glcm": ["Contrast"]}), *scan())


def test_a_script_enables_features_by_name() -> None:
    """The other way to write a PyRadiomics script: no file, features switched on one by one."""
    extractor = RadiomicsFeatureExtractor(binWidth=30, additionalInfo=False)
    with pytest.raises(UserError, match="all features of all classes"):
        extractor.execute(*scan(), voxelBased=True)
    extractor.disableAllFeatures()
    extractor.disableAllImageTypes()
    extractor.enableImageTypeByName("Original")
    extractor.enableFeatureClassByName("glcm")
    extractor.enableFeaturesByName(glcm=["Contrast"])
    extractor.settings["binWidth"] = 20
    found = extractor.execute(*scan(), voxelBased=True)
    expected = peer(parameters({"glcm": ["Contrast"]}, binWidth=20), *scan())
    assert list(found) == ["original_glcm_Contrast"]
    np.testing.assert_allclose(*(sitk.GetArrayFromImage(r["original_glcm_Contrast"])
                                 for r in (found, expected)), rtol=1e-12)  # fmt: skip


def test_files_in_place_of_images(tmp_path: Path) -> None:
    image, mask = scan()
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    sitk.WriteImage(mask, str(tmp_path / "mask.nrrd"))
    extractor = RadiomicsFeatureExtractor(parameters())
    found = extractor.execute(tmp_path / "ct.nrrd", str(tmp_path / "mask.nrrd"), voxelBased=True)
    expected = extractor.execute(image, mask, voxelBased=True)
    for name in ("original_glcm_Contrast", "original_firstorder_Mean"):
        assert sitk.Hash(found[name]) == sitk.Hash(expected[name])


def test_works_without_pyradiomics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "radiomics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "radiomics", None)  # importing it now fails
    found = RadiomicsFeatureExtractor(parameters()).execute(*scan(), voxelBased=True)
    assert "original_glcm_Contrast" in found


# ---------------------------------------------------------------- real CTs


def vertebra(real_data: Path, name: str, label: int, half: tuple[int, int, int] | None):
    """(CT, mask) around a vertebra, in voxels along x, y, z; None is the whole scan."""
    ct, labels = {
        "tptbox": (
            "tptbox/sub-ct_label-22_ct.nii.gz",
            "tptbox/sub-ct_seg-vert_label-22_msk.nii.gz",
        ),
        "torso": ("totalsegmentator/example_ct.nii.gz", "totalsegmentator/totalseg.nii.gz"),
    }[name]
    image, mask = (sitk.ReadImage(str(real_data / path)) for path in (ct, labels))
    if half is None:
        return image, mask
    places = np.argwhere(sitk.GetArrayFromImage(mask) == label)
    center = np.rint(places.mean(0)).astype(int)[::-1]
    cut = tuple(slice(int(c) - h, int(c) + h) for c, h in zip(center, half, strict=True))
    return image[cut], mask[cut]


def test_a_piece_of_a_real_vertebra(real_data: Path) -> None:
    """Every feature; 128 voxels are in the piece's mask at the most."""
    image, mask = vertebra(real_data, "torso", 29, (4, 4, 4))
    counts = assert_same(parameters(ALL), image, mask, label=29)
    assert counts == {"voxels": 25 * 8**3, "accidents": 10}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "label", "half", "radius", "accidents"),
    [
        ("tptbox", 22, (9, 9, 9), 1, 35),  # all of it takes PyRadiomics 8 minutes: 94
        ("torso", 29, None, 1, 68),
        ("torso", 28, None, 2, 4),
        ("torso", 31, None, 1, 65),
    ],
)  # accidents as counted on 2026-11-25; `empty_angles` finds the same voxels
def test_real_vertebrae(
    real_data: Path,
    name: str,
    label: int,
    half: tuple[int, int, int] | None,
    radius: int,
    accidents: int,
) -> None:
    image, mask = vertebra(real_data, name, label, half)
    asked = parameters(ALL, kernelRadius=radius, voxelBatch=500)  # one batch takes tens of GB
    counts = assert_same(asked, image, mask, label=label)
    assert counts["accidents"] == accidents
