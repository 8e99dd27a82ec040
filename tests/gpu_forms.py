"""What an NVIDIA GPU runs, on the CPU: `lax.platform_dependent` chooses the GPU's form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def traced_as_on_a_gpu() -> Iterator[None]:
    """What is traced in this context has the forms for a GPU."""

    def gpu(*arguments, default, cuda=None, **others):
        return (cuda or default)(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", gpu)
        yield
