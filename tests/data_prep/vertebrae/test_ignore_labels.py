"""`--ignore-labels`: numbers of a mask that no scheme defines, read as background."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import SimpleITK as sitk

from data_prep import prepare
from data_prep.arguments import parsed
from data_prep.vertebrae import recipe as vertebrae_recipe
from launch.prediction.case_folder import request_of
from launch.prediction.cases import Request, one_case
from launch.prediction.loading import Frame, LoadedCase, load
from osteojax.data.boxes import cube_grid
from osteojax.errors import CaseError, UserError
from tests.data_prep.phantom import spine, write_scan, write_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A cohort of one scan, whose mask marks the body's outline with 118 and 250 beside it."""
    folder = tmp_path_factory.mktemp("outline")
    phantom = spine(("L1", "L2"), 3.0)
    row = write_scan(folder, "s", phantom)
    numbers = sitk.GetArrayFromImage(phantom.mask)
    numbers[:, 2:5, 10:20] = 118
    numbers[:, 6:8, 10:20] = 250
    image = sitk.GetImageFromArray(numbers)
    image.CopyInformation(phantom.mask)
    sitk.WriteImage(image, str(folder / str(row["mask"])))
    write_table(folder / "cohort.csv", [row])
    return folder


def options(folder: Path, *words: str) -> argparse.Namespace:
    given = ["--cohort", str(folder / "cohort.csv"), "--out", "unused", "--size", "32", *words]
    return parsed("prepare", given, prepare.add_arguments, vertebrae_recipe.add_arguments)


def prepared_levels(args: argparse.Namespace) -> list[str]:
    (scan,) = vertebrae_recipe.read(args).items
    report, _ = vertebrae_recipe.recipe(args).prepare(scan, complete=False)
    return [row["level"] for row in report.rows]


def test_prepare_reads_them_as_background_and_records_them(folder):
    args = options(folder, "--ignore-labels", "250,118")
    assert prepared_levels(args) == ["L1", "L2"]
    assert vertebrae_recipe.recipe(args).settings()["ignore_labels"] == [118, 250]


def test_without_the_option_nothing_is_ignored_and_settings_are_as_before(folder):
    args = options(folder)
    assert "ignore_labels" not in vertebrae_recipe.recipe(args).settings()
    with pytest.raises(CaseError, match=r"numbers 118, 250 are unknown.*--ignore-labels"):
        prepared_levels(args)
    with pytest.raises(CaseError, match=r"numbers 250 are unknown"):
        prepared_levels(options(folder, "--ignore-labels", "118"))


@pytest.mark.parametrize("text", ["0,118", "-3", "body"])
def test_what_is_no_label_is_refused(folder, text):
    with pytest.raises(UserError, match="ignore-labels"):
        options(folder, f"--ignore-labels={text}")


def test_predict_reads_them_too_and_does_such_a_case_again(folder, tmp_path):
    request = Request(
        devices=["hologic", "unknown"], mask=folder / "s_mask.nii.gz", label_scheme="verse",
        device="hologic", segment=False, dicom=False, attention=False, out=tmp_path,
    )  # fmt: skip
    frame = Frame(cube_grid(32, 3.0), None)
    plain = one_case(folder / "s_ct.nii.gz", request)
    assert isinstance(load(plain, frame), CaseError)
    asked = dataclasses.replace(request, ignore_labels=(118, 250))
    case = one_case(folder / "s_ct.nii.gz", asked)
    found = load(case, frame)
    assert isinstance(found, LoadedCase)
    assert [vertebra.level for vertebra in found.vertebrae] == ["L1", "L2"]
    assert request_of(case, "model", asked) != request_of(plain, "model", request)
