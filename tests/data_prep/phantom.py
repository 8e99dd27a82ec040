"""A spine of known geometry: elliptic bodies with pedicles and a spinous process along an arc.

Centres and axes are known by construction, so they are an oracle for the ROI's rules.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from osteojax.data.vertebrae import level_class

VERSE_OFFSET = 7
STEP_MM = 34.0


@dataclasses.dataclass(frozen=True)
class Phantom:
    """ct in HU, mask of VerSe ids, and per level the true centre and axes (superior, posterior,
    left) in LPS mm."""

    ct: sitk.Image
    mask: sitk.Image
    centre_mm: dict[str, np.ndarray]
    axes: dict[str, np.ndarray]


def spine(
    levels: tuple[str, ...] = ("L1", "L2", "L3"),
    spacing_mm: float = 2.0,
    radius_mm: float = 300.0,
    turn_degrees: float = 0.0,
    bodies_only: bool = False,
    seed: int = 0,
    bone_hu: float = 180.0,
) -> Phantom:
    """Levels from above downwards along an arc in the sagittal plane, turned about its own axis.

    Args:
      radius_mm: of the arc; the middle level stands upright.
      turn_degrees: every vertebra's posterior is turned this much about z, to the left.
    """
    turn = np.radians(turn_degrees)
    about_z = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    height_mm = STEP_MM * len(levels) + 40
    size = [round(n / spacing_mm) for n in (110, 130, height_mm)]
    origin = np.array([-55.0, -50.0, -height_mm / 2]) + spacing_mm / 2
    z, y, x = np.meshgrid(*(np.arange(n) * spacing_mm for n in size[::-1]), indexing="ij")
    place_mm = np.stack([x, y, z], axis=-1) + origin
    classes = np.zeros(size[::-1], np.uint8)
    centres, axes = {}, {}
    for i, level in enumerate(levels):
        angle = ((len(levels) - 1) / 2 - i) * STEP_MM / radius_mm
        centre = radius_mm * np.array([0, 1 - np.cos(angle), np.sin(angle)])
        superior = np.array([0.0, np.sin(angle), np.cos(angle)])
        posterior = np.array([0.0, np.cos(angle), -np.sin(angle)])
        frame = np.stack([superior, posterior, [1.0, 0.0, 0.0]]) @ about_z.T
        centres[level], axes[level] = about_z @ centre, frame
        inside = _vertebra((place_mm - centres[level]) @ frame.T, bodies_only)
        classes[inside] = level_class(level)
    hu = np.full(classes.shape, -1000.0)
    hu[(np.hypot(place_mm[..., 0], place_mm[..., 1] - 10) < 52)] = -90  # fat
    hu[(np.hypot(place_mm[..., 0], place_mm[..., 1] - 10) < 45)] = 40  # muscle
    hu[classes > 0] = bone_hu
    hu += np.random.default_rng(seed).normal(0, 10, hu.shape)
    ids = np.where(classes > 0, classes + VERSE_OFFSET, 0).astype(np.uint8)
    return Phantom(
        _image(np.rint(hu).astype(np.int16), spacing_mm, origin),
        _image(ids, spacing_mm, origin),
        centres,
        axes,
    )


def _vertebra(local_mm: np.ndarray, bodies_only: bool) -> np.ndarray:
    """bool[...] of f64[..., 3] coordinates superior, posterior, left of the body's centre."""
    up, back, left = np.moveaxis(local_mm, -1, 0)
    body = (np.abs(up) <= 12) & ((back / 15) ** 2 + (left / 21) ** 2 <= 1)
    if bodies_only:
        return body
    pedicles = (np.abs(up - 4) <= 4) & (np.abs(np.abs(left) - 12) <= 3) & (back > 5) & (back < 26)
    lamina = (np.abs(up) <= 6) & (np.abs(left) <= 15) & (back >= 24) & (back < 30)
    spinous = (np.abs(up + 3) <= 7) & (np.abs(left) <= 4) & (back >= 30) & (back < 52)
    return body | pedicles | lamina | spinous


def _image(values: np.ndarray, spacing_mm: float, origin: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([spacing_mm] * 3)
    image.SetOrigin(origin.tolist())
    return image


def class_mask(mask: sitk.Image) -> sitk.Image:
    """VerSe ids T1-L6 -> classes 1-18."""
    ids = sitk.GetArrayFromImage(mask).astype(int)
    classes = sitk.GetImageFromArray(np.where(ids > 0, ids - VERSE_OFFSET, 0).astype(np.uint8))
    classes.CopyInformation(mask)
    return classes


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    """Writes a CSV whose columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_scan(folder: Path, name: str, phantom: Phantom) -> dict[str, object]:
    """Writes CT and mask as NIfTI; returns the row of cohort.csv, paths relative to `folder`."""
    sitk.WriteImage(phantom.ct, str(folder / f"{name}_ct.nii.gz"))
    sitk.WriteImage(phantom.mask, str(folder / f"{name}_mask.nii.gz"))
    return {
        "patient_id": f"patient_{name}",
        "scan_id": name,
        "site": "A",
        "ct": f"{name}_ct.nii.gz",
        "mask": f"{name}_mask.nii.gz",
        "sex": "F",
    }
