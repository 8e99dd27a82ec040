"""Views that a study uses as controls: the image twice, another patient's bone, another device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from osteojax.data.cohort import PreparedCohort
from osteojax.data.pair_views import PoolPair, pair_view
from osteojax.data.vertebrae import POOL
from osteojax.data.views import GivenDevice
from osteojax.errors import UserError


@pytest.fixture(scope="module")
def cohort(tiny_pool: Path) -> PreparedCohort:
    return PreparedCohort(tiny_pool)


def test_the_second_member_is_another_patients_of_the_same_level(cohort: PreparedCohort) -> None:
    view, table = pair_view("other_patient", online=False), cohort.table
    labelled = np.isin(np.arange(len(table)), cohort.rows("train", "valid", "test", labelled=True))
    partners = set()
    for row in range(0, len(table), 7):
        example = view(cohort, row, np.random.default_rng(row))
        first, other = example["rows"]
        assert first == row == example["index"]
        for column in ("level", "split"):
            assert table[column][other] == table[column][row]
        assert labelled[other] == labelled[row]
        assert table["patient_id"][other] != table["patient_id"][row]
        names = [POOL[i] for i in example["map_ids"]]
        assert names[0] != names[1]
        np.testing.assert_array_equal(example["codes"][0], cohort.members(row, names[:1])[0])
        np.testing.assert_array_equal(example["codes"][1], cohort.members(other, names[1:])[0])
        partners.add(int(other))
    assert len(partners) > 5


def test_one_patient_alone_has_no_other(cohort: PreparedCohort, tmp_path: Path) -> None:
    from tests.tiny_cohort import write_tiny_cohort

    alone = PreparedCohort(write_tiny_cohort(tmp_path / "pool", patients=1, size=8))
    with pytest.raises(UserError, match="for row 1 no other patient has L1 in split train"):
        pair_view("other_patient", online=False)(alone, 1, np.random.default_rng(0))


def test_image_pairs_show_the_image_twice_and_need_no_map(cohort: PreparedCohort) -> None:
    view = pair_view("image_image", online=True)
    assert tuple(view.members) == ("image",)
    example = view(cohort, 4, np.random.default_rng(0))
    assert example["map_ids"].tolist() == [0, 0]
    image = cohort.members(4, ["image"])[0]
    np.testing.assert_array_equal(example["codes"], np.stack([image, image]))


def test_a_view_is_chosen_by_name() -> None:
    assert pair_view("uniform", online=False) == PoolPair("uniform")
    with pytest.raises(UserError, match=r"choose uniform.*other_patient"):
        pair_view("other_patients", online=False)
    with pytest.raises(UserError, match="offline"):
        pair_view("other_patient", online=True)


def test_another_device_changes_the_device_alone(cohort: PreparedCohort) -> None:
    told = np.full(len(cohort.table), 2, np.int32)
    row = int(cohort.rows("train", labelled=True)[0])
    example = GivenDevice(told)(cohort, row, np.random.default_rng(0))
    assert example["device"] == 2
    assert cohort.labels.device[row] != 2
    assert example["label"] == cohort.labels.osteoporosis[row]
    assert example["bmd"] == cohort.labels.bmd_g_cm2[row]
