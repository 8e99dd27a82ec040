"""Finds a kind of data by its name: "vertebrae" is `osteojax/data/vertebrae.py`.

A dotted name is a kind outside this package: "mylab.pictures" is the module `mylab.pictures.data`.
It is imported like any installed module; a prepared folder contains no code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from osteojax.choices import chosen_module

if TYPE_CHECKING:
    import pandas as pd

    from osteojax.data.schema import Manifest, Rows


class Kind(Protocol):
    """What the module of a kind defines."""

    ITEMS: str
    """Plural of what an item is called: "vertebrae"."""

    def about(self, manifest: Manifest) -> Any:
        """`manifest.about` as a typed object. Raises ValueError, KeyError or TypeError where it is
        invalid."""

    def table_fault(self, table: pd.DataFrame) -> str | None:
        """The first fault of the table, with its line, that the rules of single columns do not
        find; None if there is none."""

    def labels(self, rows: Rows) -> Any:
        """What objectives need of every row, as named arrays."""


def find_kind(name: str) -> Kind:
    """The module of a kind. Raises UserError that lists the choices if there is none."""
    module: Any = chosen_module(
        "kind", f"{name}.data" if "." in name else name, __package__, "about"
    )
    return module
