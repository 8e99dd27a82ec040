"""First-order statistics voxel by voxel, from the definitions, with correctly rounded sums.

PyRadiomics' documentation of `RadiomicsFirstOrder`; Zwanenburg et al., IBSI reference manual,
sections 3.3 and 3.4.
"""

from __future__ import annotations

from collections import Counter
from math import fsum, log2, sqrt

import numpy as np

NAMES = (
    "Mean", "Variance", "Minimum", "Maximum", "Range", "RootMeanSquared", "Energy",
    "Entropy", "Uniformity",
)  # fmt: skip


def statistics(values: list[float], levels: list[int], shift: float = 0) -> dict[str, float]:
    """All features of one list of values (floats or integers) and of their grey levels."""
    number = len(values)
    mean = fsum(values) / number
    energy = fsum((value + shift) ** 2 for value in values)
    shares = [count / number for count in Counter(levels).values()]
    return {
        "Mean": mean,
        "Variance": fsum((value - mean) ** 2 for value in values) / number,
        "Minimum": min(values),
        "Maximum": max(values),
        "Range": max(values) - min(values),
        "RootMeanSquared": sqrt(energy / number),
        "Energy": energy,
        "Entropy": -fsum(share * log2(share) for share in shares),
        "Uniformity": fsum(share**2 for share in shares),
    }


def maps(
    image: np.ndarray,
    levels: np.ndarray,
    mask: np.ndarray,
    radius: int,
    *,
    masked_kernel: bool = True,
    shift: float = 0,
    force_2d_axis: int | None = None,
    init_value: float = 0.0,
) -> dict[str, np.ndarray]:
    """float64[D, H, W] by name: `statistics` of the window around every voxel of the mask."""
    counted = mask if masked_kernel else np.ones_like(mask)
    out = {name: np.full(image.shape, init_value, float) for name in NAMES}
    for center in zip(*np.nonzero(mask), strict=True):
        reach = [0 if axis == force_2d_axis else radius for axis in range(3)]
        window = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(center, reach, strict=True))
        inside = counted[window]
        values, grey = image[window][inside].tolist(), levels[window][inside].tolist()
        for name, value in statistics(values, grey, shift).items():
            out[name][center] = value
    return out
