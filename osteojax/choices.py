"""Finds the module that a name in a config stands for; there is no registry.

A plain name is a module of one of our packages: `objective.name = "swav"` is
`osteojax/objectives/swav.py`. A dotted name is any module that Python can import, as
`"mylab.contrastive"`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

from osteojax.errors import UserError


def choices(package: str, defines: str = "build") -> list[str]:
    """Modules of `package` that can be chosen, sorted: those that define a function or a class
    `defines`. Their source text is searched; none of them is imported."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    wanted = re.compile(rf"^(def|class) {defines}\b", re.MULTILINE)
    files = sorted(folder.glob("*.py"))
    return [file.stem for file in files if wanted.search(file.read_text(encoding="utf-8"))]


def chosen_module(field: str, name: str, package: str, defines: str = "build") -> ModuleType:
    """Imports the module that `name` stands for.

    Args:
      field: config field that holds `name`, for the message.
      name: of a module of `package`; or a dotted name of any module that can be imported.
      package: dotted, as "osteojax.objectives".
      defines: function or class that the module must have.

    Raises:
      UserError: there is no such module, or it does not define `defines`.
    """
    dotted = "." in name and all(part.isidentifier() for part in name.split("."))
    if not dotted:
        known = choices(package, defines)
        if name not in known:
            raise UserError(
                f"{field} is {name!r}; choose one of {', '.join(known)}, or the dotted name of a "
                "module of your own."
            )
        return importlib.import_module(f"{package}.{name}")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise UserError(
            f"{field} is {name!r}, and Python finds no module {error.name}. Install it, or put the "
            "folder that holds it on PYTHONPATH."
        ) from error
    if not hasattr(module, defines):
        raise UserError(f"{field} is {name!r}, and {module.__file__} defines no {defines!r}.")
    return module
