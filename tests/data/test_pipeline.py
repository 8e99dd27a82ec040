"""Order, sharding and resumption of the input."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest

from osteojax.data.cohort import PreparedCohort
from osteojax.data.pair_views import PoolPair, pair_choices
from osteojax.data.pipeline import evaluation_batches, training_batches
from osteojax.data.vertebrae import POOL
from osteojax.data.views import Supervised
from osteojax.errors import UserError
from tests.tiny_cohort import write_tiny_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> PreparedCohort:
    return PreparedCohort(write_tiny_cohort(tmp_path_factory.mktemp("cohort") / "pool"))


def take(cohort: PreparedCohort, count: int, **options) -> list[dict]:
    rows = cohort.rows("train")
    batches = training_batches(cohort, rows, PoolPair(), batch_size=8, seed=3, **options)
    return [next(batches) for _ in range(count)]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_every_vertebra_once_an_epoch(cohort: PreparedCohort) -> None:
    rows = cohort.rows("train")
    # 30 vertebrae: four epochs are 15 batches of 8, and batches straddle epochs.
    indices = np.concatenate([batch["index"] for batch in take(cohort, 15)])
    for epoch in indices.reshape(4, len(rows)):
        np.testing.assert_array_equal(np.sort(epoch), rows)
    assert not np.array_equal(indices[:30], indices[30:60])


def test_resumes_exactly(cohort: PreparedCohort) -> None:
    straight = take(cohort, 9)
    resumed = take(cohort, 4, first_step=5)
    assert all(equal(a, b) for a, b in zip(straight[5:], resumed, strict=True))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_batches(cohort, monkeypatch, processes: int) -> None:
    whole = take(cohort, 5, first_step=2)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda p=process: p)
        shares.append(take(cohort, 5, first_step=2))
    for step, batch in enumerate(whole):
        interleaved = np.stack([share[step]["codes"] for share in shares], axis=1)
        np.testing.assert_array_equal(interleaved.reshape(batch["codes"].shape), batch["codes"])


def test_pairs_are_two_members_as_stored(cohort: PreparedCohort) -> None:
    seen: Counter = Counter()
    for batch in take(cohort, 60):
        for index, ids, codes in zip(batch["index"], batch["map_ids"], batch["codes"], strict=True):
            assert ids[0] != ids[1]
            seen[tuple(sorted(ids))] += 1
            names = [cohort.about.maps[i].name for i in ids]
            np.testing.assert_array_equal(codes, cohort.members(int(index), names))
    assert len(seen) == 10
    assert min(seen.values()) > 20  # 48 expected of each


def test_samplers() -> None:
    assert len(pair_choices("uniform")) == 10
    assert len(pair_choices("cross_group")) == 6
    assert (pair_choices("image_plus_one")[:, 0] == 0).all()
    with pytest.raises(UserError, match="cross_group"):
        pair_choices("unifrom")


def test_evaluation_reads_every_row_once(cohort: PreparedCohort) -> None:
    rows = cohort.rows("valid", "test")
    batches = list(evaluation_batches(cohort, rows, Supervised(), batch_size=8))
    np.testing.assert_array_equal(np.concatenate([chosen for chosen, _ in batches]), rows)
    assert all(len(batch["index"]) == 8 for _, batch in batches)


def test_labels_and_selection(cohort: PreparedCohort) -> None:
    labelled, unlabelled = cohort.rows("train", labelled=True), cohort.rows("train", labelled=False)
    assert set(cohort.table["level"].iloc[unlabelled]) == {"T12"}
    assert set(cohort.table["level"].iloc[labelled]) == {"L1", "L2"}
    assert (cohort.labels.device[unlabelled] == 3).all()
    assert np.isnan(cohort.labels.bmd_g_cm2[unlabelled]).all()


def test_nothing_to_train_on(cohort: PreparedCohort) -> None:
    with pytest.raises(UserError, match="none of its vertebrae is left to train on"):
        training_batches(cohort, cohort.rows("external"), PoolPair(), batch_size=8, seed=0)


def test_a_leak_between_splits_is_refused(tmp_path) -> None:
    folder = write_tiny_cohort(tmp_path / "pool", patients=5)
    cohort = PreparedCohort(folder)
    cohort.check_no_leak(cohort.rows("train"))
    cohort.table.loc[0, "split"] = "test"
    with pytest.raises(UserError, match="P000"):
        cohort.check_no_leak(cohort.rows("train"))


def test_missing_and_damaged_shards(tmp_path) -> None:
    folder = write_tiny_cohort(tmp_path / "pool", patients=5)
    shard = next((folder / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    shard.unlink()
    with pytest.raises(UserError, match="shard of the manifest is missing"):
        PreparedCohort(folder)
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    shard.write_bytes(bytes(data))
    cohort = PreparedCohort(folder)
    with pytest.raises(UserError, match="damaged"):
        [cohort.members(row, list(POOL)) for row in range(len(cohort))]
