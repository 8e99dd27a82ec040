"""Kinds of data, found by name: "vertebrae" is `osteojax/data/vertebrae.py`.

A name with dots is a kind outside this package: "mylab.pictures" is the module
`mylab.pictures.data`. It is imported as any installed module is; a folder brings no code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from osteojax.choices import chosen_module

if TYPE_CHECKING:
    import pandas as pd

    from osteojax.data.schema import Manifest, Rows


class Kind(Protocol):
    """What a kind's module has."""

    ITEMS: str
    """What its items are called, in the plural: "vertebrae"."""

    def about(self, manifest: Manifest) -> Any:
        """`manifest.about`, typed. Raises ValueError, KeyError or TypeError where it cannot be."""

    def table_fault(self, table: pd.DataFrame) -> str | None:
        """What the columns' own rules cannot find wrong with the table, with its line, or None."""

    def labels(self, rows: Rows) -> Any:
        """What an objective wants to know of every row, as arrays with names."""


def find_kind(name: str) -> Kind:
    """The module of a kind. Raises UserError that lists the choices."""
    module: Any = chosen_module(
        "kind", f"{name}.data" if "." in name else name, __package__, "about"
    )
    return module
