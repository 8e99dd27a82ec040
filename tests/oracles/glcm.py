"""GLCM features voxel by voxel, from the definition: float64 co-occurrence matrices.

Zwanenburg et al., IBSI reference manual, section 3.6; PyRadiomics' voxel-based semantics.
"""

from __future__ import annotations

import itertools

import numpy as np

NAMES = ("Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")


def cooccurrence(levels: np.ndarray, mask: np.ndarray, step) -> np.ndarray:
    """float64[G, G] symmetric counts of the pairs (x, x + step), G levels in ascending order."""
    grey = np.unique(levels[mask])
    counts = np.zeros((len(grey), len(grey)))
    first = np.argwhere(mask)
    second = first + step
    inside = ((second >= 0) & (second < levels.shape)).all(axis=1)
    first, second = first[inside], second[inside]
    both = mask[tuple(second.T)]
    i = np.searchsorted(grey, levels[tuple(first[both].T)])
    j = np.searchsorted(grey, levels[tuple(second[both].T)])
    np.add.at(counts, (i, j), 1)
    np.add.at(counts, (j, i), 1)
    return counts


def features(counts: np.ndarray, grey: np.ndarray) -> dict[str, float]:
    """The four features of one co-occurrence matrix of the grey levels `grey`."""
    p = counts / counts.sum()
    i, j = np.meshgrid(grey.astype(float), grey.astype(float), indexing="ij")
    return {
        "Autocorrelation": float((p * i * j).sum()),
        "JointAverage": float((p * i).sum()),
        "Contrast": float((p * (i - j) ** 2).sum()),
        "DifferenceAverage": float((p * np.abs(i - j)).sum()),
    }


def region_features(levels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Means over the angles that have a pair; NaN where none has."""
    values: dict[str, list[float]] = {name: [] for name in NAMES}
    for step in itertools.product((-1, 0, 1), repeat=3):
        if step <= (0, 0, 0):
            continue  # the opposite pair is in the symmetric matrix already
        counts = cooccurrence(levels, mask, step)
        if counts.sum() > 0:
            for name, value in features(counts, np.unique(levels[mask])).items():
                values[name].append(value)
    return {name: float(np.mean(v)) if v else float("nan") for name, v in values.items()}


def maps(
    levels: np.ndarray, mask: np.ndarray | None, radius: int, init_value: float = 0.0
) -> dict[str, np.ndarray]:
    """float64[D, H, W] by name: `region_features` of the window around every voxel of the mask."""
    mask = np.ones(levels.shape, bool) if mask is None else mask
    out = {name: np.full(levels.shape, init_value, float) for name in NAMES}
    for center in zip(*np.nonzero(mask), strict=True):
        window = tuple(slice(max(c - radius, 0), c + radius + 1) for c in center)
        for name, value in region_features(levels[window], mask[window]).items():
            out[name][center] = value
    return out
