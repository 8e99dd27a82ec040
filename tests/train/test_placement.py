"""What fits is told with its numbers, and what cannot be is refused."""

from __future__ import annotations

import os
import re

import jax
import numpy as np
import pytest

from osteojax.data.resident import Layout
from osteojax.data.vertebrae import POOL, fields
from osteojax.errors import UserError
from osteojax.train import placement
from osteojax.train.placement import choose_placement
from tests.small_runs import pretraining

GIB = 2**30
NEEDED = 2 * GIB
"""Of the layout below, on each of its two devices."""


def chosen(monkeypatch, *overrides: str, free: int | None = 8 * GIB, backend="gpu", engine=None):
    monkeypatch.setattr(placement, "free_bytes", lambda: free)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = pretraining(*[f"--config.{override}" for override in overrides])
    layout = Layout(
        np.arange(8192), POOL[:1], fields((64, 64, 64), POOL)[1], POOL, 2, 64, 128, "codes"
    )
    assert layout.device_bytes == NEEDED
    return choose_placement(config, layout, engine or config.engine)


@pytest.mark.parametrize(
    ("overrides", "options", "resident", "steps"),
    [
        ((), {"free": 4 * GIB}, True, 8),
        ((), {"free": 4 * GIB - 1}, False, 1),
        ((), {"free": None}, False, 1),
        ((), {"backend": "cpu"}, False, 1),
        ((), {"engine": "pmap"}, False, 1),
        (("data.placement=disk",), {}, False, 1),
        (("data.placement=resident",), {"free": NEEDED}, True, 8),
        (("data.placement=resident",), {"free": None}, True, 8),
        (("data.placement=resident",), {"backend": "cpu"}, True, 1),
        (("data.placement=resident", "steps_per_dispatch=5"), {"backend": "cpu"}, True, 5),
        (("steps_per_dispatch=1",), {}, True, 1),
    ],
)
def test_the_choice(monkeypatch, overrides, options, resident: bool, steps: int) -> None:
    found = chosen(monkeypatch, *overrides, **options)
    assert (found.layout is not None, found.steps_per_dispatch) == (resident, steps)
    assert "\n" not in found.reason
    assert ("resident" in found.reason) == resident
    if not overrides and "engine" not in options:
        assert "2.00 GiB on each of 2 device(s)" in found.reason


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (("data.placement=gpu",), {}, "choose one of auto, resident, disk"),
        (("data.placement=resident",), {"free": NEEDED - 1},
         r"2\.00 GiB on each of 2 device\(s\), 2\.00 GiB free.*data\.placement=disk"),
        (("data.placement=resident",), {"engine": "pmap"}, "needs engine=shard_map"),
        (("steps_per_dispatch=-1",), {}, "is -1"),
        (("steps_per_dispatch=4", "data.placement=disk"), {}, "is 4.*data.placement=resident"),
        (("steps_per_dispatch=4",), {"free": 3 * GIB}, r"3\.00 GiB free"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(monkeypatch, overrides, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(monkeypatch, *overrides, **options)


@pytest.mark.parametrize("wanted", ["auto", "resident"])
def test_records_of_several_shapes_stay_on_disk(monkeypatch, wanted: str) -> None:
    monkeypatch.setattr(placement, "free_bytes", lambda: 8 * GIB)
    config = pretraining(f"--config.data.placement={wanted}")
    if wanted == "resident":
        with pytest.raises(UserError, match=r"do not have one shape.*data\.placement=disk"):
            choose_placement(config, None, config.engine)
    else:
        assert choose_placement(config, None, config.engine).layout is None


class Device:
    """One that reports its memory."""

    platform = "gpu"

    def __init__(self, **statistics: int) -> None:
        self._statistics = statistics

    def memory_stats(self) -> dict[str, int]:
        return self._statistics


def test_free_memory_is_that_of_the_fullest_device(monkeypatch) -> None:
    reports = Device(bytes_limit=100, bytes_in_use=10), Device(bytes_limit=100, bytes_in_use=70)
    monkeypatch.setattr(jax, "local_devices", lambda: reports)
    assert placement.free_bytes() == 30
    monkeypatch.setattr(jax, "local_devices", lambda: [*reports, Device()])
    assert placement.free_bytes() is None


def test_the_devices_of_a_cpu_share_its_memory(monkeypatch) -> None:
    pages = {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert placement.free_bytes() == 1000 * 4096 // len(jax.local_devices())

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert placement.free_bytes() is None


def test_processes_take_the_least(monkeypatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = "process_allgather"
    monkeypatch.setattr(placement, "_local_free_bytes", lambda: 5 * 2**40 + 3)
    for other, expected in ((7, 7 << 20), (2**30, 5 * 2**40), (-1, None)):
        monkeypatch.setattr(
            placement.multihost_utils, gather, lambda mib, o=other: np.array([mib, o])
        )
        assert placement.free_bytes() == expected


def test_the_line_says_what_auto_left(monkeypatch) -> None:
    reason = chosen(monkeypatch, free=3 * GIB).reason
    assert re.search(r"on disk: 2\.00 GiB .*, 3\.00 GiB free, of which they may take 50%", reason)


def test_auto_gathers_from_no_other_process(monkeypatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(placement.multihost_utils, "process_allgather", lambda mib: np.array([mib]))
    assert "would cross processes" in chosen(monkeypatch, free=100 * GIB).reason
