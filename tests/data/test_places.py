"""Places in a body, against counting every crop; the device agrees with the host to the bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from osteojax.data.cohort import PreparedCohort
from osteojax.data.places import (
    Places,
    crop_shares,
    cut,
    edge_voxels,
    find_places,
    fixed_corners,
    fixed_ranks,
)
from osteojax.errors import UserError
from tests.tiny_cohort import write_tiny_cohort

SHAPE, EDGE = (9, 11, 8), 4


def bodies() -> np.ndarray:
    """bool[6, *SHAPE]: an ellipsoid, the same one at the border, with holes, a thin plate that
    holds no crop, a single voxel, and nothing."""
    z, y, x = np.indices(SHAPE)
    middle = ((z - 4) / 4.2) ** 2 + ((y - 5) / 5.2) ** 2 + ((x - 4) / 4) ** 2 < 1
    holes = np.random.default_rng(0).random(SHAPE) < 0.9
    plate = (z == 3) & (y > 2) & (x < 5)
    voxel = (z == 8) & (y == 10) & (x == 0)
    aside = np.roll(middle, (3, 4, 2), (0, 1, 2))
    return np.stack([middle, aside, middle & holes, plate, voxel, np.zeros(SHAPE, bool)])


def counted(body: np.ndarray, edge: int) -> dict[tuple[int, ...], int]:
    """First voxel of every crop -> its body voxels, in C order."""
    starts = itertools.product(*(range(n - edge + 1) for n in body.shape))
    return {
        at: sum(
            bool(body[tuple(np.add(at, step))]) for step in itertools.product(range(edge), repeat=3)
        )
        for at in starts
    }


COUNTED = [counted(body, EDGE) for body in bodies()]


def expected_places(index: int, body_share: float) -> tuple[list[tuple[int, ...]], float]:
    counts, largest = COUNTED[index], max(COUNTED[index].values())
    found = [at for at, n in counts.items() if n >= body_share * EDGE**3 and n > 0]
    first = next(at for at, n in counts.items() if n == largest)
    return found or [first], largest / EDGE**3


def test_shares_are_counted_voxels() -> None:
    for body, expected in zip(bodies(), COUNTED, strict=True):
        shares = crop_shares(body, EDGE)
        assert shares.dtype == np.int32
        assert shares.tolist() == np.reshape(list(expected.values()), shares.shape).tolist()
    assert crop_shares(bodies()[0], 9).shape == (1, 3, 0)


@pytest.mark.parametrize("body_share", [1.0, 0.95, 0.5])
def test_places_are_those_of_every_crop(body_share: float) -> None:
    several = 0
    for index, body in enumerate(bodies()):
        corners, largest = find_places(body, EDGE, body_share)
        expected, share = expected_places(index, body_share)
        assert (corners.tolist(), largest) == ([list(at) for at in expected], share)
        several += len(corners) > 8
    assert several >= 1


def test_fixed_ranks_are_evenly_spaced() -> None:
    assert fixed_ranks(8, 8).tolist() == list(range(8))
    assert fixed_ranks(100, 4).tolist() == [12, 37, 62, 87]
    assert fixed_ranks(3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert fixed_ranks(1, 5).tolist() == [0] * 5


@pytest.mark.parametrize("body_share", [1.0, 0.5])
def test_the_device_finds_the_hosts_fixed_places(body_share: float) -> None:
    found = jax.jit(fixed_corners, static_argnums=(1, 2, 3))(bodies(), EDGE, body_share, 5)
    assert (found.shape, found.dtype) == ((6, 5, 3), np.int32)
    for body, corners in zip(bodies(), np.asarray(found), strict=True):
        places, _ = find_places(body, EDGE, body_share)
        np.testing.assert_array_equal(corners, places[fixed_ranks(len(places), 5)])


def test_crops_are_slices() -> None:
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 255, (3, 2, *SHAPE), np.uint8)
    corners = rng.integers(0, np.array(SHAPE) - EDGE + 1, (3, 2, 3), np.int32)
    crops = jax.jit(cut, static_argnums=2)(volumes, corners, EDGE)
    shared = cut(jnp.asarray(volumes[:, :1]), jnp.asarray(corners), EDGE)
    assert crops.dtype == np.uint8
    for b, v in itertools.product(range(3), range(2)):
        at = tuple(slice(n, n + EDGE) for n in corners[b, v])
        np.testing.assert_array_equal(crops[b, v], volumes[b, v][at])
        np.testing.assert_array_equal(shared[b, v], volumes[b, 0][at])
    with pytest.raises(ValueError, match="2 volumes for 3 crops"):
        cut(volumes, np.zeros((3, 3, 3), np.int32), EDGE)


def stand_in(monkeypatch: pytest.MonkeyPatch, margin: int, spacing_mm: float = 1.0) -> Any:
    """A cohort whose row r has body r of `bodies()`, which its table calls unknown."""
    inside = tuple(slice(margin, n - margin) for n in SHAPE)
    about = SimpleNamespace(
        margin=margin, spacing_mm=spacing_mm, has_body=True, window=inside,
        shown=tuple(n - 2 * margin for n in SHAPE),
    )  # fmt: skip
    monkeypatch.setattr("osteojax.data.vertebrae.about", lambda manifest: about)
    asked: list[int] = []

    def array(row: int, name: str) -> np.ndarray:
        asked.append(row)
        everywhere = np.ones(SHAPE, bool)
        return np.stack([everywhere, everywhere, bodies()[row]])

    table = pd.DataFrame({"body_places": [np.nan] * 6})
    return SimpleNamespace(
        manifest=None, directory=Path("folder"), array=array, asked=asked, table=table
    )


def test_a_cohorts_places_are_found_once(monkeypatch) -> None:
    cohort = stand_in(monkeypatch, margin=1)
    places = Places(cohort, EDGE, 1.0)
    inside = bodies()[:, 1:-1, 1:-1, 1:-1]  # the shown window
    for row in (0, 0, 3, 5, 3):
        corners, share = find_places(inside[row], EDGE, 1.0)
        np.testing.assert_array_equal(places.of(row), corners)
        assert places.share(row) == share
        assert places.has_place(row) == (row == 0)
    assert cohort.asked == [0, 3, 5]
    np.testing.assert_array_equal(
        places.fixed(0, 3), places.of(0)[fixed_ranks(len(places.of(0)), 3)]
    )
    with pytest.raises(UserError, match=r"crops of 7 voxels do not fit.*edge_mm"):
        Places(cohort, 7, 1.0)


def test_the_table_says_which_bodies_have_a_place(monkeypatch) -> None:
    """Where it does not, and for other crops than it counts, masks are read."""
    rows = np.array([0, 3, 1, 5])
    cohort = stand_in(monkeypatch, margin=0, spacing_mm=4.5)
    read = Places(cohort, EDGE, 1.0)
    expected = [read.has_place(int(row)) for row in rows]
    assert expected == [True, False, True, False]
    cohort.asked.clear()
    cohort.table["body_places"] = [np.nan, np.nan, np.nan, 7, np.nan, 0]
    for share, asked in ((1.0, [0, 1]), (0.2, [0, 1, 3, 5])):
        having = Places(cohort, EDGE, share).having(rows)
        assert having.tolist() == [True, True, True, False]
        assert sorted(cohort.asked) == asked
        cohort.asked.clear()


def test_a_random_place_is_any_of_them(monkeypatch) -> None:
    places = Places(stand_in(monkeypatch, margin=0), EDGE, 1.0)
    rng = np.random.default_rng(0)
    drawn = {tuple(places.random(0, rng).tolist()) for _ in range(500)}
    assert drawn == set(map(tuple, places.of(0).tolist()))


def test_a_folder_without_bodies_is_told_what_to_do(tmp_path: Path) -> None:
    cohort = PreparedCohort(write_tiny_cohort(tmp_path / "pool", 1, 8, body=False))
    with pytest.raises(UserError, match=r"no masks of vertebral bodies.*FILE\.py:paper"):
        Places(cohort, 2, 1.0)


def test_an_edge_is_whole_voxels() -> None:
    assert [edge_voxels(18.0, s) for s in (1.0, 1.5, 3.0, 96 / 64, 100.0)] == [18, 12, 6, 12, 1]
