"""Normalised names of DXA scanners."""

from __future__ import annotations


def device_name(text: str) -> str:
    """The form in which names are compared and stored: "GE Lunar" becomes "ge_lunar"."""
    return text.strip().casefold().replace(" ", "_").replace("-", "_")
