"""Pictures of stripes as a user would bring them: PNG files and a table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.pictures.data import DIRECTIONS

EDGE = 16


def draw(direction: str, width_px: float, rng: np.random.Generator) -> np.ndarray:
    """uint8[EDGE, EDGE]: stripes of a width, anywhere, with noise."""
    phase = (np.arange(EDGE) + rng.uniform(0, 2 * width_px)) / width_px
    stripes = np.broadcast_to(np.where(np.floor(phase) % 2, 160.0, 90.0), (EDGE, EDGE))
    stripes = stripes if direction == "along" else stripes.T
    return np.clip(stripes + rng.normal(0, 10, (EDGE, EDGE)), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, patients: int = 12, seed: int = 0) -> Path:
    """Two pictures of each patient, the last without answers; returns the table."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        for side in ("left", "right"):
            direction, width_px = DIRECTIONS[rng.integers(2)], float(rng.uniform(1.5, 4))
            name = f"P{number:02d}-{side}"
            picture = sitk.GetImageFromArray(draw(direction, width_px, rng))
            sitk.WriteImage(picture, str(folder / f"{name}.png"))
            rows.append(
                {
                    "patient_id": f"P{number:02d}",
                    "picture_id": name,
                    "file": f"{name}.png",
                    "direction": direction,
                    "width_px": f"{width_px:.3f}",
                }
            )
    rows[-1] |= {"direction": "", "width_px": ""}
    with (folder / "pictures.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "pictures.csv"
