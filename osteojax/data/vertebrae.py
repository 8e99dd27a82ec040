"""The kind of data "vertebrae": a vertebra's box with its texture pool, mask and DXA result.

Records of each vertebra:

    meta                      UTF-8 JSON, the vertebra's row of `vertebrae.csv`
    image, Autocorrelation, JointAverage, Contrast, DifferenceAverage
                              uint8[D, H, W] codes (`MapSpec`); a folder for training with
                              data.textures="online" stores the image alone (`About.stored`)
    mask                      bool[3, D, H, W] as bits: [0] the vertebra, [1] inside the CT, [2] the
                              vertebral body, a part of [0]; folders of 0.1 and 0.2 lack plane 2

Axes of every volume, aligned with the vertebra: [0] inferior to superior, [1] anterior to
posterior, [2] the patient's right to left. D, H and W are of a box with its margin (`boxes.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from osteojax.data.boxes import BOXES, CUBE, REGIONS, shown_shape, shown_window
from osteojax.data.codes import MapSpec, spec_fault
from osteojax.data.schema import META, Field, Manifest, Rows, Target
from osteojax.data.soundness import is_count, is_number, is_positive
from osteojax.data.vertebra_columns import LEVELS, UNKNOWN_DEVICE, VERTEBRA_COLUMNS, columns
from osteojax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

KIND = "vertebrae"
ITEMS = "vertebrae"
TABLE = "vertebrae.csv"

POOL = ("image", "Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")
"""The texture pool (paper, section 2.1), in PyRadiomics' names; the position is the map id."""

IMAGE_ONLY = POOL[:1]
"""Members of the pool that a folder stores when training computes the maps."""

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


def record_keys(stored: Sequence[str] = POOL) -> tuple[str, ...]:
    """Names of the fields, in order, of a folder that stores these members of the pool."""
    return tuple(field.name for field in fields((1, 1, 1), stored))


PLANES = ("vertebra", "inside the CT", "body")
"""Planes of the record "mask"."""


def fields(
    shape: tuple[int, int, int], stored: Sequence[str], planes: int = len(PLANES)
) -> tuple[Field, ...]:
    """Fields of a box.

    Args:
      shape: (D, H, W) in voxels, with the margin.
      stored: `POOL` or `IMAGE_ONLY`.
      planes: of the mask; 2 in folders of 0.1 and 0.2, which lack the body.
    """
    volumes = [Field(name, "uint8", tuple(shape)) for name in stored]
    return (META, *volumes, Field("mask", "bool", (planes, *shape), "bits"))


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


Statistics = dict[str, tuple[tuple[float, float], ...]]
"""Region -> (mean, SD) of the transformed value of every member of the pool (`MapSpec`)."""


@dataclasses.dataclass(frozen=True)
class About:
    """What a manifest of vertebrae holds beside fields and targets.

    Attributes:
      size: names the voxel: 96 mm / size.
      spacing_mm: edge of a voxel.
      box: name of the box, a key of `boxes.BOXES`.
      shape: (D, H, W) of the stored box in voxels, with the margin.
      margin: voxels on every side that are stored beyond the shown window.
      has_body: whether masks have the plane of the body.
      maps: one `MapSpec` per member of the pool, in `POOL` order, with the statistics of "box".
      statistics: of the regions that the folder has measured, over the shown windows of the
        training split; folders of 0.1 and 0.2 have "box" only.
      texture: settings of the texture maps (bin_width, kernel_radius, domain, engine, ...).
      label_scheme: scheme the masks were read with ("mixed" where the cohort names several).
      devices: DXA scanners by index, `UNKNOWN_DEVICE` last.
      stored: members of the pool that have a record; `maps` always covers the whole pool.
      bmd_mean, bmd_std: of `targets`.
    """

    size: int
    spacing_mm: float
    box: str
    shape: tuple[int, int, int]
    margin: int
    has_body: bool
    maps: tuple[MapSpec, ...]
    statistics: Statistics
    texture: dict[str, Any]
    label_scheme: str
    devices: tuple[str, ...]
    stored: tuple[str, ...]
    bmd_mean: float
    bmd_std: float

    @property
    def shown(self) -> tuple[int, int, int]:
        """(D, H, W) of the window that the network sees, in voxels."""
        return shown_shape(self.shape, self.margin)

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The index of the shown window in a stored volume."""
        return shown_window(self.shape, self.margin)

    @property
    def centre(self) -> tuple[int, int, int]:
        """The voxel of the shown window at the centre of the vertebral body."""
        depth, height, width = (edge // 2 for edge in self.shown)
        return depth, height - round(BOXES[self.box].back_mm / self.spacing_mm), width

    def map_affine(self, region: str = "box") -> np.ndarray:
        """float32[len(POOL), 2]: (scale, shift) from code to network input, by map id, which makes
        z-scores with the statistics of a region (`boxes.REGIONS`).

        Raises:
          UserError: an unknown region, or one that an older folder has not measured.
        """
        if region not in REGIONS:
            raise UserError(f"data.statistics is {region!r}; choose one of {', '.join(REGIONS)}.")
        if region not in self.statistics:
            raise UserError(
                f"data.statistics={region}: the prepared folder has statistics of "
                f"{', '.join(self.statistics)} only, because an earlier version wrote it. Prepare "
                "the cohort again, or see whole boxes: the variant paper of a shipped config "
                "(FILE.py:paper)."
            )
        affines = [
            dataclasses.replace(spec, mean=mean, std=std).affine()
            for spec, (mean, std) in zip(self.maps, self.statistics[region], strict=True)
        ]
        return np.array(affines, np.float32)


def about(manifest: Manifest) -> About:
    """The vertebrae's part of a manifest. Raises ValueError, KeyError or TypeError where it is
    invalid."""
    bmd, own = manifest.target("bmd"), manifest.about
    maps = tuple(MapSpec(**spec) for spec in own["maps"])
    depth, height, width = own["shape"]
    regions = {
        region: tuple((mean, std) for mean, std in values)
        for region, values in own["statistics"].items()
    }
    found = About(
        size=own["size"],
        spacing_mm=own["spacing_mm"],
        box=own["box"],
        shape=(depth, height, width),
        margin=own["margin"],
        has_body=manifest.field("mask").shape == (len(PLANES), depth, height, width),
        maps=maps,
        statistics={"box": tuple((spec.mean, spec.std) for spec in maps), **regions},
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
    planes = len(PLANES) if about.has_body else len(PLANES) - 1
    if manifest.fields != fields(about.shape, about.stored, planes):
        return f"shape {about.shape!r} with fields {manifest.fields!r}"
    if about.box not in BOXES:
        return f"box {about.box!r}, known are {', '.join(BOXES)}"
    if not is_count(about.margin) or min(about.shown) <= 0:
        return f"margin {about.margin!r} of a box of {about.shape}"
    if about.devices[-1:] != (UNKNOWN_DEVICE,):
        return f"devices {about.devices!r}, the last one must be {UNKNOWN_DEVICE!r}"
    if type(about.spacing_mm) not in (int, float) or not 0 < about.spacing_mm < 1000:
        return f"spacing_mm {about.spacing_mm!r}"
    if not isinstance(about.texture, dict):
        return f"texture {about.texture!r}"
    if not isinstance(about.label_scheme, str):
        return f"label_scheme {about.label_scheme!r}"
    for region, values in about.statistics.items():
        sound = all(is_number(mean) and is_positive(std) for mean, std in values)
        if region not in REGIONS or len(values) != len(POOL) or not sound:
            return f"statistics of {region}: {values!r}"
    missing = {*VERTEBRA_COLUMNS} - {column.name for column in manifest.columns}
    if missing or [t.name for t in manifest.targets] != [t.name for t in targets(0, 1)]:
        return f"columns missing: {sorted(missing)}, targets {manifest.targets!r}"
    return next((fault for spec in about.maps if (fault := spec_fault(spec))), None)


def manifest_of(
    *,
    size: int,
    spacing_mm: float,
    shape: tuple[int, int, int],
    maps: tuple[MapSpec, ...],
    devices: Sequence[str],
    bmd_mean: float,
    bmd_std: float,
    texture: dict[str, Any],
    label_scheme: str,
    stored: Sequence[str] = POOL,
    box: str = CUBE,
    margin: int = 0,
    planes: int = len(PLANES),
    statistics: Statistics | None = None,
    shards: Sequence[dict[str, Any]],
    counts: dict[str, dict[str, int]],
    settings: dict[str, Any],
    code_version: str,
) -> Manifest:
    """The manifest of a folder of vertebrae; see `About`, `fields` and `Manifest` for the
    arguments. statistics: of the regions beside "box", whose statistics `maps` holds."""
    return Manifest(
        kind=KIND,
        fields=fields(shape, stored, planes),
        targets=targets(bmd_mean, bmd_std),
        columns=columns(devices),
        table=TABLE,
        shards=tuple(shards),
        counts=counts,
        settings=settings,
        about={
            "size": size,
            "spacing_mm": spacing_mm,
            "box": box,
            "shape": list(shape),
            "margin": margin,
            "maps": [dataclasses.asdict(spec) for spec in maps],
            "statistics": {
                region: [list(pair) for pair in values]
                for region, values in (statistics or {}).items()
            },
            "texture": texture,
            "label_scheme": label_scheme,
        },
        code_version=code_version,
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
