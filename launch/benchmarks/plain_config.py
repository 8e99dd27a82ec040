"""Loads the shipped configs where ml_collections is not installed.

Benchmarks of the step run on machines with only jax, flax, optax and orbax. There configs/*.py are
built from the small `ConfigDict` below, which has the methods of the real one that configs and
their readers use.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import configs
from osteojax.errors import UserError


def shipped_config(objective: str, variant: str = "") -> Any:
    """The config of configs/ that trains an objective (the first by name, where several do), of a
    real ConfigDict where there is one.

    Args:
      variant: of the config; one that lacks it is taken as it is.

    Raises:
      UserError: no config has this `objective.name`.
    """
    found: dict[str, Any] = {}
    with _ml_collections_or_stand_in():
        for file in sorted(Path(str(configs.__file__)).parent.glob("*.py")):
            module = importlib.import_module(f"configs.{file.stem}")
            if hasattr(module, "get_config"):
                try:
                    config = module.get_config(variant)
                except ValueError:
                    config = module.get_config()
                found.setdefault(config.objective.name, config)
    if objective not in found:
        raise UserError(f"--objective {objective!r}: choose one of {', '.join(sorted(found))}.")
    return found[objective]


class ConfigDict(dict):
    """A dict with attribute access, nested dicts included; never locked."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (values or {}).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, ConfigDict(value) if type(value) is dict else value)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} among {', '.join(self)}") from None

    __setattr__ = __setitem__

    def to_dict(self) -> dict[str, Any]:
        return {
            name: value.to_dict() if isinstance(value, ConfigDict) else value
            for name, value in self.items()
        }

    def copy_and_resolve_references(self) -> ConfigDict:
        return ConfigDict(self.to_dict())

    def lock(self) -> ConfigDict:
        return self

    def unlock(self) -> ConfigDict:
        return self

    @contextlib.contextmanager
    def unlocked(self) -> Iterator[ConfigDict]:
        yield self


def placeholder(kind: type) -> None:
    """A field that has no value yet."""


@contextlib.contextmanager
def _ml_collections_or_stand_in() -> Iterator[None]:
    """In this context `import ml_collections` succeeds, by a stand-in if it is not installed."""
    try:
        import ml_collections  # noqa: F401
    except ModuleNotFoundError:
        stand_in, child = ModuleType("ml_collections"), ModuleType("ml_collections.config_dict")
        vars(stand_in)["ConfigDict"] = vars(child)["ConfigDict"] = ConfigDict
        vars(child)["placeholder"] = placeholder
        modules = {"ml_collections": stand_in, "ml_collections.config_dict": child}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                del sys.modules[name]  # so that other code does not import the stand-in
    else:
        yield
