"""What another platform runs, on the CPU: `lax.platform_dependent` chooses that platform's form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def traced_as_on(platform: str) -> Iterator[None]:
    """What is traced in this context has the forms of "cuda" or "tpu"."""

    def chosen(*arguments, default=None, **forms):
        return forms.get(platform, default)(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", chosen)
        yield
