"""Kinds of data, found by name: "vertebrae" is `osteojax/data/vertebrae.py`.

A name with dots is a kind outside this package: "mylab.pictures" is the module
`mylab.pictures.data`. It is imported as any installed module is; a folder brings no code.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

from osteojax import data
from osteojax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from osteojax.data.cohort import PreparedCohort
    from osteojax.data.schema import Manifest


class Kind(Protocol):
    """What a kind's module has."""

    ITEMS: str
    """What its items are called, in the plural: "vertebrae"."""

    def about(self, manifest: Manifest) -> Any:
        """`manifest.about`, typed. Raises ValueError, KeyError or TypeError where it cannot be."""

    def table_fault(self, table: pd.DataFrame) -> str | None:
        """What the columns' own rules cannot find wrong with the table, with its line, or None."""

    def labels(self, cohort: PreparedCohort) -> Any:
        """What an objective wants to know of every row, as arrays with names."""


def find_kind(name: str) -> Kind:
    """The module of a kind. Raises UserError that lists the choices."""
    module = f"{name}.data" if "." in name else f"osteojax.data.{name}"
    if _exists(module):
        found: Any = importlib.import_module(module)
        if hasattr(found, "ITEMS"):
            return found
    raise UserError(
        f"{name!r} is no kind of data; choose one of {', '.join(_choices())}, or install the "
        "package that a name with dots belongs to."
    )


def _exists(module: str) -> bool:
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False


def _choices() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(data.__path__)]
    return [n for n in names if hasattr(importlib.import_module(f"osteojax.data.{n}"), "ITEMS")]
