"""A prepared folder with a learnable signal, written without any CT: for tests of training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from array_record.python.array_record_module import ArrayRecordWriter

from osteojax.data.boxes import shown_window
from osteojax.data.vertebrae import (
    POOL,
    VERTEBRA_COLUMNS,
    image_spec,
    level_class,
    manifest_of,
    map_spec,
)

if TYPE_CHECKING:
    from data_prep.vertebrae.texture import TextureSettings

DEVICES = ("hologic", "ge_lunar", "medix", "unknown")
STATISTICS = tuple((mean, 2.0) for mean in (0.5, 1.0, 1.5, 2.0, 2.5))
"""Mean and SD of each member of the pool over vertebrae and bodies: any numbers, so that a test
sees which of them is used."""
SPLITS = ("train",) * 5 + ("valid",) * 3 + ("test",) * 2


def write_tiny_cohort(
    directory: Path,
    patients: int = 20,
    size: int = 16,
    seed: int = 0,
    *,
    texture: TextureSettings | None = None,
    stored: tuple[str, ...] = POOL,
    shape: tuple[int, int, int] | None = None,
    margin: int = 0,
    body: bool = True,
) -> Path:
    """Two lumbar and one thoracic vertebra a patient; the thoracic one has no DXA result. The
    brightness of the image follows BMD. With `texture` the maps are the image's own, as `prepare`
    makes them; else noise that resembles it.

    Args:
      size: names the voxel, 96 mm / size; without `shape` the edge of the box.
      shape: (D, H, W) of the stored box, with the margin.
      margin: voxels around the shown window.
      body: whether masks have the plane of the body, as folders of 0.3 have; it is the inside of an
        ellipsoid with half the window's edges. Without it the folder has no numbers of bodies.
    """
    shape = shape or (size, size, size)
    rng = np.random.default_rng(seed)
    rows, records = [], []
    for patient in range(patients):
        bmd = float(rng.uniform(0.5, 1.2))
        for level in ("T12", "L1", "L2"):
            labelled = level != "T12"
            volumes = _volumes(rng, bmd, shape)
            if texture:
                volumes = {"image": volumes["image"], **_maps(volumes["image"], texture)}
            row = _row(patient, level, bmd if labelled else None, position=len(rows))
            mask = np.ones((3 if body else 2, *shape), bool)
            if body:
                mask[2] = _body(shape)
                row |= _body_row(volumes["image"], mask[2], margin, 96 / size)
            rows.append(row)
            records += [json.dumps(row).encode(), *(volumes[name].tobytes() for name in stored)]
            records.append(np.packbits(mask).tobytes())
    (directory / "shards").mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(directory / "shards" / "pool-00000-of-00001.array_record"), "group_size:1,zstd:1"
    )
    for record in records:
        writer.write(record)
    writer.close()
    table = pd.DataFrame(rows, columns=list(VERTEBRA_COLUMNS))
    table.to_csv(directory / "vertebrae.csv", index=False)
    maps = (image_spec(), *(map_spec(name, 25.0) for name in POOL[1:]))
    manifest_of(
        size=size, spacing_mm=96 / size, shape=shape, margin=margin, planes=3 if body else 2,
        statistics=dict.fromkeys(("vertebra", "body"), STATISTICS) if body else {},
        maps=maps, devices=DEVICES, bmd_mean=0.85, bmd_std=0.2,
        texture=dataclasses.asdict(texture) if texture else {}, stored=stored,
        shards=({"name": "pool-00000-of-00001.array_record", "items": len(rows)},),
        counts={}, settings={}, label_scheme="verse", code_version="test",
    ).save(directory)  # fmt: skip
    return directory


def _row(patient: int, level: str, bmd: float | None, position: int) -> dict:
    split = SPLITS[patient % len(SPLITS)]
    return {
        "patient_id": f"P{patient:03d}", "scan_id": f"S{patient:03d}", "site": "AB"[patient % 2],
        "split": split, "level": level, "level_class": level_class(level),
        "device": DEVICES[patient % 2] if bmd is not None else "", "bmd_g_cm2": bmd,
        "t_score": None, "osteoporosis": None if bmd is None else int(bmd < 0.8), "sex": "F",
        "age": 60, "truncated": 0, "posterior_rule": "elements", "axial_rule": "neighbours",
        "mean_hu": 100.0 if bmd is None else 200 * bmd, "mask_volume_mm3": 3e4 + position,
        "slice_mm": (1.0, 3.0)[patient % 2],
        "shard": "pool-00000-of-00001.array_record", "position": position,
    }  # fmt: skip


def _body(shape: tuple[int, int, int]) -> np.ndarray:
    """bool[D, H, W]: an ellipsoid in the middle, its axes half as long as the box's edges."""
    from_middle = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij")
    return sum(np.square(axis) for axis in from_middle) <= 0.25


def _body_row(image: np.ndarray, body: np.ndarray, margin: int, spacing_mm: float) -> dict:
    from data_prep.vertebrae.body_numbers import body_row

    window = shown_window(image.shape, margin)
    return body_row(image_spec().decode(image)[window], body[window], spacing_mm)


def _volumes(
    rng: np.random.Generator, bmd: float, shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    image = 40 + 120 * bmd + 10 * rng.normal(size=shape)
    noise = [rng.normal(scale=8, size=shape) for _ in POOL[1:]]
    factors = (1.0, 0.9, 0.4, 0.5)
    maps = [factor * image + n for factor, n in zip(factors, noise, strict=True)]
    volumes = [np.clip(v, 0, 239).astype(np.uint8) for v in (image, *maps)]
    return dict(zip(POOL, volumes, strict=True))


def _maps(image: np.ndarray, texture: TextureSettings) -> dict[str, np.ndarray]:
    from data_prep.vertebrae.texture import texture_pool

    pool = texture_pool(image, None, texture)
    return {name: map_spec(name, texture.bin_width).encode(pool[name]) for name in POOL[1:]}
