"""What a prepared cohort is: `manifest.json`, `vertebrae.csv` and the shards it describes.

A prepared folder:

    manifest.json             this module's `Manifest`
    vertebrae.csv             one row per vertebra, in record order (`VERTEBRA_COLUMNS`)
    failures.csv              case, reason, remedy of what could not be used
    excluded.csv              scans left out because a column of the cohort says so
    settings.json             what `osteojax prepare` was called with; the same call resumes
    parts/                    a report per scan: what a rerun need not do again
    shards/pool-00000-of-00004.array_record

Each vertebra is `len(manifest.record_keys)` consecutive records of one shard, so that training
reads the two members of the pool it needs and nothing else (`record_position`):

    meta                      UTF-8 JSON, the vertebra's row of `vertebrae.csv`
    image, Autocorrelation, JointAverage, Contrast, DifferenceAverage
                              uint8[D, H, W] codes, C order (`MapSpec`); a folder for training
                              with data.textures="online" stores the image alone (`stored`)
    mask                      two bit planes, `numpy.packbits` of bool[2, D, H, W]:
                              [0] the vertebra, [1] inside the CT

Axes of every volume: [0] inferior to superior, [1] anterior to posterior, [2] the patient's right
to left, all along the vertebra's own axes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from osteojax.data.soundness import manifest_fault
from osteojax.errors import UserError
from osteojax.files import write_json

FORMAT = "osteojax-pool"
FORMAT_VERSION = 1

POOL = ("image", "Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")
"""The texture pool (paper, section 2.1), by PyRadiomics' own names; the order is the map id."""

IMAGE_ONLY = POOL[:1]
"""What a folder stores of the pool when training makes the maps itself."""

LEVELS = tuple([f"T{i}" for i in range(1, 13)] + [f"L{i}" for i in range(1, 7)])
"""Vertebral levels; the class of a level is its position here plus one (1-18)."""

SPLITS = ("train", "valid", "test", "external")

UNKNOWN_DEVICE = "unknown"
"""The device of a vertebra whose DXA scanner is not known; always the last entry of `devices`."""

HU_MIN, HU_MAX = -200.0, 1000.0
"""HU are clipped to [HU_MIN, HU_MAX) (docs/method.md)."""
IMAGE_STEP_HU = 5.0
"""Width of an image code. It divides the GLCM bin width, so codes keep every grey level."""

VERTEBRA_COLUMNS = (
    "patient_id",
    "scan_id",
    "site",
    "split",
    "level",  # "L1"
    "level_class",  # 1-18
    "device",  # name, "unknown", or empty where there is no DXA result
    "bmd_g_cm2",  # empty where there is no DXA result
    "t_score",
    "osteoporosis",  # 1, 0, or empty
    "sex",
    "age",
    "truncated",  # 1 where the mask touches the border of the CT
    "posterior_rule",  # "elements" or "header": where the posterior axis came from
    "axial_rule",  # "neighbours" or "header"
    "mean_hu",  # mean unclipped HU of the label's voxels inside the ROI, in the original CT
    "mask_volume_mm3",  # of the label in the original CT
    "slice_mm",  # distance of the original CT's slices (`OPTIONAL_COLUMNS`)
    "shard",  # file name
    "position",  # of the vertebra in its shard; its first record is position * len(record_keys)
)

OPTIONAL_COLUMNS = ("slice_mm",)
"""Columns that folders of earlier versions lack; they are read as empty."""


def level_class(level: str) -> int:
    """The class 1-18 of a level's name, T1 to L6. Raises KeyError for another name."""
    if level not in LEVELS:
        raise KeyError(f"{level!r} is not a vertebral level; levels are T1-T12 and L1-L6")
    return LEVELS.index(level) + 1


def record_keys(stored: tuple[str, ...] = POOL) -> tuple[str, ...]:
    """Keys of a vertebra's records, in order, in a folder that stores these members of the pool."""
    return ("meta", *stored, "mask")


def record_position(vertebra_position: int, key: str, keys: tuple[str, ...]) -> int:
    """The index in the shard of one record of a vertebra; keys: the folder's `record_keys`."""
    return vertebra_position * len(keys) + keys.index(key)


@dataclasses.dataclass(frozen=True)
class MapSpec:
    """How one member of the pool is stored, and how the network sees it.

    A value v (HU, grey levels, squared grey levels) is transformed, t = v or log1p(v); its code is
    floor((t - offset) / step + 0.5) in 0..codes-1; a code stands for t = offset + step * code. The
    network's input is (t - mean) / std with the training split's statistics, an affine function of
    the code, so that it costs one multiply-add on the device.

    Attributes:
      name: member of `POOL`.
      unit: of v.
      transform: "linear" or "log1p".
      offset, step, codes: quantisation of t.
      mean, std: of t over every voxel of the training split's vertebrae (f32, by map).
    """

    name: str
    unit: str
    transform: str
    offset: float
    step: float
    codes: int
    mean: float = 0.0
    std: float = 1.0

    def encode(self, values: np.ndarray) -> np.ndarray:
        """float[...] values in `unit` -> uint8[...] codes, clipped to the stored range."""
        t = np.log1p(values) if self.transform == "log1p" else np.asarray(values)
        codes = np.floor((t - self.offset) / self.step + 0.5)
        return np.clip(codes, 0, self.codes - 1).astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """uint8[...] codes -> float32[...] values in `unit`."""
        t = self.offset + self.step * codes.astype(np.float32)
        return (np.expm1(t) if self.transform == "log1p" else t).astype(np.float32)

    def affine(self) -> tuple[float, float]:
        """(scale, shift) with network input = scale * code + shift."""
        return self.step / self.std, (self.offset - self.mean) / self.std


def image_spec() -> MapSpec:
    """The HU image: 240 half-open codes of 5 HU from -200, decoded at their middle."""
    return MapSpec("image", "HU", "linear", HU_MIN + IMAGE_STEP_HU / 2, IMAGE_STEP_HU, 240)


def map_spec(name: str, bin_width: float) -> MapSpec:
    """Fixed-range uint8 storage of a texture map over grey levels 1..(HU_MAX-HU_MIN)/bin_width.

    Ranges are known in advance, so nothing has to be read twice to write it (docs/method.md).
    Features of differences are small nearly everywhere: log1p spends the codes where values are.
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
class Manifest:
    """Everything a reader of the shards must know. Stored as `manifest.json`.

    Attributes:
      size: edge of the cubic ROI in voxels.
      spacing_mm: edge of a voxel.
      maps: one `MapSpec` per member of the pool, in `POOL` order.
      devices: DXA devices by index, `UNKNOWN_DEVICE` last.
      bmd_mean, bmd_std: g/cm^2 over labelled training vertebrae; the one global affine of the
        BMD head. (0, 1) where the cohort has no labels.
      texture: settings of the texture maps (binWidth, kernelRadius, domain, engine, ...).
      shards: {"name": file under `shards/`, "vertebrae": how many} each, in record order.
      counts: split -> {"patients", "vertebrae", "labelled"}.
      settings: the other settings of `osteojax prepare`.
      label_scheme: scheme the masks were read with ("mixed" where the cohort names several).
      code_version: version of osteojax that wrote the folder.
      stored: members of the pool that have a record, `POOL` or `IMAGE_ONLY`; statistics are of
        the whole pool in either case.
    """

    size: int
    spacing_mm: float
    maps: tuple[MapSpec, ...]
    devices: tuple[str, ...]
    bmd_mean: float
    bmd_std: float
    texture: dict[str, Any]
    shards: tuple[dict[str, Any], ...]
    counts: dict[str, dict[str, int]]
    settings: dict[str, Any]
    label_scheme: str
    code_version: str
    stored: tuple[str, ...] = POOL
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def num_vertebrae(self) -> int:
        return sum(shard["vertebrae"] for shard in self.shards)

    @property
    def record_keys(self) -> tuple[str, ...]:
        return record_keys(self.stored)

    def map_affine(self) -> np.ndarray:
        """float32[len(POOL), 2]: (scale, shift) from code to network input, by map id."""
        return np.array([spec.affine() for spec in self.maps], np.float32)

    def save(self, directory: str | Path) -> None:
        """Writes `manifest.json`, atomically."""
        write_json(Path(directory) / "manifest.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, directory: str | Path) -> Manifest:
        """Reads `manifest.json`. Raises UserError where it is absent, damaged or too new."""
        path = Path(directory) / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"{directory}: no manifest.json. Point --data at a folder that `osteojax prepare` "
                "wrote and finished; rerun prepare if it was interrupted."
            )
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.get("format") != FORMAT:
                raise UserError(f"{path}: format is {fields.get('format')!r}, expected {FORMAT!r}.")
            if fields["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path}: format version {fields['format_version']}, this osteojax reads "
                    f"{FORMAT_VERSION}. Prepare the cohort again with this version."
                )
            fields["maps"] = tuple(MapSpec(**spec) for spec in fields["maps"])
            fields["devices"] = tuple(fields["devices"])
            fields["shards"] = tuple(fields["shards"])
            fields["stored"] = tuple(fields.get("stored", POOL))
            manifest = cls(**fields)
            if fault := manifest_fault(manifest):
                raise ValueError(fault)
            return manifest
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}: not a manifest of this version ({error}). Prepare the cohort again."
            ) from error
