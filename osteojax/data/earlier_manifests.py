"""Translates manifests that earlier versions wrote.

Format 1 (osteojax 0.1) has no `kind` and means vertebrae. Format 2 (0.2) has no box: its vertebrae
lie in cubes without a margin, and their masks have no plane of the body.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from osteojax.data.boxes import CUBE
from osteojax.data.codes import MapSpec
from osteojax.data.schema import FORMAT_VERSION, Manifest
from osteojax.data.vertebrae import KIND, PLANES, POOL, columns, manifest_of

EARLIER_PLANES = len(PLANES) - 1


def from_format_1(content: dict[str, Any]) -> Manifest:
    """The manifest of a file of format 1. Raises KeyError or TypeError where it is none."""
    known = {name: content[name] for name in _KEPT_OF_FORMAT_1}
    counts = {
        split: {("items" if name == "vertebrae" else name): n for name, n in own.items()}
        for split, own in content["counts"].items()
    }
    edge = content["size"]
    return manifest_of(
        **known,
        shape=(edge, edge, edge),
        maps=tuple(MapSpec(**spec) for spec in content["maps"]),
        stored=content.get("stored", POOL),
        planes=EARLIER_PLANES,
        shards=[{"name": s["name"], "items": s["vertebrae"]} for s in content["shards"]],
        counts=counts,
    )


_KEPT_OF_FORMAT_1 = (
    "size",
    "spacing_mm",
    "devices",
    "bmd_mean",
    "bmd_std",
    "texture",
    "label_scheme",
    "settings",
    "code_version",
)


def from_format_2(content: dict[str, Any]) -> Manifest:
    """The manifest of a file of format 2. Raises KeyError or TypeError where it is none."""
    manifest = Manifest.from_json({**content, "format_version": FORMAT_VERSION})
    if manifest.kind != KIND:  # other kinds have not changed
        return manifest
    edge = manifest.about["size"]
    known = {column.name for column in manifest.columns}
    later = [c for c in columns(manifest.column("device").choices) if c.added_later]
    return dataclasses.replace(
        manifest,
        columns=(*manifest.columns, *(c for c in later if c.name not in known)),
        about={
            **manifest.about,
            "box": CUBE,
            "shape": [edge, edge, edge],
            "margin": 0,
            "statistics": {},
        },
    )
