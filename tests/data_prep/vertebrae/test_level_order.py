"""Masks read with another scheme than their own, levels out of place, and levels in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep.vertebrae.label_schemes import SCHEMES, read_class_mask
from osteojax.errors import CaseError
from tests.data_prep.phantom import Phantom, spine

LUMBAR = ("T11", "T12", "L1", "L2", "L3", "L4", "L5")
FIRST = {"verse": 18, "totalsegmentator_v1": 24, "totalsegmentator_v2": 33,
         "vertebral_bodies_ct": 11}  # fmt: skip
"""T11 in each scheme; v1 and v2 count upwards, the others downwards."""


@pytest.fixture(scope="module")
def torso() -> Phantom:
    return spine(LUMBAR, 3.0, radius_mm=600.0)


def numbers_of(torso: Phantom, scheme: str) -> np.ndarray:
    """The mask's numbers as the scheme writes them."""
    place = sitk.GetArrayFromImage(torso.mask).astype(int) - FIRST["verse"]
    step = -1 if scheme.startswith("total") else 1
    return np.where(place >= 0, FIRST[scheme] + step * place, 0).astype(np.uint8)


def write(torso: Phantom, numbers: np.ndarray, path: Path) -> Path:
    image = sitk.GetImageFromArray(numbers)
    image.CopyInformation(torso.mask)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("read_as", SCHEMES)
@pytest.mark.parametrize("own", SCHEMES)
def test_every_scheme_read_as_every_other(tmp_path, torso, own, read_as):
    path = write(torso, numbers_of(torso, own), tmp_path / "mask.nii")
    if own == read_as:
        classes = sitk.GetArrayFromImage(read_class_mask(path, read_as, "case"))
        assert np.unique(classes).tolist() == [0, *range(11, 18)]
        return
    with pytest.raises(CaseError) as caught:
        read_class_mask(path, read_as, "case")
    assert f"Name the label scheme {own!r}" in caught.value.remedy


def test_the_sign_that_gave_it_away_is_told(tmp_path, torso):
    path = write(torso, numbers_of(torso, "totalsegmentator_v2"), tmp_path / "v2.nii")
    with pytest.raises(CaseError, match=r"T2 to T8 are 1\.\d\d times as far apart"):
        read_class_mask(path, "totalsegmentator_v1", "case")
    path = write(torso, numbers_of(torso, "verse"), tmp_path / "verse.nii")
    with pytest.raises(CaseError, match=r"from below upwards \(L3 lies 3\d mm above L2\)"):
        read_class_mask(path, "totalsegmentator_v1", "case")


def test_a_thoracic_mask_of_version_1_read_as_version_2(tmp_path):
    """T1-T8 of version 1 have the numbers of T10-L5 of version 2, in the same order."""
    thorax = spine(tuple(f"T{i}" for i in range(1, 9)), 3.0, radius_mm=600.0)
    scaled = sitk.Image(thorax.mask)
    scaled.SetSpacing([2.0, 2.0, 2.0])  # 23 mm from level to level
    place = sitk.GetArrayFromImage(scaled).astype(int) - 8
    path = write(thorax, np.where(place >= 0, 34 - place, 0).astype(np.uint8), tmp_path / "m.nii")
    image = sitk.ReadImage(str(path))
    image.CopyInformation(scaled)
    sitk.WriteImage(image, str(path))
    read_class_mask(path, "totalsegmentator_v1", "case")
    with pytest.raises(CaseError, match=r"T10 to L5 are 0\.\d\d times .*'totalsegmentator_v1'"):
        read_class_mask(path, "totalsegmentator_v2", "case")


def test_a_small_child_is_no_other_scheme(tmp_path, torso):
    """Nothing but the distances is unusual, and no other scheme has a VerSe mask's numbers."""
    path = write(torso, numbers_of(torso, "verse"), tmp_path / "mask.nii")
    image = sitk.ReadImage(str(path))
    image.SetSpacing([1.8, 1.8, 1.8])
    sitk.WriteImage(image, str(path))
    read_class_mask(path, "verse", "case")


def test_two_levels_that_changed_places(tmp_path, torso):
    numbers = numbers_of(torso, "verse")
    numbers = np.where(np.isin(numbers, (21, 22)), 43 - numbers, numbers)
    path = write(torso, numbers, tmp_path / "mask.nii")
    with pytest.raises(CaseError, match=r"out of order \(L3 lies 3\d mm above L2\)"):
        read_class_mask(path, "verse", "case")


def test_a_header_that_lays_the_spine_down(tmp_path, torso):
    path = write(torso, numbers_of(torso, "verse"), tmp_path / "mask.nii")
    image = sitk.ReadImage(str(path))
    image.SetDirection([1, 0, 0, 0, 0, 1, 0, 1, 0])
    sitk.WriteImage(image, str(path))
    with pytest.raises(CaseError, match="T11 to L5 lie in a row from front to back"):
        read_class_mask(path, "verse", "case")


def test_a_level_that_is_several_vertebrae(tmp_path, torso):
    numbers = numbers_of(torso, "verse")
    joined = np.where(np.isin(numbers, (20, 22)), 20, numbers).astype(np.uint8)
    path = write(torso, joined, tmp_path / "mask.nii")
    with pytest.raises(CaseError, match=r"L1 is 2 pieces up to 6\d mm apart in height"):
        read_class_mask(path, "verse", "case")


def test_a_piece_far_from_its_vertebra(tmp_path, torso):
    """Beside the row of levels, so not as another vertebra would lie."""
    numbers = numbers_of(torso, "verse")
    assert (numbers[5:13, 2:10, 2:10] == 0).all()
    numbers[5:13, 2:10, 2:10] = 20  # 13,824 mm^3
    path = write(torso, numbers, tmp_path / "mask.nii")
    with pytest.raises(CaseError, match=r"L1 is 2 pieces up to 1\d\d mm apart"):
        read_class_mask(path, "verse", "case")


@pytest.mark.parametrize("read_as", SCHEMES)
def test_bodies_and_disks_of_totalsegmentator_are_known(tmp_path, torso, read_as):
    numbers = numbers_of(torso, "verse")
    task = (numbers > 0).astype(np.uint8)
    # Above each vertebra, a disk: two slices of 6 mm where the next one begins.
    task[1:-1] = np.where((task[1:-1] == 0) & (task[:-2] == 1), 2, task[1:-1])
    path = write(torso, task, tmp_path / "mask.nii")
    with pytest.raises(CaseError, match="TotalSegmentator's task vertebrae_body"):
        read_class_mask(path, read_as, "case")


def test_fragments_of_a_few_voxels_are_no_pieces(tmp_path, torso):
    numbers = numbers_of(torso, "verse")
    numbers[2:4, 2:4, 2:4] = 20  # 216 mm^3, 80 mm from L1
    numbers[-4:-2, 2:4, 2:4] = 24  # and above everything
    numbers[2:5, 30:33, 2:5] = 9  # T2 below L5
    path = write(torso, numbers, tmp_path / "mask.nii")
    read_class_mask(path, "verse", "case")


def test_a_folder_is_checked_by_its_names(tmp_path, torso):
    numbers = numbers_of(torso, "verse")
    for number, level in ((20, "L2"), (21, "L1"), (22, "L3")):
        write(torso, (numbers == number).astype(np.uint8), tmp_path / f"vertebrae_{level}.nii.gz")
    with pytest.raises(CaseError, match="out of order"):
        read_class_mask(tmp_path, "verse", "case")
