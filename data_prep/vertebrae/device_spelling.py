"""Recognises a DXA scanner that is known by another name: "Lunar iDXA" is `ge_lunar`.

Such a name is not taken silently, because a laboratory may keep two scanners of one maker apart.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MODELS = {
    "ge_lunar": frozenset(["ge", "lunar", "idxa", "prodigy", "dpx"]),
    "hologic": frozenset(["hologic", "qdr", "discovery", "horizon", "delphi"]),
}
"""Words in the names of a maker's scanners; of other scanners, the words of their own name."""


def known_spellings(name: str, devices: Iterable[str]) -> list[str]:
    """Devices that a name may mean.

    Args:
      name: normalised by `osteojax.data.devices.device_name`, and not itself a device.
      devices: known names, normalised.
    """
    devices = list(devices)
    words = set(re.findall(r"[a-z]+", name))
    plain = re.sub(r"[^a-z0-9]", "", name)
    found = []
    for device in devices:
        own = MODELS.get(device, frozenset(re.findall(r"[a-z]{3,}", device)))
        squeezed = device.replace("_", "")
        if words & own or (len(squeezed) >= 4 and squeezed in plain):
            found.append(device)
    return found or difflib.get_close_matches(name, devices, 1, 0.75)


def question(name: str, devices: Iterable[str]) -> str:
    """The beginning of a remedy for an unknown device: whether a known one is meant, or ""."""
    near = known_spellings(name, devices)
    return f"Is it {' or '.join(near)}? Then write that. " if near else ""
