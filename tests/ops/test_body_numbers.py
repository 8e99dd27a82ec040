"""The numbers of a body against float64 sums over pairs of voxels, one pair at a time."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from osteojax.ops.body_numbers import body_numbers

SHAPE = (7, 6, 9)


def expected(hu: np.ndarray, body: np.ndarray) -> list[float]:
    voxels = {tuple(index): float(hu[tuple(index)]) for index in np.argwhere(body)}
    inside = np.array(list(voxels.values()), np.float64)
    numbers = [inside.mean(), inside.std()]
    for axis, lag in itertools.product(range(3), (1, 2, 3)):
        step = [lag * (a == axis) for a in range(3)]
        partners = {index: tuple(np.add(index, step)) for index in voxels}
        squares = [
            (voxels[there] - voxels[here]) ** 2
            for here, there in partners.items()
            if there in voxels
        ]
        numbers.append(np.mean(squares) if squares else np.nan)
    return numbers


@pytest.fixture(scope="module")
def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, bodies (random ones, and one of 2 x 2 x 1 voxels) and their numbers."""
    rng = np.random.default_rng(0)
    hu = rng.normal(150, 60, (3, *SHAPE)).astype(np.float32)
    body = rng.uniform(size=(3, *SHAPE)) < 0.6
    body[2] = False
    body[2, 3:5, 2:4, 5] = True
    return hu, body, np.asarray(jax.jit(body_numbers)(hu, body))


def test_they_are_sums_over_pairs_in_the_body(example) -> None:
    hu, body, found = example
    assert found.dtype == np.float32
    for i in range(3):
        np.testing.assert_allclose(found[i], expected(hu[i], body[i]), rtol=1e-5)


def test_voxels_outside_do_not_count_and_absent_pairs_are_nan(example) -> None:
    hu, body, found = example
    other = np.where(body, hu, -1000.0).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(body_numbers)(other, body), found)
    # Four voxels have neighbours up and in depth, none further away, none to the side.
    np.testing.assert_array_equal(np.isnan(found[2]), [0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1])
