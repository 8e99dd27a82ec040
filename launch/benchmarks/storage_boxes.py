"""The vertebrae that the storage benchmark stores, simulated or from a prepared folder."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.simulate.cohort_writer import scan_paths, simulate_cohort
from data_prep.simulate.patients import Settings
from data_prep.vertebrae.pool import RoiSettings, roi_planes
from data_prep.vertebrae.roi import extract_rois
from data_prep.vertebrae.texture import TextureSettings, texture_pool
from data_prep.vertebrae.verify import load_case
from osteojax.data.codes import MapSpec
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import HU_MAX, HU_MIN, POOL


@dataclasses.dataclass(frozen=True)
class Box:
    """One vertebra before its maps are computed.

    Attributes:
      codes: uint8[D, H, W] image codes.
      hu: float32[D, H, W] clipped HU, or None where only codes are known.
      planes: the mask record, as stored.
      training: whether it is of the training split, by whose SD errors are divided.
    """

    codes: np.ndarray
    hu: np.ndarray | None
    planes: bytes
    training: bool


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Vertebrae of one cohort.

    Attributes:
      name: "simulated" or "prepared folder".
      shape: (D, H, W) of a box in voxels.
      texture: settings of the maps.
      specs: uint8 storage of the pool's members, in `POOL` order.
      boxes: the vertebrae; 14 MB each at 96^3 with HU.
    """

    name: str
    shape: tuple[int, int, int]
    texture: TextureSettings
    specs: tuple[MapSpec, ...]
    boxes: tuple[Box, ...]

    def pools(self) -> Iterator[tuple[Box, dict[str, np.ndarray]]]:
        """Each vertebra with its exact pool, float32[D, H, W] by name in the maps' units."""
        image = self.specs[0]
        for box in self.boxes:
            mask = None
            if self.texture.domain == "vertebra":
                bits = np.unpackbits(np.frombuffer(box.planes, np.uint8))
                mask = bits[: box.codes.size].reshape(box.codes.shape).astype(bool)
            maps = texture_pool(box.codes, mask, self.texture)
            yield box, {"image": image.decode(box.codes) if box.hu is None else box.hu, **maps}


def simulated_boxes(size: int, count: int) -> Boxes:
    """The first `count` vertebrae of the simulated cohort of seed 0, with default texture settings.

    The cohort is that of `osteojax simulate`: up to four sites, 1.5 mm in plane, T12-L5.
    """
    patients = math.ceil(count / len(Settings().levels))
    settings = Settings(sites=Settings().sites[:patients])  # every site has a patient
    roi_settings = RoiSettings(size, True, TextureSettings())
    image = roi_settings.map_specs()[0]
    boxes: list[Box] = []
    with tempfile.TemporaryDirectory(prefix="osteojax-storage-") as folder:
        for patient in simulate_cohort(folder, settings, patients):
            if len(boxes) >= count:
                break
            ct, mask = scan_paths(Path(folder), patient.scan_id)
            images = load_case(ct, mask, "verse", patient.scan_id)
            for roi in extract_rois(*images, roi_settings.grid, patient.scan_id):
                hu = np.clip(roi.hu, HU_MIN, np.nextafter(np.float32(HU_MAX), np.float32(0)))
                planes = np.packbits(roi_planes(roi)).tobytes()
                boxes.append(Box(image.encode(roi.hu), hu, planes, training=True))
    specs = roi_settings.map_specs()
    shape, texture = roi_settings.grid.shape, roi_settings.texture
    return Boxes("simulated", shape, texture, specs, tuple(boxes[:count]))


def prepared_boxes(directory: Path, count: int) -> Boxes:
    """`count` vertebrae (or all there are), evenly spread over a folder of `osteojax prepare`.

    Of the image only codes are stored, so its uint8 error is not known and not reported.
    """
    cohort = PreparedCohort(directory)
    rows = np.unique(np.linspace(0, len(cohort) - 1, min(count, len(cohort))).astype(int))
    training = cohort.table["split"].to_numpy()[rows] == "train"
    if not training.any():
        training[:] = True
    boxes: list[Box] = []
    for row, own in zip(rows, training, strict=True):
        codes = cohort.members(int(row), [POOL[0]])[0]
        boxes.append(Box(codes, None, cohort.records(int(row), ["mask"])[0], bool(own)))
    about = cohort.about
    texture = TextureSettings(**about.texture)
    return Boxes("prepared folder", about.shape, texture, about.maps, tuple(boxes))
