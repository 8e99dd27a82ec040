"""Finds the recipe of a kind of data by the kind's name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from osteojax.choices import chosen_module
from osteojax.errors import UserError

DEFAULT_KIND = "vertebrae"


def known_kinds() -> list[str]:
    """Kinds of this repository: folders beside this file that have a recipe."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/recipe.py"))


def recipe_module(kind: str) -> ModuleType:
    """The module `data_prep.<kind>.recipe`; for a dotted name `mylab.pictures`, the module
    `mylab.pictures.recipe`.

    Raises:
      UserError: there is no such module.
    """
    if all(part.isidentifier() for part in kind.split(".")) and "." in kind:
        return chosen_module("--kind", f"{kind}.recipe", __package__, "recipe")
    if kind not in known_kinds():
        raise UserError(
            f"--kind {kind}: choose from {', '.join(known_kinds())}, or give the dotted name of a "
            "package of your own that has a recipe.py."
        )
    return importlib.import_module(f"data_prep.{kind}.recipe")
