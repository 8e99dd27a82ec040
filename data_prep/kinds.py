"""Finds the recipe of a kind of data by its name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from osteojax.errors import UserError

DEFAULT_KIND = "vertebrae"


def known_kinds() -> list[str]:
    """Kinds of this repository: folders beside this file that have a recipe."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/recipe.py"))


def recipe_module(kind: str) -> ModuleType:
    """The module `data_prep.<kind>.recipe`; of a dotted name `mylab.pictures`, the module
    `mylab.pictures.recipe`.

    Raises:
      UserError: there is no such module.
    """
    name = f"{kind}.recipe" if "." in kind else f"data_prep.{kind}.recipe"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the recipe is there; it imports something that is not
        raise UserError(
            f"--kind {kind}: no module {error.name}. Choose from {', '.join(known_kinds())}, or "
            "give the dotted name of a package of your own that has a recipe.py."
        ) from None
