"""Grey levels from the formulas that PyRadiomics documents, in rational numbers.

`radiomics.imageoperations.getBinEdges`, PyRadiomics 3.0.1.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np


def by_width(image: np.ndarray, mask: np.ndarray, width: float) -> np.ndarray:
    """floor(x / W) - floor(min / W) + 1 of every value, 0 where that is below 1."""
    values = [Fraction(value) for value in image.reshape(-1).tolist()]
    low = min(value for value, inside in zip(values, mask.reshape(-1), strict=True) if inside)
    first = floor(low / Fraction(width))
    levels = [max(floor(value / Fraction(width)) - first + 1, 0) for value in values]
    return np.array(levels).reshape(image.shape)


def by_count(values: np.ndarray, count: int) -> np.ndarray:
    """floor(N (x - min) / (max - min)) + 1 of every value, N for the largest."""
    numbers = [Fraction(value) for value in values.reshape(-1).tolist()]
    low, high = min(numbers), max(numbers)
    levels = [min(floor(count * (x - low) / (high - low)) + 1, count) for x in numbers]
    return np.array(levels).reshape(values.shape)
