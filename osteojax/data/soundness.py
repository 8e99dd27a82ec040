"""Whether the manifest and the table of a prepared folder can be what `osteojax prepare` wrote.

Both are text that people edit and copies that break. A wrong number in them would train a model on
what it misreads, and a name with a path in it would read a file from elsewhere.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from osteojax.data.schema import Manifest

LARGEST_SIZE = 1024
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-9, 1e9
"""Of what the network's input is scaled by: float32 must hold it."""
LARGEST_BMD_G_CM2 = 5.0
MEASURES = ("bmd_g_cm2", "t_score", "age", "mean_hu", "mask_volume_mm3", "slice_mm")


def manifest_fault(manifest: Manifest) -> str | None:
    """The first thing that a manifest cannot say, or None."""
    from osteojax.data.vertebrae import IMAGE_ONLY, POOL, UNKNOWN_DEVICE

    names = tuple(spec.name for spec in manifest.maps)
    if not (_is_count(manifest.size) and 0 < manifest.size <= LARGEST_SIZE):
        return f"size {manifest.size!r}"
    if not _is_positive(manifest.spacing_mm):
        return f"spacing_mm {manifest.spacing_mm!r}"
    if names != POOL:
        return f"maps {names}, expected {POOL}"
    if manifest.stored not in (POOL, IMAGE_ONLY):
        return f"stored {manifest.stored!r}"
    devices = manifest.devices
    if not all(isinstance(name, str) for name in devices) or devices[-1:] != (UNKNOWN_DEVICE,):
        return f"devices {devices!r}, the last one must be {UNKNOWN_DEVICE!r}"
    if len(set(devices)) != len(devices):
        return f"devices {devices!r}, one twice"
    if not (_is_number(manifest.bmd_mean) and _is_positive(manifest.bmd_std)):
        return f"bmd_mean {manifest.bmd_mean!r}, bmd_std {manifest.bmd_std!r}"
    for name in ("texture", "counts", "settings"):
        if not isinstance(getattr(manifest, name), dict):
            return f"{name} {getattr(manifest, name)!r}"
    for name in ("label_scheme", "code_version"):
        if not isinstance(getattr(manifest, name), str):
            return f"{name} {getattr(manifest, name)!r}"
    return _maps_fault(manifest) or _shards_fault(manifest)


def _maps_fault(manifest: Manifest) -> str | None:
    for spec in manifest.maps:
        numbers = (spec.offset, spec.mean)
        sound = (
            all(_is_number(value) for value in numbers)
            and _is_positive(spec.step)
            and _is_positive(spec.std)
            and _is_count(spec.codes)
            and 0 < spec.codes <= 256
            and spec.transform in ("linear", "log1p")
        )
        if not sound:
            return f"map {spec!r}"
    return None


def _shards_fault(manifest: Manifest) -> str | None:
    for shard in manifest.shards:
        if not isinstance(shard, dict) or not {"name", "vertebrae"} <= set(shard):
            return f"shard {shard!r}"
        name = shard["name"]
        if not isinstance(name, str) or not name or PurePath(name).name != name:
            return f"shard name {name!r}, not the name of a file"
        if not _is_count(shard["vertebrae"]):
            return f"shard {name!r} of {shard['vertebrae']!r} vertebrae"
    return None


def _is_number(value: Any) -> bool:
    """NaN and infinity are none."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < LARGEST_NUMBER


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > SMALLEST_NUMBER


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def table_fault(table: pd.DataFrame) -> str | None:
    """The first thing that `vertebrae.csv` cannot say, with its line, or None."""
    import pandas as pd  # benchmarks read manifests on machines without it

    from osteojax.data.schema import SPLITS
    from osteojax.data.vertebrae import LEVELS

    numbers = {
        name: pd.to_numeric(table[name], errors="coerce")
        for name in ("level_class", "osteoporosis", *MEASURES)
    }
    classes = {level: float(number) for number, level in enumerate(LEVELS, start=1)}
    wrong = {
        "split": ~table["split"].isin(SPLITS),
        "level": ~table["level"].isin(LEVELS),
        "level_class": table["level"].map(classes) != numbers["level_class"],
        "osteoporosis": ~(numbers["osteoporosis"].isin([0, 1]) | table["osteoporosis"].isna()),
        "patient_id": table["patient_id"] == "",
    }
    for name in MEASURES:
        wrong[name] = ~(np.isfinite(numbers[name]) | table[name].isna())
    bmd = numbers["bmd_g_cm2"]
    wrong["bmd_g_cm2"] |= (bmd <= 0) | (bmd > LARGEST_BMD_G_CM2)
    for name, rows in wrong.items():
        if rows.any():
            row = int(np.argmax(rows.to_numpy()))
            return f"line {row + 2}: {name} {table[name].iloc[row]!r}"
    return None
