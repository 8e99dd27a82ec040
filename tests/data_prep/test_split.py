"""The split: reproducible, proportional, stratified, and never across a patient."""

from __future__ import annotations

from collections import Counter

import pytest

from data_prep.split import SplitPatient, assign_splits
from osteojax.errors import UserError


def patients(count: int, **fields) -> list[SplitPatient]:
    """Two sites and three labels, mixed."""
    labels = ("positive", "negative", "unlabelled")
    return [
        SplitPatient(
            f"p{i}",
            fields.get("sites", frozenset(["A" if i % 2 else "B"])),
            fields.get("given", frozenset()),
            labels[i % 3],
        )
        for i in range(count)
    ]


def test_totals_and_strata_are_proportional():
    everyone = patients(300)
    splits = assign_splits(everyone)
    assert Counter(splits.values()) == {"train": 180, "valid": 30, "test": 90}
    for site in "AB":
        for label in ("positive", "negative", "unlabelled"):
            own = [p for p in everyone if p.sites == {site} and p.label == label]
            counts = Counter(splits[p.patient_id] for p in own)
            for split, fraction in zip(("train", "valid", "test"), (0.6, 0.1, 0.3), strict=True):
                assert abs(counts[split] - fraction * len(own)) < 2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
def test_small_cohorts_stay_within_one_patient_of_their_share(count):
    counts = Counter(assign_splits(patients(count)).values())
    for split, fraction in zip(("train", "valid", "test"), (0.6, 0.1, 0.3), strict=True):
        assert abs(counts[split] - fraction * count) <= 1


def test_reproducible_whatever_the_order_and_different_by_seed():
    everyone = patients(60)
    assert assign_splits(everyone) == assign_splits(everyone[::-1])
    assert assign_splits(everyone) != assign_splits(everyone, seed=1)


def test_fractions_are_honoured():
    counts = Counter(assign_splits(patients(100), fractions=(0.0, 0.0, 1.0)).values())
    assert counts == {"test": 100}


def test_given_splits_are_kept_and_the_rest_is_made():
    given = [SplitPatient("g", frozenset("A"), frozenset(["test"]), "positive")]
    splits = assign_splits(given + patients(10))
    assert splits["g"] == "test"
    assert len(splits) == 11


def test_external_sites_are_never_made_into_another_split():
    outside = [SplitPatient(f"d{i}", frozenset("D"), frozenset(), "positive") for i in range(20)]
    splits = assign_splits(outside + patients(20), frozenset("D"))
    assert {splits[p.patient_id] for p in outside} == {"external"}
    assert "external" not in {splits[p.patient_id] for p in patients(20)}


@pytest.mark.parametrize(
    ("sites", "given", "message"),
    [
        ("A", ["train", "test"], "in the splits test and train"),
        ("D", ["train"], "in the splits external and train"),
        ("AD", [], "D is external"),
    ],
)
def test_a_patient_in_two_splits_is_an_error(sites, given, message):
    patient = SplitPatient("twice", frozenset(sites), frozenset(given), "negative")
    with pytest.raises(UserError, match=f"twice.*{message}"):
        assign_splits([patient], frozenset("D") & frozenset(sites))


def test_an_external_site_nobody_has_lists_the_sites():
    with pytest.raises(UserError, match=r"--external-sites X.*A, B"):
        assign_splits(patients(4), frozenset("X"))
