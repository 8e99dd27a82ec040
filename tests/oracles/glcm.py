"""GLCM features voxel by voxel, from the definition: float64 co-occurrence matrices.

Zwanenburg et al., IBSI reference manual, section 3.6; PyRadiomics' voxel-based semantics.
"""

from __future__ import annotations

import itertools

import numpy as np

NAMES = ("Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")


def cooccurrence(levels: np.ndarray, mask: np.ndarray, step, symmetrical=True) -> np.ndarray:
    """float64[G, G] counts of the pairs (x, x + step), G levels in ascending order."""
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
    if symmetrical:
        np.add.at(counts, (j, i), 1)
    return counts


def features(counts: np.ndarray, grey: np.ndarray, num_levels: int) -> dict[str, float]:
    """Features of one co-occurrence matrix of the grey levels `grey`."""
    p = counts / counts.sum()
    i, j = np.meshgrid(grey.astype(float), grey.astype(float), indexing="ij")
    k = np.abs(i - j)
    mean_i, mean_j = (p * i).sum(), (p * j).sum()
    deviation = i + j - mean_i - mean_j
    sd_i = np.sqrt((p * (i - mean_i) ** 2).sum())
    sd_j = np.sqrt((p * (j - mean_j) ** 2).sum())
    covariance = (p * (i - mean_i) * (j - mean_j)).sum()
    difference = (p * k).sum()
    off = k > 0
    # Levels are counted, because rounding gives one level a variance of 1e-32 instead of 0.
    flat = min(len(np.unique(x[p > 0])) for x in (i, j)) == 1
    found = {
        "Autocorrelation": (p * i * j).sum(),
        "JointAverage": mean_i,
        "SumAverage": (p * (i + j)).sum(),
        "Contrast": (p * k**2).sum(),
        "DifferenceAverage": difference,
        "DifferenceVariance": (p * (k - difference) ** 2).sum(),
        "Id": (p / (1 + k)).sum(),
        "Idm": (p / (1 + k**2)).sum(),
        "Idn": (p / (1 + k / num_levels)).sum(),
        "Idmn": (p / (1 + k**2 / num_levels**2)).sum(),
        "InverseVariance": (p[off] / k[off] ** 2).sum(),
        "SumSquares": sd_i**2,
        "ClusterTendency": (p * deviation**2).sum(),
        "ClusterShade": (p * deviation**3).sum(),
        "ClusterProminence": (p * deviation**4).sum(),
        # numpy.spacing(1) is PyRadiomics'; a flat window is perfectly correlated by definition.
        "Correlation": 1.0 if flat else covariance / (sd_i * sd_j + np.spacing(1)),
    }
    return {name: float(value) for name, value in found.items()}


ALL_NAMES = tuple(features(np.ones((1, 1)), np.ones(1), 1))


def angles(distances=(1,), axis_2d=None):
    """One of each opposite pair of steps whose largest part is one of the distances."""
    reach = range(-max(distances), max(distances) + 1)
    return [
        step
        for step in itertools.product(reach, repeat=3)
        if step > (0, 0, 0)
        and max(map(abs, step)) in distances
        and (axis_2d is None or step[axis_2d] == 0)
    ]


def weight(step, norm, spacing_mm) -> float:
    mm = np.abs(np.array(step) * spacing_mm)
    size = {
        "infinity": mm.max(),
        "euclidean": np.sqrt((mm**2).sum()),
        "manhattan": mm.sum(),
        "no_weighting": 0,
    }[norm]
    return float(np.exp(-(size**2)))


def region_features(
    levels: np.ndarray,
    mask: np.ndarray,
    *,
    distances=(1,),
    axis_2d=None,
    symmetrical=True,
    norm=None,
    spacing_mm=(1, 1, 1),
    num_levels=None,
) -> dict[str, float]:
    """Means over the angles that have a pair (or features of their weighted sum); NaN without."""
    num_levels = num_levels or int(levels.max(where=mask, initial=1))
    steps = angles(distances, axis_2d)
    matrices = [cooccurrence(levels, mask, step, symmetrical) for step in steps]
    if norm is not None:
        weights = [weight(step, norm, spacing_mm) for step in steps]
        matrices = [sum(w * m for w, m in zip(weights, matrices, strict=True))]
    grey = np.unique(levels[mask])
    found = [features(m, grey, num_levels) for m in matrices if m.sum() > 0]
    return {n: float(np.mean([f[n] for f in found])) if found else np.nan for n in ALL_NAMES}


def window_maps(
    levels: np.ndarray, mask: np.ndarray | None, radius: int, init_value: float = 0.0, **settings
) -> dict[str, np.ndarray]:
    """float64[D, H, W] by name: `region_features` of the window around every voxel of the mask."""
    mask = np.ones(levels.shape, bool) if mask is None else mask
    settings.setdefault("num_levels", int(levels.max(where=mask, initial=1)))
    axis_2d = settings.get("axis_2d")
    out = {name: np.full(levels.shape, init_value, float) for name in ALL_NAMES}
    for center in zip(*np.nonzero(mask), strict=True):
        window = tuple(
            slice(c, c + 1) if axis == axis_2d else slice(max(c - radius, 0), c + radius + 1)
            for axis, c in enumerate(center)
        )
        for name, value in region_features(levels[window], mask[window], **settings).items():
            out[name][center] = value
    return out


def maps(
    levels: np.ndarray, mask: np.ndarray | None, radius: int, init_value: float = 0.0
) -> dict[str, np.ndarray]:
    """The paper's four of `window_maps`."""
    found = window_maps(levels, mask, radius, init_value)
    return {name: found[name] for name in NAMES}
