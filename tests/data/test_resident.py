"""Volumes in device memory are those on disk, whichever device holds them."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from osteojax.data import resident
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pair_views import ImageForPair, OtherPatientPair, PoolPair
from osteojax.data.resident import Layout, Resident, gather, place
from osteojax.data.schema import Field
from osteojax.data.vertebrae import POOL, fields
from osteojax.data.views import Supervised, View
from osteojax.train.parallel import DataParallel
from tests.tiny_cohort import write_tiny_cohort

SIZE = 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> PreparedCohort:
    return PreparedCohort(write_tiny_cohort(tmp_path_factory.mktemp("cohort") / "pool", size=SIZE))


def laid_out(rows: np.ndarray, members: tuple[str, ...], num_devices: int) -> Layout:
    """Of vertebrae, without a folder."""
    view: Any = SimpleNamespace(key="codes", pool=POOL, members=members)
    manifest: Any = SimpleNamespace(
        field={f.name: f for f in fields((SIZE, SIZE, SIZE), POOL)}.__getitem__
    )
    layout = Layout.of(rows, view, manifest, num_devices)
    assert layout is not None
    return layout


def test_fields_of_several_shapes_have_no_layout() -> None:
    view: Any = SimpleNamespace(key="codes", pool=POOL, members=("image", "mask"))
    manifest: Any = SimpleNamespace(
        field={f.name: f for f in fields((SIZE, SIZE, SIZE), POOL)}.__getitem__
    )
    assert Layout.of(np.arange(4), view, manifest, 1) is None
    view.members, own = ("picture",), Field("picture", "uint8", None, "npy")
    assert Layout.of(np.arange(4), view, SimpleNamespace(field=lambda _: own), 1) is None


@pytest.mark.parametrize("num_devices", [1, 3, 8])
@pytest.mark.parametrize("num_rows", [2, 29, 100])
def test_a_layout_has_every_vertebra_once(monkeypatch, num_devices: int, num_rows: int) -> None:
    monkeypatch.setattr(resident, "BLOCK_BYTES", 3 * 2 * SIZE**3)  # three vertebrae of two members
    rows = np.random.default_rng(0).permutation(1000)[:num_rows]
    layout = laid_out(rows, POOL[:2], num_devices)
    assert layout.block_slots <= 3
    blocks = [
        layout.block(device, number)
        for device in range(num_devices)
        for number in range(layout.num_blocks)
    ]
    assert max(map(len, blocks)) <= layout.block_slots
    np.testing.assert_array_equal(np.concatenate(blocks), rows)
    empty = layout.shape[0] - num_rows
    assert 0 <= empty < num_devices * (layout.num_blocks + 1)
    assert layout.device_bytes * num_devices == np.prod(layout.shape)


def held(cohort: PreparedCohort, view: View, num_devices: int) -> tuple[Resident, DataParallel]:
    """The training rows of a cohort, and the devices that hold them."""
    devices = DataParallel.create(num_devices=num_devices)
    layout = Layout.of(cohort.rows("train"), view, cohort.manifest, num_devices)
    assert layout is not None
    names, lock, read, told = list(view.members), threading.Lock(), Counter(), []

    def reading(row: int) -> np.ndarray:
        with lock:
            read[row] += 1
        return cohort.members(row, names)

    placed = place(reading, layout, devices.mesh, told.append)
    assert set(read) == set(cohort.rows("train"))
    assert set(read.values()) == {1}
    assert sum(told) == len(layout.rows)
    assert {shard.data.shape[0] for shard in placed.codes.addressable_shards} == {
        layout.device_slots
    }
    return placed, devices


VIEWS = {
    "pool": PoolPair(),
    "two_members": PoolPair("image_image"),
    "other_patient": OtherPatientPair(),
    "image": ImageForPair(),
    "supervised": Supervised(),
}
FEW = [("pool", 1), ("pool", 8), ("other_patient", 2), ("image", 2), ("supervised", 1)]
MANY = [(name, n) for name in VIEWS for n in (1, 2, 8) if (name, n) not in FEW]


@pytest.mark.parametrize(
    ("name", "num_devices"), [*FEW, *(pytest.param(*c, marks=pytest.mark.slow) for c in MANY)]
)
def test_gathered_batches_are_those_read(cohort, monkeypatch, name: str, num_devices: int) -> None:
    monkeypatch.setattr(resident, "BLOCK_BYTES", 3 * 5 * SIZE**3)  # several blocks
    view = VIEWS[name]
    placed, devices = held(cohort, view, num_devices)

    def inside(_, batch):
        draws = {key: value for key, value in batch.items() if key != "held"}
        return gather(placed.layout, batch["held"], draws)

    mapped = devices.map_forward(inside)
    generator = np.random.default_rng(5)
    rows = generator.permutation(cohort.rows("train"))[:16]
    examples = [view(cohort, int(row), np.random.default_rng(row)) for row in rows]
    drawn = [view.draw(cohort, int(row), np.random.default_rng(row)) for row in rows]
    expected = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    draws = {key: np.stack([d[key] for d in drawn]) for key in drawn[0]}
    draws["slots"] = placed.slots(draws)
    found = mapped({}, {**devices.put(draws), "held": placed.codes})
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
        assert found[key].dtype == value.dtype


def test_what_is_not_held_is_refused(cohort: PreparedCohort) -> None:
    layout = laid_out(cohort.rows("train"), POOL, 1)
    placed = Resident(layout, jax.numpy.zeros(()))
    (valid, *_), last = cohort.rows("valid"), len(cohort) + 5
    for row in (int(valid), last):
        with pytest.raises(ValueError, match=rf"{row}.* not among the training rows"):
            placed.slots({"index": np.array([0, row])})
    several_steps = {"index": np.stack([layout.rows[:4], layout.rows[4:8]])}
    assert placed.slots(several_steps).tolist() == [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]
