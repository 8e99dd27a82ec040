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
from pathlib import Path
from typing import Any

import numpy as np

from osteojax.data.codes import MapSpec
from osteojax.data.soundness import manifest_fault
from osteojax.data.vertebrae import POOL, record_keys
from osteojax.errors import UserError
from osteojax.files import write_json

FORMAT = "osteojax-pool"
FORMAT_VERSION = 1

SPLITS = ("train", "valid", "test", "external")


def record_position(vertebra_position: int, key: str, keys: tuple[str, ...]) -> int:
    """The index in the shard of one record of a vertebra; keys: the folder's `record_keys`."""
    return vertebra_position * len(keys) + keys.index(key)


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
