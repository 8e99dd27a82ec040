"""The kind of data "vertebrae": a vertebra's box with its texture pool, mask and DXA result.

Records of each vertebra:

    meta                      UTF-8 JSON, the vertebra's row of `vertebrae.csv`
    image, Autocorrelation, JointAverage, Contrast, DifferenceAverage
                              uint8[D, H, W] codes (`MapSpec`); a folder for training with
                              data.textures="online" stores the image alone (`About.stored`)
    mask                      bool[2, D, H, W] as bits: [0] the vertebra, [1] inside the CT

Axes of every volume, aligned with the vertebra: [0] inferior to superior, [1] anterior to
posterior, [2] the patient's right to left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from osteojax.data.codes import MapSpec, spec_fault
from osteojax.data.schema import META, SPLITS, Column, Field, Manifest, Rows, Target

if TYPE_CHECKING:
    import pandas as pd

KIND = "vertebrae"
ITEMS = "vertebrae"
TABLE = "vertebrae.csv"

POOL = ("image", "Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")
"""The texture pool (paper, section 2.1), in PyRadiomics' names; the position is the map id."""

IMAGE_ONLY = POOL[:1]
"""Members of the pool that a folder stores when training computes the maps."""

LEVELS = tuple([f"T{i}" for i in range(1, 13)] + [f"L{i}" for i in range(1, 7)])
"""Vertebral levels; the class of a level is its position here plus one (1-18)."""

UNKNOWN_DEVICE = "unknown"
"""Name for a DXA scanner that is not known; always the last entry of `devices`."""

HU_MIN, HU_MAX = -200.0, 1000.0
"""HU are clipped to [HU_MIN, HU_MAX) (docs/method.md)."""
IMAGE_STEP_HU = 5.0
"""Width of an image code in HU. It divides the GLCM bin width, so that every grey level can be
computed from codes."""


def level_class(level: str) -> int:
    """The class 1-18 of a level's name, T1 to L6. Raises KeyError for another name."""
    if level not in LEVELS:
        raise KeyError(f"{level!r} is not a vertebral level; levels are T1-T12 and L1-L6")
    return LEVELS.index(level) + 1


LARGEST_BMD_G_CM2 = 5.0


def columns(devices: Sequence[str]) -> tuple[Column, ...]:
    """Columns of `vertebrae.csv`. devices: DXA scanners by index, `UNKNOWN_DEVICE` last."""
    return (
        Column("patient_id", required=True),
        Column("scan_id"),
        Column("site"),
        Column("split", "choice", SPLITS, required=True),
        Column("level", "choice", LEVELS, required=True),
        Column("level_class", "number", required=True, whole=True, low=1, high=len(LEVELS)),
        Column("device", "choice", tuple(devices)),  # empty where there is no DXA result
        Column("bmd_g_cm2", "number", low=0.001, high=LARGEST_BMD_G_CM2),
        Column("t_score", "number"),
        Column("osteoporosis", "number", whole=True, low=0, high=1),
        Column("sex"),
        Column("age", "number"),
        Column("truncated", "number"),  # 1 where the mask touches the border of the CT
        Column("posterior_rule"),  # "elements" or "header": where the posterior axis came from
        Column("axial_rule"),  # "neighbours" or "header"
        # Mean unclipped HU of the label's voxels inside the box, in the original CT.
        Column("mean_hu", "number"),
        Column("mask_volume_mm3", "number"),  # of the label in the original CT
        Column("slice_mm", "number", added_later=True),  # distance of the original CT's slices
        Column("shard"),  # file name
        # Index of the vertebra in its shard; its first record is position * number of fields.
        Column("position", "number"),
    )


VERTEBRA_COLUMNS = tuple(column.name for column in columns(()))


def record_keys(stored: Sequence[str] = POOL) -> tuple[str, ...]:
    """Names of the fields, in order, of a folder that stores these members of the pool."""
    return tuple(field.name for field in fields(1, stored))


def fields(size: int, stored: Sequence[str]) -> tuple[Field, ...]:
    """Fields of a cubic box of `size` voxels per edge; stored: `POOL` or `IMAGE_ONLY`."""
    box = (size, size, size)
    volumes = [Field(name, "uint8", box) for name in stored]
    return (META, *volumes, Field("mask", "bool", (2, *box), "bits"))


def targets(bmd_mean: float, bmd_std: float) -> tuple[Target, ...]:
    """Diagnosis, BMD and level. bmd_mean, bmd_std: in g/cm^2 over labelled training vertebrae, for
    the BMD head's normalisation, one for all DXA scanners; (0, 1) where there are none."""
    diagnoses = ("no osteoporosis", "osteoporosis")
    return (
        Target("osteoporosis", "class", "osteoporosis", classes=diagnoses),
        Target("bmd", "number", "bmd_g_cm2", "g/cm^2", mean=bmd_mean, std=bmd_std),
        # Every vertebra has a level, from the mask, so it does not count as a label.
        Target("level", "class", "level", classes=LEVELS, counts_as_label=False),
    )


def image_spec() -> MapSpec:
    """The HU image: 240 half-open codes of 5 HU from -200 HU, decoded at their middle."""
    return MapSpec("image", "HU", "linear", HU_MIN + IMAGE_STEP_HU / 2, IMAGE_STEP_HU, 240)


def map_spec(name: str, bin_width: float) -> MapSpec:
    """Fixed-range uint8 storage of a texture map over grey levels 1..(HU_MAX-HU_MIN)/bin_width.

    Ranges are known in advance, so that maps are written in one pass (docs/method.md). Features of
    differences are small nearly everywhere; log1p gives small values most of the codes.
    """
    levels = math.ceil((HU_MAX - HU_MIN) / bin_width)
    ranges = {
        "Autocorrelation": ("grey level^2", "log1p", np.log1p(1.0), np.log1p(levels**2)),
        "JointAverage": ("grey level", "linear", 1.0, float(levels)),
        "Contrast": ("grey level^2", "log1p", 0.0, np.log1p((levels - 1) ** 2)),
        "DifferenceAverage": ("grey level", "log1p", 0.0, np.log1p(levels - 1)),
    }
    unit, transform, low, high = ranges[name]
    return MapSpec(name, unit, transform, float(low), float((high - low) / 255), 256)


@dataclasses.dataclass(frozen=True)
class About:
    """What a manifest of vertebrae holds beside fields and targets.

    Attributes:
      size: edge of the cubic box in voxels.
      spacing_mm: edge of a voxel.
      maps: one `MapSpec` per member of the pool, in `POOL` order.
      texture: settings of the texture maps (bin_width, kernel_radius, domain, engine, ...).
      label_scheme: scheme the masks were read with ("mixed" where the cohort names several).
      devices: DXA scanners by index, `UNKNOWN_DEVICE` last.
      stored: members of the pool that have a record; `maps` always covers the whole pool.
      bmd_mean, bmd_std: of `targets`.
    """

    size: int
    spacing_mm: float
    maps: tuple[MapSpec, ...]
    texture: dict[str, Any]
    label_scheme: str
    devices: tuple[str, ...]
    stored: tuple[str, ...]
    bmd_mean: float
    bmd_std: float

    def map_affine(self) -> np.ndarray:
        """float32[len(POOL), 2]: (scale, shift) from code to network input, by map id."""
        return np.array([spec.affine() for spec in self.maps], np.float32)


def about(manifest: Manifest) -> About:
    """The vertebrae's part of a manifest. Raises ValueError, KeyError or TypeError where it is
    invalid."""
    bmd, own = manifest.target("bmd"), manifest.about
    found = About(
        size=own["size"],
        spacing_mm=own["spacing_mm"],
        maps=tuple(MapSpec(**spec) for spec in own["maps"]),
        texture=own["texture"],
        label_scheme=own["label_scheme"],
        devices=manifest.column("device").choices,
        stored=tuple(name for name in manifest.record_keys if name in POOL),
        bmd_mean=bmd.mean,
        bmd_std=bmd.std,
    )
    if fault := _fault(found, manifest):
        raise ValueError(fault)
    return found


def _fault(about: About, manifest: Manifest) -> str | None:
    names = tuple(spec.name for spec in about.maps)
    if names != POOL:
        return f"maps {names}, expected {POOL}"
    if about.stored not in (POOL, IMAGE_ONLY):
        return f"stored {about.stored!r}"
    if manifest.fields != fields(about.size, about.stored):
        return f"size {about.size!r} with fields {manifest.fields!r}"
    if about.devices[-1:] != (UNKNOWN_DEVICE,):
        return f"devices {about.devices!r}, the last one must be {UNKNOWN_DEVICE!r}"
    if type(about.spacing_mm) not in (int, float) or not 0 < about.spacing_mm < 1000:
        return f"spacing_mm {about.spacing_mm!r}"
    if not isinstance(about.texture, dict):
        return f"texture {about.texture!r}"
    if not isinstance(about.label_scheme, str):
        return f"label_scheme {about.label_scheme!r}"
    missing = {*VERTEBRA_COLUMNS} - {column.name for column in manifest.columns}
    if missing or [t.name for t in manifest.targets] != [t.name for t in targets(0, 1)]:
        return f"columns missing: {sorted(missing)}, targets {manifest.targets!r}"
    return next((fault for spec in about.maps if (fault := spec_fault(spec))), None)


def manifest_of(
    *,
    size: int,
    spacing_mm: float,
    maps: tuple[MapSpec, ...],
    devices: Sequence[str],
    bmd_mean: float,
    bmd_std: float,
    texture: dict[str, Any],
    label_scheme: str,
    stored: Sequence[str] = POOL,
    shards: Sequence[dict[str, Any]],
    counts: dict[str, dict[str, int]],
    settings: dict[str, Any],
    code_version: str,
) -> Manifest:
    """The manifest of a folder of vertebrae; see `About` and `Manifest` for the arguments."""
    return Manifest(
        kind=KIND,
        fields=fields(size, stored),
        targets=targets(bmd_mean, bmd_std),
        columns=columns(devices),
        table=TABLE,
        shards=tuple(shards),
        counts=counts,
        settings=settings,
        about={
            "size": size,
            "spacing_mm": spacing_mm,
            "maps": [dataclasses.asdict(spec) for spec in maps],
            "texture": texture,
            "label_scheme": label_scheme,
        },
        code_version=code_version,
    )


def upgraded(content: dict[str, Any]) -> Manifest:
    """Translates a manifest that osteojax 0.1 wrote, which has no `kind` and means vertebrae.
    Raises KeyError or TypeError where `content` is not one."""
    known = {name: content[name] for name in _KEPT_OF_0_1}
    counts = {
        split: {("items" if name == "vertebrae" else name): n for name, n in own.items()}
        for split, own in content["counts"].items()
    }
    return manifest_of(
        **known,
        maps=tuple(MapSpec(**spec) for spec in content["maps"]),
        stored=content.get("stored", POOL),
        shards=[{"name": s["name"], "items": s["vertebrae"]} for s in content["shards"]],
        counts=counts,
    )


_KEPT_OF_0_1 = (
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


def table_fault(table: pd.DataFrame) -> str | None:
    """The first row whose `level` and `level_class` disagree, or None."""
    classes = {level: number for number, level in enumerate(LEVELS, start=1)}
    wrong = (table["level"].map(classes) != table["level_class"]).to_numpy()
    if not wrong.any():
        return None
    row = int(np.argmax(wrong))
    return f"line {row + 2}: level_class {table['level_class'].iloc[row]!r}"


@dataclasses.dataclass(frozen=True)
class Labels:
    """Targets and the DXA scanner as arrays, one entry per row of the table.

    Attributes:
      osteoporosis: i32[N], -1 where missing.
      bmd_g_cm2: f32[N], NaN where missing.
      level: i32[N], class 0-17.
      device: i32[N], index into `About.devices`; the unknown one where there is no DXA result.
    """

    osteoporosis: np.ndarray
    bmd_g_cm2: np.ndarray
    level: np.ndarray
    device: np.ndarray


def labels(rows: Rows) -> Labels:
    """The labels of every row of an opened folder."""
    device, unknown = rows.choices("device"), len(rows.manifest.column("device").choices) - 1
    found = rows.targets
    return Labels(
        osteoporosis=found["osteoporosis"],
        bmd_g_cm2=found["bmd"],
        level=found["level"],
        device=np.where(device < 0, unknown, device).astype(np.int32),
    )
