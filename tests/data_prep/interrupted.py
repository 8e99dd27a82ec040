"""Watches `prepare` item by item, and stops it anywhere, as only the operating system would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pytest

import data_prep.build


class Killed(BaseException):
    """Stops the program where nothing but the operating system would."""


@contextlib.contextmanager
def killed_at(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, call: int
) -> Iterator[None]:
    """The block must be stopped by a call of the module's function, instead of which it is killed.

    call: which one, the first being 1.
    """
    original, calls = getattr(module, name), []

    def stop(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        with pytest.raises(Killed):
            yield


def noted_cases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the case of every item that is prepared from now on, in order."""
    cases: list[str] = []
    original = data_prep.build.prepare_item

    def noted(recipe, item, *rest):
        cases.append(item.case)
        return original(recipe, item, *rest)

    monkeypatch.setattr(data_prep.build, "prepare_item", noted)
    return cases
