"""Options of the command line on how masks are read, for `prepare` and `predict`."""

from __future__ import annotations

import argparse

from data_prep.arguments import label_numbers
from data_prep.vertebrae.label_schemes import SCHEMES


def add_mask_options(parser: argparse._ActionsContainer) -> None:
    """Adds `label_scheme` (a name of `SCHEMES`) and `ignore_labels` (a tuple of numbers)."""
    parser.add_argument(
        "--label-scheme", choices=list(SCHEMES), default="verse", help="of masks whose row has none"
    )
    parser.add_argument(
        "--ignore-labels",
        type=label_numbers,
        default=(),
        metavar="NUMBER,...",
        help="numbers of masks that are read as background, as 118,119",
    )
