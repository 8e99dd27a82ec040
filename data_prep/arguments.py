"""Types of command-line options that kinds of data share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def names(text: str) -> frozenset[str]:
    """Names separated by commas."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def fractions(text: str) -> tuple[float, float, float]:
    """Shares of train, valid and test."""
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text}: three fractions that sum to 1, as 0.6,0.1,0.3")
    return values[0], values[1], values[2]
