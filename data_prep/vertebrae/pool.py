"""Makes the stored texture pool of vertebra ROIs: uint8 codes of the image and of its maps.

There are two functions, because they run in different places. `image_codes` runs on CPU workers.
`map_codes` takes ROIs of several cases together, which keeps an accelerator busy; if there is one,
`LateMaps` calls it when the scans of a shard are read.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_prep.records import row_records
from data_prep.vertebrae.roi import Roi
from data_prep.vertebrae.texture import MAPS, TextureSettings, texture_pools
from data_prep.workers import accelerator_here
from osteojax.data.boxes import BOXES, CUBE, REGIONS, BoxGrid, shown_window
from osteojax.data.codes import MapSpec
from osteojax.data.vertebrae import (
    HU_MAX,
    HU_MIN,
    IMAGE_ONLY,
    POOL,
    fields,
    image_spec,
    map_spec,
)
from osteojax.errors import UserError

FIELD_OF_VIEW_MM = 96.0
SIZES = (96, 64, 32)
CODES = 256

BATCH_VOXELS = {"cpu": 2**20, "accelerator": 2**24}
"""Number of voxels whose maps are made together on CPU and accelerator: 1 and 18 ROIs at 96^3. A
voxel takes about 50 bytes of host memory (four float32 maps, a copy, and buffers for encoding), so
0.05 and 0.9 GB."""


@dataclasses.dataclass(frozen=True)
class RoiSettings:
    """Settings that determine a scan's records.

    Attributes:
      size: names the voxel: `FIELD_OF_VIEW_MM` / size.
      keep_truncated: keep vertebrae whose mask touches the CT's border.
      texture: settings of the maps.
      stored: members of the pool that are stored, `POOL` or `IMAGE_ONLY`.
      box: name of the box, a key of `boxes.BOXES`.
      ignore_labels: numbers of masks that are read as background.
    """

    size: int
    keep_truncated: bool
    texture: TextureSettings
    stored: tuple[str, ...] = POOL
    box: str = CUBE
    ignore_labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        levels = (HU_MAX - HU_MIN) / self.texture.bin_width
        if levels != round(levels):  # the stored ranges of the maps assume whole levels
            raise UserError(
                f"--bin-width {self.texture.bin_width:g}: must divide the {HU_MAX - HU_MIN:g} HU "
                "of the image: 5, 10, 15, 20, 25, 30, 40, 50, ..."
            )

        dense_boxes = not self.masked and self.texture.patch_stride is None
        if self.stored != POOL and not dense_boxes:
            raise UserError(
                "--store image: training makes dense maps of whole boxes. Leave --texture-domain "
                "and --patch-stride at their defaults, or store the pool."
            )

    @property
    def spacing_mm(self) -> float:
        return FIELD_OF_VIEW_MM / self.size

    @property
    def grid(self) -> BoxGrid:
        """The stored voxels."""
        return BOXES[self.box].grid(self.spacing_mm)

    @property
    def masked(self) -> bool:
        """Whether every member of the pool, also the image, is 0 outside the vertebra."""
        return self.texture.domain == "vertebra"

    def map_specs(self) -> tuple[MapSpec, ...]:
        """How the pool's members are stored, in `POOL` order, without statistics."""
        return (image_spec(), *(map_spec(name, self.texture.bin_width) for name in MAPS))


def image_codes(roi: Roi, settings: RoiSettings) -> np.ndarray:
    """The image of one ROI as stored: uint8[D, H, W]."""
    codes = image_spec().encode(roi.hu)
    return np.where(roi.mask, codes, np.uint8(0)) if settings.masked else codes


def map_codes(
    images: np.ndarray, masks: np.ndarray, settings: RoiSettings
) -> dict[str, np.ndarray]:
    """The stored maps of some ROIs; a ROI's codes do not depend on the other ROIs.

    Args:
      images: uint8[N, D, H, W] of `image_codes`.
      masks: bool[N, D, H, W], the vertebrae.

    Returns:
      uint8[N, D, H, W] for each of `MAPS`.

    Raises:
      UserError: the texture engine is not installed.
    """
    size = batch_size(settings)
    codes = {name: np.empty_like(images) for name in MAPS}
    for start in range(0, len(images), size):
        batch = slice(start, start + size)
        chosen = np.arange(len(images))[batch]
        if on_accelerator(settings):  # the last batch is padded, so that one program serves all
            chosen = np.resize(chosen, size)
        inside = masks[chosen]
        maps = texture_pools(images[chosen], inside if settings.masked else None, settings.texture)
        for spec in settings.map_specs()[1:]:
            own = spec.encode(maps[spec.name][: len(codes[spec.name][batch])])
            codes[spec.name][batch] = own * inside[: len(own)] if settings.masked else own
    return codes


def encode_vertebra(codes: dict[str, np.ndarray], planes: np.ndarray) -> list[bytes]:
    """The records of one vertebra, with an empty meta record.

    Args:
      codes: member of `POOL` -> uint8[D, H, W], for the members that are stored.
      planes: bool[3, D, H, W], the vertebra, the inside of the CT, the body.
    """
    stored = [name for name in POOL if name in codes]
    _, depth, height, width = planes.shape
    return row_records(fields((depth, height, width), stored), codes | {"mask": planes})


@dataclasses.dataclass(frozen=True)
class LateMaps:
    """A `Completion`: makes the maps of vertebrae whose image and mask are already stored."""

    settings: RoiSettings

    def batch_size(self) -> int:
        return batch_size(self.settings)

    def complete(self, batch: list[list[bytes]]) -> list[tuple[list[bytes], dict[str, np.ndarray]]]:
        """Final records, and the histogram of each member of the pool."""
        _, image, mask = fields(self.settings.grid.shape, IMAGE_ONLY)
        images = np.stack([image.decode(records[1]) for records in batch])
        planes = np.stack([mask.decode(records[-1]) for records in batch])
        codes = {"image": images} | map_codes(images, planes[:, 0], self.settings)
        completed = []
        for i in range(len(batch)):
            stored = {name: codes[name][i] for name in self.settings.stored}
            own = {name: codes[name][i] for name in POOL}
            counts = histograms(own, planes[i], self.settings.grid.margin)
            completed.append((encode_vertebra(stored, planes[i]), counts))
        return completed


def batch_size(settings: RoiSettings) -> int:
    """Number of ROIs that are processed together."""
    place = "accelerator" if on_accelerator(settings) else "cpu"
    return max(1, BATCH_VOXELS[place] // math.prod(settings.grid.shape))


def on_accelerator(settings: RoiSettings) -> bool:
    """Whether this process makes maps on an accelerator."""
    return settings.texture.engine == "jax" and accelerator_here()


def roi_planes(roi: Roi) -> np.ndarray:
    """The mask record of a ROI: bool[3, D, H, W]."""
    return np.stack([roi.mask, roi.valid, roi.body])


def histograms(
    codes: dict[str, np.ndarray], planes: np.ndarray, margin: int
) -> dict[str, np.ndarray]:
    """How often each code occurs in each region of a vertebra's shown window.

    Args:
      codes: member of `POOL` -> uint8[D, H, W].
      planes: bool[3, D, H, W], the mask record.
      margin: voxels around the shown window.

    Returns:
      `histogram_name` -> int64[CODES].
    """
    _, depth, height, width = planes.shape
    shown = shown_window((depth, height, width), margin)
    regions = {"vertebra": planes[0][shown], "body": planes[2][shown]}
    counts = {}
    for name, volume in codes.items():
        for region in REGIONS:
            own = volume[shown]
            voxels = own.ravel() if region == "box" else own[regions[region]]
            counts[histogram_name(name, region)] = np.bincount(voxels, minlength=CODES)
    return counts


def histogram_name(member: str, region: str) -> str:
    """Of a member of `POOL` in one of `REGIONS`, among a report's histograms."""
    return f"{member} of {region}"
