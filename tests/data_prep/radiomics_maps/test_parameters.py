"""Parameter files: which are covered, what refuses the others, and lines that can be pasted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import yaml

from data_prep.radiomics_maps.extractor import RadiomicsFeatureExtractor
from data_prep.radiomics_maps.settings import DEFAULTS
from osteojax.errors import UserError
from osteojax.ops.texture.voxel_maps import CLASSES
from tests.data_prep.radiomics_maps.test_extractor import scan

EXAMPLE = """
imageType:
  Original: {}
  Wavelet: {}
featureClass:
  glcm: [Contrast, JointEntropy, Idm]
  glrlm:
  firstorder: []
setting:
  binWidth: 20
  normalize: true
  geometryTolerance: 1e-3  # text to YAML 1.1, a number to PyRadiomics
voxelSetting:
  kernelRadius: 2
"""


def refusal(source: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        RadiomicsFeatureExtractor(source, **settings)
    return str(caught.value)


def test_the_refusal_names_everything_and_its_lines_are_covered(tmp_path: Path) -> None:
    path = tmp_path / "parameters.yaml"
    path.write_text(EXAMPLE)
    message = refusal(path)
    faults, lines = message.split("This file would be supported:\n")
    for part in (
        f"{path} asks for unsupported features or settings",
        "imageType Wavelet: only Original is supported",
        "featureClass glcm: JointEntropy is not supported",
        "featureClass glrlm: not supported, only glcm and firstorder are",
        "featureClass firstorder: all features are enabled, 9 are supported",
        "setting normalize is True: this step is not supported; only false is",
    ):
        assert part in faults
    assert faults.count("\n  - ") == 5
    path.write_text(lines)
    kept = yaml.safe_load(lines)
    assert kept == {
        "imageType": {"Original": {}},
        "featureClass": {"glcm": ["Contrast", "Idm"], "firstorder": list(CLASSES["firstorder"])},
        "setting": {"binWidth": 20, "geometryTolerance": 1e-3},
        "voxelSetting": {"kernelRadius": 2},
    }
    extractor = RadiomicsFeatureExtractor(path)
    changed = {"binWidth": 20, "geometryTolerance": 1e-3, "kernelRadius": 2}
    assert extractor.settings == {**DEFAULTS, **changed}
    assert len(extractor.execute(*scan(), voxelBased=True)) == 22 + 2 + 9


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "no featureClass: PyRadiomics then makes all"),
        ({"featureClass": {"glcm": None}}, "glcm: all features are enabled, 16 are supported"),
        (
            {"featureClass": {"glcm": ["Contrats"]}},
            "Contrats is not supported; did you mean Contrast?",
        ),
        ({"featureClass": {"glcm": "Contrast"}}, "must be a list of names"),
        ({"setting": {"binwidth": 5}}, "no setting binwidth; did you mean binWidth?"),
        ({"setting": {"binWidth": -5}}, "binWidth is -5: it must be a number above 0"),
        ({"setting": {"binWidth": "wide"}}, "binWidth is 'wide': it must be a number"),
        ({"setting": {"distances": [0]}}, "distances is .0.: it must be a list"),
        ({"setting": {"weightingNorm": "city"}}, "it must be None, manhattan, euclidean"),
        ({"setting": {"resampledPixelSpacing": [1, 1, 1]}}, "only null is"),
        ({"setting": {"resegmentRange": [-3, 3]}}, "only null is"),
        ({"setting": {"correctMask": True}}, "only false is"),
        ({"voxelSetting": {"kernelRadius": 1.5}}, "kernelRadius is 1.5: it must be a whole"),
        ({"imageType": {"Original": {"label": 2}}}, "Original changes label: set it under setting"),
        ({"imageType": {"Original": {"binWidth": 0}}}, "Original: setting binWidth is 0"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_said_and_mended(sections: dict[str, Any], message: str) -> None:
    asked = {"featureClass": {"glcm": ["Contrast"]}, **sections} if sections else {}
    text = refusal(asked)
    assert re.search(message, text)
    mended = yaml.safe_load(text.split("would be supported:\n")[1])
    RadiomicsFeatureExtractor(mended)
    assert mended["featureClass"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml: no such file"),
        ({"featureclass": {}}, "no section 'featureclass'; there are imageType, featureClass"),
        ({"setting": [1]}, "section setting must hold names with values"),
        ({"imageType": {"Original": 3}}, "must hold settings"),
    ],
)
def test_what_is_no_parameter_file_is_one_line(source: Any, message: str) -> None:
    text = refusal(source)
    assert message in text
    assert "\n" not in text


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    for name, content in (("a.yaml", "setting: [1\n: 3"), ("b.yaml", "only text")):
        (tmp_path / name).write_text(content)
        assert "\n" not in refusal(tmp_path / name)
    (tmp_path / "c.yaml").write_text("setting: !!python/object/apply:os.getcwd []")
    assert "not YAML" in refusal(tmp_path / "c.yaml")


def test_json_is_a_parameter_file_too(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    path.write_text('{"featureClass": {"glcm": ["Contrast"]}, "setting": {"binWidth": 10}}')
    assert RadiomicsFeatureExtractor(str(path)).settings["binWidth"] == 10


# ---------------------------------------------------------------- image and mask


def execute(image, mask, **call: Any) -> None:
    parameters = {"featureClass": {"glcm": ["Contrast"]}}
    RadiomicsFeatureExtractor(parameters).execute(image, mask, **{"voxelBased": True, **call})


def test_unusable_images_and_masks_are_one_line_each() -> None:
    image, mask = scan()
    moved, turned = sitk.Image(mask), sitk.Image(mask)
    moved.SetOrigin((0, 0, 0))
    turned.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    point, line = mask * 0, mask * 0
    point[3, 3, 3] = 1
    line[3, 3, 3] = line[4, 3, 3] = 1
    broken = sitk.Cast(image, sitk.sitkFloat32) * float("nan")
    for ct, labels, call, message in (
        (image, mask, {"voxelBased": False}, "one number per region is not supported"),
        (image, mask, {"label": 7}, "label 7 is not in it; its labels: 1, 3"),
        (image, mask * 0, {}, "its labels: none"),
        (image, moved, {}, "origin"),
        (image, turned, {}, "direction"),
        (image, mask[1:, :, :], {}, "Resample the mask"),
        (image, point, {}, "one voxel, which has no texture"),
        (image, line, {}, "along 1 axes, minimumROIDimensions is 2"),
        (image[:, :, 3], mask, {}, "sitk.JoinSeries"),
        (sitk.Compose(image, image), mask, {}, "2 values a voxel"),
        (image, sitk.Compose(mask, mask), {"label_channel": 2}, "it has 2 channels from 0"),
        (broken, mask, {}, "NaN or infinite"),
        ("nowhere.nrrd", mask, {}, "image nowhere.nrrd: no such file"),
        (3, mask, {}, "a file or a SimpleITK image is needed"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            execute(ct, labels, **call)
        assert "\n" not in str(caught.value)
