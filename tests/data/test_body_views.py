"""What views inside the body draw."""

from __future__ import annotations

import numpy as np
import pytest
from ml_collections import ConfigDict

from osteojax.data.cohort import PreparedCohort
from osteojax.data.pair_views import pair_view
from osteojax.data.places import Places, find_places, fixed_ranks
from osteojax.data.view_settings import WHOLE_BOXES, ViewSettings
from osteojax.data.views import GivenDevice, Supervised
from osteojax.errors import UserError
from tests.tiny_cohort import write_tiny_cohort

SHAPE, MARGIN, EDGE = (16, 20, 18), 1, 3  # 18 mm are three voxels of 6 mm


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> PreparedCohort:
    folder = tmp_path_factory.mktemp("cohort") / "pool"
    write_tiny_cohort(folder, 10, shape=SHAPE, margin=MARGIN)
    return PreparedCohort(folder)


@pytest.fixture(scope="module")
def places(cohort: PreparedCohort) -> Places:
    return Places(cohort, EDGE, 1.0)


def inside(cohort: PreparedCohort, row: int, corner: np.ndarray) -> bool:
    """Whether a crop lies in the body, by looking at its voxels in the stored box."""
    at = tuple(slice(n + MARGIN, n + MARGIN + EDGE) for n in corner)
    return bool(cohort.array(row, "mask")[2][at].all())


def test_settings_that_mean_nothing_are_refused() -> None:
    assert ViewSettings.of(ConfigDict({"pairs": "uniform"})) == WHOLE_BOXES
    given = ConfigDict({"views": {"region": "body", "count": 4}})
    assert ViewSettings.of(given) == ViewSettings("body", count=4)
    assert ViewSettings.of(given).of_body
    for name, value, told in (
        ("region", "bone", "choose one of box, body"),
        ("count", 3, "even number"),
        ("body_share", 0.0, "at most 1"),
        ("body_share", 1.5, "at most 1"),
        ("edge_mm", 0.0, "positive"),
        ("readout_crops", 0, "from 1"),
    ):
        with pytest.raises(UserError, match=rf"data\.views\.{name} is .*{told}"):
            ViewSettings.of({"views": {name: value}})


@pytest.mark.parametrize("online", [False, True])
def test_every_view_has_its_own_place_and_the_members_of_whole_boxes(
    cohort, places: Places, online: bool
) -> None:
    settings = ViewSettings("body", count=4)
    view = pair_view("cross_group", online, settings, places)
    whole = pair_view("cross_group", online, ViewSettings(count=4))
    distinct = 0
    for row in range(0, len(cohort), 5):
        example = view(cohort, row, np.random.default_rng(row))
        plain = whole(cohort, row, np.random.default_rng(row))
        corners = example.pop("corners")
        assert (corners.shape, corners.dtype) == ((4, 3), np.int32)
        assert all(inside(cohort, row, corner) for corner in corners)
        assert example.keys() == plain.keys()
        for key, value in plain.items():
            np.testing.assert_array_equal(example[key], value, err_msg=key)
        distinct += len(np.unique(corners, axis=0))
        smooth = example["map_ids"].reshape(2, 2) < 3
        assert (smooth.sum(axis=1) == 1).all()
    assert distinct > 20


def test_one_place_for_all_views(cohort, places: Places) -> None:
    view = pair_view("uniform", False, ViewSettings("body", same_place=True), places)
    draws = [view.draw(cohort, 3, np.random.default_rng(n))["corners"] for n in range(5)]
    assert all((corners == corners[0]).all() for corners in draws)
    assert len({tuple(corners[0]) for corners in draws}) > 1


def test_the_image_twice_is_two_crops_of_it(cohort, places: Places) -> None:
    example = pair_view("image_image", True, ViewSettings("body"), places)(
        cohort, 4, np.random.default_rng(0)
    )
    assert example["map_ids"].tolist() == [0, 0]
    assert (example["corners"][0] != example["corners"][1]).any()


def test_other_patients_show_places_of_their_own_bodies(cohort, monkeypatch) -> None:
    """As many patients as views; a training vertebra without a place is never shown."""
    train = cohort.rows("train")
    table = cohort.table.copy()
    without = train[0]
    table.loc[without, "body_places"] = 0
    monkeypatch.setattr(cohort, "table", table)
    places = Places(cohort, EDGE, 1.0)
    found = places.of(0)
    for row in train:  # the bodies are alike: each is given a place that no other has
        places._found[int(row)] = found[row : row + 1].astype(np.int16), 1.0
    view = pair_view("other_patient", False, ViewSettings("body", count=4), places)
    shown: set[int] = set()
    for row in train[4:]:
        draw = view.draw(cohort, int(row), np.random.default_rng(row))
        assert draw["rows"][0] == row
        assert table["patient_id"][draw["rows"]].nunique() == 4
        np.testing.assert_array_equal(draw["corners"], found[draw["rows"]])
        shown |= set(draw["rows"].tolist())
    assert without not in shown
    assert len(shown) > len(train) / 2


def test_crops_of_several_bodies_have_no_common_place(cohort, places: Places) -> None:
    with pytest.raises(UserError, match=r"no place in common.*same_place=false"):
        pair_view("other_patient", False, ViewSettings("body", same_place=True), places)


def body_of(cohort: PreparedCohort, row: int) -> np.ndarray:
    return cohort.array(int(row), "mask")[2][cohort.about.window]


def test_fine_tuning_sees_the_fixed_places(cohort, places: Places) -> None:
    view = Supervised(places=places, crops=5)
    example = view(cohort, 2, np.random.default_rng(0))
    found, _ = find_places(body_of(cohort, 2), EDGE, 1.0)
    np.testing.assert_array_equal(example["corners"], found[fixed_ranks(len(found), 5)])
    plain = Supervised()(cohort, 2, np.random.default_rng(0))
    assert "corners" not in plain
    np.testing.assert_array_equal(example["codes"], plain["codes"])
    told = GivenDevice(np.full(len(cohort), 1), places=places, crops=5)
    draw = told.draw(cohort, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(draw["corners"], example["corners"])
    assert draw["device"] == 1
