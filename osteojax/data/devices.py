"""The one way that names of DXA devices are written."""

from __future__ import annotations


def device_name(text: str) -> str:
    """The way names are compared and stored: "GE Lunar" is "ge_lunar"."""
    return text.strip().casefold().replace(" ", "_").replace("-", "_")
