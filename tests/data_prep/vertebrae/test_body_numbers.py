"""Numbers of a body against plain loops over its voxels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from data_prep.vertebrae.body_numbers import body_row
from osteojax.data.vertebra_columns import BODY_NUMBERS, CROP_MM

SHAPE = (9, 8, 10)
SPACING_MM = 4.5


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """HU beyond both ends of the stored range, and a body with holes that holds some crops."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(300, 500, SHAPE).astype(np.float32)
    body = rng.random(SHAPE) < 0.6
    body[1:7, 2:7, 3:9] = True
    return hu, body


def test_places_and_share_are_counted_crop_by_crop() -> None:
    hu, body = case()
    edge = round(CROP_MM / SPACING_MM)
    firsts = itertools.product(*(range(size - edge + 1) for size in SHAPE))
    counts = [
        sum(body[z + i, y + j, x + k] for i, j, k in itertools.product(range(edge), repeat=3))
        for z, y, x in firsts
    ]
    row = body_row(hu, body, SPACING_MM)
    assert row["body_places"] == sum(count == edge**3 for count in counts) > 0
    assert row["body_share"] == 1
    body[:, 4] = False  # no crop is left
    counts = [
        body[z : z + edge, y : y + edge, x : x + edge].sum()
        for z, y, x in itertools.product(*(range(size - edge + 1) for size in SHAPE))
    ]
    row = body_row(hu, body, SPACING_MM)
    assert row["body_places"] == 0
    assert row["body_share"] == pytest.approx(max(counts) / edge**3, abs=1e-6)


def test_numbers_are_those_of_a_loop_over_pairs() -> None:
    hu, body = case()
    clipped = [[[min(max(float(v), -200.0), 1000.0) for v in y] for y in z] for z in hu]
    inside = [clipped[z][y][x] for z, y, x in np.argwhere(body)]
    mean = math.fsum(inside) / len(inside)
    expected = [mean, math.sqrt(math.fsum((v - mean) ** 2 for v in inside) / len(inside))]
    neighbours = []
    for axis, lag in itertools.product(range(3), (1, 2, 3)):
        squares = []
        for place in itertools.product(*map(range, SHAPE)):
            other = list(place)
            other[axis] += lag
            if other[axis] < SHAPE[axis] and body[place] and body[tuple(other)]:
                (z, y, x), (u, v, w) = place, other
                squares.append((clipped[z][y][x] - clipped[u][v][w]) ** 2)
        expected.append(math.fsum(squares) / len(squares))
        neighbours += squares if lag == 1 else []
    row = body_row(hu, body, SPACING_MM)
    assert [row[name] for name in BODY_NUMBERS] == pytest.approx(expected, abs=1e-4)
    log = math.log(math.fsum(neighbours) / len(neighbours))
    assert row["texture_number"] == pytest.approx(log, abs=1e-6)


def test_what_is_not_defined_is_empty() -> None:
    hu, _ = case()
    row = body_row(hu, np.zeros(SHAPE, bool), SPACING_MM)
    assert (row.pop("body_places"), row.pop("body_share")) == (0, 0)
    assert set(row.values()) == {None}
    alone = np.zeros(SHAPE, bool)
    alone[4, 4, 4] = True
    row = body_row(np.full(SHAPE, 120.0), alone, SPACING_MM)
    assert (row["body_mean_hu"], row["body_sd_hu"]) == (120, 0)
    assert row["body_msd_si1"] is None
    assert row["texture_number"] is None
    flat = body_row(np.full(SHAPE, 120.0), np.ones(SHAPE, bool), SPACING_MM)
    assert flat["body_msd_ap3"] == 0
    assert flat["texture_number"] is None  # the logarithm of 0
    small = body_row(hu[:2, :2, :2], np.ones((2, 2, 2), bool), SPACING_MM)
    assert (small["body_places"], small["body_share"]) == (0, 0)  # no crop fits the window
