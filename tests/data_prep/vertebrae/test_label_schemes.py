"""Every scheme's numbers against the published ones, and masks that break a scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.vertebrae.label_schemes import SCHEMES, read_class_mask
from osteojax.data.vertebrae import level_class
from osteojax.errors import CaseError

# Written out by hand from the programs' own documentation, not from a formula.
PUBLISHED = {
    "verse": {"T1": 8, "T12": 19, "L1": 20, "L5": 24, "L6": 25},
    "totalsegmentator_v1": {"L5": 18, "L4": 19, "L1": 22, "T12": 23, "T1": 34},
    "totalsegmentator_v2": {"L5": 27, "L4": 28, "L1": 31, "T12": 32, "T1": 43},
    "vertebral_bodies_ct": {"T1": 1, "T12": 12, "L1": 13, "L6": 18},
}
OTHERS = {  # cervical, sacrum, T13, organs: known and ignored
    "verse": [1, 7, 26, 28],
    "totalsegmentator_v1": [1, 17, 35, 41, 104],
    "totalsegmentator_v2": [1, 26, 44, 50, 117],
    "vertebral_bodies_ct": [],
}


def write_mask(path: Path, numbers: list[float], dtype=np.uint8) -> Path:
    """One voxel per number, in a row, with background around."""
    values = np.zeros((3, 3, len(numbers) + 2), dtype)
    values[1, 1, 1 : 1 + len(numbers)] = numbers
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


@pytest.mark.parametrize("name", SCHEMES)
def test_numbers_become_the_published_classes(tmp_path, name):
    levels = PUBLISHED[name]
    path = write_mask(tmp_path / "mask.nii.gz", [*levels.values(), *OTHERS[name]])
    classes = sitk.GetArrayFromImage(read_class_mask(path, name, "case"))
    expected = [level_class(level) for level in levels] + [0] * len(OTHERS[name])
    assert classes.dtype == np.uint8
    assert classes[1, 1, 1:-1].tolist() == expected
    assert np.count_nonzero(classes) == len(levels)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("verse", 29),
        ("totalsegmentator_v1", 105),
        ("totalsegmentator_v2", 118),
        ("vertebral_bodies_ct", 19),
    ],
)
def test_unknown_numbers_are_listed(tmp_path, name, number):
    path = write_mask(tmp_path / "mask.nii.gz", [10, number, 250])
    with pytest.raises(CaseError, match=f"{number}, 250 are unknown to label scheme '{name}'") as e:
        read_class_mask(path, name, "case7")
    assert e.value.case == "case7"
    assert "totalsegmentator_v2" in e.value.remedy


def test_an_unknown_scheme_lists_the_choices(tmp_path):
    path = write_mask(tmp_path / "mask.nii.gz", [20])
    with pytest.raises(CaseError, match=r"'vers' is not known.*verse, totalsegmentator_v1"):
        read_class_mask(path, "vers", "case")


@pytest.mark.parametrize("numbers", [[0, 0], [1, 26]])
def test_a_mask_without_vertebrae_is_refused(tmp_path, numbers):
    path = write_mask(tmp_path / "mask.nii.gz", numbers)
    with pytest.raises(CaseError, match="no vertebra T1-L6"):
        read_class_mask(path, "verse", "case")


def test_float_masks_are_read_if_whole_and_refused_if_not(tmp_path):
    whole = write_mask(tmp_path / "whole.nii.gz", [20, 21], np.float32)
    assert sitk.GetArrayFromImage(read_class_mask(whole, "verse", "case")).max() == 14
    half = write_mask(tmp_path / "half.nii.gz", [20, 20.5], np.float32)
    with pytest.raises(CaseError, match="fractions"):
        read_class_mask(half, "verse", "case")


@pytest.mark.parametrize("slope", [5e-4, 117 / 65535])
def test_labels_that_a_scale_moved_by_rounding_are_read(tmp_path, slope):
    """As a program writes floats that were stored as 16-bit integers with `scl_slope`."""
    stored = np.rint(np.array([20.0, 21.0, 24.0]) / slope)
    numbers = (stored * np.float32(slope)).tolist()
    assert any(number != round(number) for number in numbers)
    path = write_mask(tmp_path / "mask.nii.gz", numbers, np.float32)
    classes = sitk.GetArrayFromImage(read_class_mask(path, "verse", "case"))
    assert classes[1, 1, 1:4].tolist() == [13, 14, 17]


@pytest.mark.parametrize("number", [20.02, 0.97])
def test_probabilities_and_interpolated_masks_are_refused(tmp_path, number):
    path = write_mask(tmp_path / "mask.mha", [20, number], np.float32)
    with pytest.raises(CaseError, match=f"fractions.*such as {number:.6g}"):
        read_class_mask(path, "verse", "case")


def test_nan_in_a_mask_is_refused(tmp_path):
    path = write_mask(tmp_path / "mask.mha", [20, np.nan], np.float32)
    with pytest.raises(CaseError, match=r"the mask holds 1 NaN.*outside the vertebrae use 0"):
        read_class_mask(path, "verse", "case")


def test_negative_and_huge_numbers_are_refused(tmp_path):
    path = write_mask(tmp_path / "mask.nii.gz", [20, -3], np.int16)
    with pytest.raises(CaseError, match="from -3 to 20"):
        read_class_mask(path, "verse", "case")


def test_a_folder_of_one_vertebra_masks(tmp_path):
    for i, level in enumerate(("T12", "L1", "S1", "C7")):
        values = np.zeros((3, 3, 6), np.uint8)
        values[1, 1, i : i + 2] = 1  # neighbours overlap by a voxel: the upper one keeps it
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"vertebrae_{level}.nii.gz"))
    classes = sitk.GetArrayFromImage(read_class_mask(tmp_path, "verse", "case"))
    assert classes[1, 1].tolist() == [12, 12, 13, 0, 0, 0]


def test_a_folder_without_vertebrae_or_with_two_grids(tmp_path):
    with pytest.raises(CaseError, match="vertebrae_T1"):
        read_class_mask(tmp_path, "verse", "case")
    write_mask(tmp_path / "vertebrae_L1.nii.gz", [1])
    write_mask(tmp_path / "vertebrae_L2.nii.gz", [1, 1])
    with pytest.raises(CaseError, match=r"vertebrae_L2\.nii\.gz has another grid"):
        read_class_mask(tmp_path, "verse", "case")
