"""Numbers of a vertebral body that need no network: where crops fit, and how its HU vary.

Definitions and units are in docs/data.md. Everything is computed in float64 over the shown window.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from osteojax.data.vertebra_columns import BODY_LAGS, BODY_NUMBERS, CROP_MM
from osteojax.data.vertebrae import HU_MAX, HU_MIN

Row = dict[str, Any]


def body_row(hu: np.ndarray, body: np.ndarray, spacing_mm: float) -> Row:
    """The body's columns of `vertebrae.csv`; None where a number is not defined.

    Args:
      hu: float[D, H, W], HU of the shown window.
      body: bool[D, H, W], the vertebral body in it.
      spacing_mm: edge of a voxel.
    """
    from osteojax.data.places import edge_voxels, find_places  # imports JAX, which predict avoids

    edge = edge_voxels(CROP_MM, spacing_mm)
    fits = edge <= min(body.shape)
    places, share = find_places(body, edge, body_share=1.0) if fits else ((), 0.0)
    return {
        "body_places": len(places) if share == 1 else 0,
        "body_share": round(share, 6),
        **texture_numbers(hu, body),
    }


def texture_numbers(hu: np.ndarray, body: np.ndarray) -> Row:
    """`texture_number` and `BODY_NUMBERS` of a body.

    Args:
      hu: float[D, H, W]; clipped here to the range that folders store.
      body: bool[D, H, W].
    """
    values = np.clip(np.asarray(hu, np.float64), HU_MIN, HU_MAX)
    inside = values[body]
    msd: dict[tuple[int, int], tuple[float, int]] = {
        (axis, lag): _squares(values, body, axis, lag) for axis in range(3) for lag in BODY_LAGS
    }
    neighbours = sum(msd[axis, 1][1] for axis in range(3))
    square = sum(msd[axis, 1][0] for axis in range(3)) / neighbours if neighbours else 0.0
    numbers = [
        inside.mean() if inside.size else None,
        inside.std() if inside.size else None,
        *(total / pairs if pairs else None for total, pairs in msd.values()),
    ]
    rounded = [None if number is None else round(float(number), 4) for number in numbers]
    return {
        # A body that is all of one HU has no logarithm of its differences.
        "texture_number": round(float(np.log(square)), 6) if square > 0 else None,
        **dict(zip(BODY_NUMBERS, rounded, strict=True)),
    }


def _squares(values: np.ndarray, body: np.ndarray, axis: int, lag: int) -> tuple[float, int]:
    """(sum of squared differences, number) of the pairs of voxels `lag` apart along `axis` that
    lie in the body both."""
    near = [slice(None)] * 3
    far = list(near)
    near[axis], far[axis] = slice(None, -lag), slice(lag, None)
    pairs = body[tuple(near)] & body[tuple(far)]
    differences = (values[tuple(far)] - values[tuple(near)])[pairs]
    return float(np.square(differences).sum()), int(pairs.sum())
