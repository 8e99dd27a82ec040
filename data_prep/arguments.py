"""Command-line options: types that kinds of data share, and parsing for calls from Python."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from osteojax.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def parsed(
    prog: str, words: Sequence[str], *additions: Callable[[Any], None]
) -> argparse.Namespace:
    """Parses the options of a command that is called from Python.

    Args:
      prog: name of the command in messages.
      words: the words of a command line.
      additions: functions that add the command's arguments to a parser.

    Raises:
      UserError: an option is unknown, missing or has an invalid value.
    """
    parser = _Parser(prog, allow_abbrev=False, add_help=False)
    for add in additions:
        add(parser)
    return parser.parse_args(words)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def names(text: str) -> frozenset[str]:
    """Names separated by commas."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def label_numbers(text: str) -> tuple[int, ...]:
    """Numbers of a mask, separated by commas, each once and in order."""
    numbers = sorted({int(part) for part in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers of labels, as 118,119; 0 is background")
    return tuple(numbers)


def fractions(text: str) -> tuple[float, float, float]:
    """Shares of train, valid and test."""
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text}: three fractions that sum to 1, as 0.6,0.1,0.3")
    return values[0], values[1], values[2]
