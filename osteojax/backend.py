"""The devices that JAX finds when a program starts."""

from __future__ import annotations

import os

import jax

from osteojax.errors import UserError


def check_devices() -> None:
    """Raises UserError where JAX finds no device, as with JAX_PLATFORMS=cuda and no GPU."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is not installed
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).splitlines()[0] if str(error) else f"JAX_PLATFORMS is {wanted!r}"
        raise UserError(
            f"no device to compute on: {reason}. Check the driver and the installed jax packages, "
            "or set JAX_PLATFORMS=cpu."
        ) from error
