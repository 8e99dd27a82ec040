"""The body around the spine: muscles, fat, disks, canal, vessels, bowel, ribs, skin.

Structures along the spine are ellipses in the patient's axial plane, centred relative to the spine
curve and painted one over the other. HU at 120 kV are from common reference ranges.
"""

from __future__ import annotations

import itertools

import numpy as np

from data_prep.simulate.anatomy import (
    CANAL_DEPTH_MM,
    CANAL_WIDTH_MM,
    SPINE,
    Vertebra,
    capsule_distance,
)
from data_prep.simulate.grid import Grid, apply_axes, linear_weights
from data_prep.simulate.patients import Patient

FAT, MUSCLE, DISK, BLOOD, ORGAN, SAC, SKIN, AIR, GAS = -105, 52, 85, 44, 42, 22, 25, -1000, -850
LUNG = -830
LUMBAR_SHARE = {
    "T11": 0.05, "T12": 0.2, "L1": 0.4, "L2": 0.6, "L3": 0.8, "L4": 0.95, "L5": 1.0, "S1": 1.0,
}  # fmt: skip
"""Relative size of the psoas beside each level."""
EDGE_MM = 1.3
"""Width of the transition between tissues: about a voxel and a point-spread function."""
CORTICAL_HU = 1250.0


def _cover(volume: np.ndarray, distance: np.ndarray, hu: np.ndarray | float) -> None:
    """Paints `hu` over `volume` where `distance` (mm) is negative, with a soft edge, in place."""
    weight = np.clip(np.float32(0.5) - distance / np.float32(EDGE_MM), 0, 1)
    volume += weight * (np.asarray(hu, np.float32) - volume)


def _ellipse(x: np.ndarray, y: np.ndarray, radius_x, radius_y) -> np.ndarray:
    """Approximate signed distance to an ellipse in the axial plane, f32, mm."""
    norm = np.maximum(np.sqrt((x / radius_x) ** 2 + (y / radius_y) ** 2), 1e-3)
    return (1 - 1 / norm) * np.sqrt(x * x + y * y)


def _along(spine: dict[str, Vertebra], z: np.ndarray, values: list[float]) -> np.ndarray:
    """One value per vertebra of C7-S1, interpolated at heights z (mm), f32."""
    heights = [spine[level].centre_mm[2] for level in SPINE]
    return np.interp(z, heights[::-1], values[::-1]).astype(np.float32)


def _mottle(rng: np.random.Generator, shape: tuple[int, ...], cell: int) -> np.ndarray:
    """Smooth random field of SD 1, for fat between fibres and for heterogeneous organs."""
    coarse = [n // cell + 2 for n in shape]
    first, second, third = (
        linear_weights(np.arange(n) / cell, np.arange(c))
        for n, c in zip(shape, coarse, strict=True)
    )
    white = rng.standard_normal(coarse, dtype=np.float32)
    field = apply_axes((first, second, third), white)
    return field / field.std()


def paint_background(
    grid: Grid, spine: dict[str, Vertebra], patient: Patient, rng: np.random.Generator
) -> np.ndarray:
    """f32[slices, rows, columns] HU of the patient without bone and disks."""
    x, table_y, z = grid.patient_mm()
    centres = np.array([spine[level].centre_mm for level in SPINE])
    x = x - _along(spine, z, list(centres[:, 0]))
    y = table_y - _along(spine, z, list(centres[:, 1]))
    half_depth = _along(spine, z, [spine[level].depth_mm / 2 for level in SPINE])
    half_width = _along(spine, z, [spine[level].width_mm / 2 for level in SPINE])
    scale = spine["L3"].scale
    lumbar = _along(spine, z, [LUMBAR_SHARE.get(level, 0.0) for level in SPINE])
    canal_half = {level: CANAL_WIDTH_MM[level] / 2 for level in SPINE}
    atrophy = float(np.clip((patient.age - 50) / 40 + rng.normal(0, 0.2), 0, 1))
    subcutaneous = float(np.clip(rng.normal(24, 9), 8, 45))

    volume = np.full(grid.shape, FAT, np.float32)
    fibres = _mottle(rng, grid.shape, 3)
    muscle = MUSCLE - 14 * atrophy + (7 + 14 * atrophy) * fibres
    organ = ORGAN + 6 * fibres + (70 if patient.contrast else 0)
    _paint_organs(volume, (x, y, z), table_y, half_depth, organ, patient, rng)
    for side in (-1, 1):
        _cover(volume, _ellipse(x - side * 62, y - half_depth - 12, 17, 13), muscle)  # quadratus
        psoas = half_width + 3 + 13 * lumbar
        _cover(volume, _ellipse(x - side * psoas, y - 3, 4 + 15 * lumbar, 5 + 17 * lumbar), muscle)
        erector_y = half_depth + (36 - 3 * atrophy) * scale
        erector = _ellipse(x - side * 30 * scale, y - erector_y, 29 * scale, 21 * scale)
        _cover(volume, erector, muscle)
    _paint_lungs(volume, (x, y, z), half_width, half_depth, fibres, spine)
    _paint_vessels(volume, x, y, half_depth, patient, rng)
    sac_y = y - half_depth - CANAL_DEPTH_MM * scale / 2
    canal = _along(spine, z, [half * scale for half in canal_half.values()])
    _cover(volume, _ellipse(x, sac_y, canal, CANAL_DEPTH_MM * scale / 2), -60)
    sac = _along(spine, z, [min(half - 1.5, 8.5) * scale for half in canal_half.values()])
    _cover(volume, _ellipse(x, sac_y + 0.5, sac, 6.3 * scale), SAC)

    back = half_depth + 56 * scale + subcutaneous - 0.0022 * x * x - y
    inner = np.clip(0.5 - (back - 2.0) / EDGE_MM, 0, 1)
    volume += inner * (SKIN - volume)
    _cover(volume, back, AIR)
    return volume


def _paint_organs(volume, along_spine, table_y, half_depth, organ, patient: Patient, rng) -> None:
    """Kidneys, and bowel loops with gas, in place."""
    x, y, z = along_spine
    for side in (-1, 1):
        middle = rng.normal(25 + 8 * side, 12)
        across = np.sqrt((x - side * 66) ** 2 + ((z - middle) * 0.5) ** 2)
        kidney = _ellipse(across, y + 4, 27.0, 24.0)
        _cover(volume, kidney, organ + (60 if patient.contrast else -8))
    for _ in range(int(rng.integers(6, 11))):
        centre = rng.uniform((-75, 48, -140), (75, 85, 130))
        radius, gas_share = rng.uniform(9, 19), rng.uniform(-0.4, 1.0)
        loop_y = y + half_depth - 17 + centre[1]
        distance = np.sqrt((x - centre[0]) ** 2 + loop_y**2 + ((z - centre[2]) * 0.6) ** 2)
        _cover(volume, distance - radius, organ - 8)
        if gas_share > 0:  # gas rises, and its level is horizontal in a supine patient
            anterior = float(np.min(table_y + 0 * distance, where=distance < radius, initial=1e6))
            level = table_y - anterior - 2 * radius * gas_share
            _cover(volume, np.maximum(distance - radius + 2.5, level), GAS)


def _paint_lungs(volume, along_spine, half_width, half_depth, fibres, spine) -> None:
    """Paints, in place, both lungs beside and in front of the spine from T10's lower endplate up;
    the diaphragm rises to anterior. Heart and great vessels except the aorta are left out."""
    x, y, z = along_spine
    base = spine["T10"].centre_mm[2] - spine["T10"].height_mm / 2
    above = base + np.float32(0.7) * np.maximum(half_depth - 10 - y, 0) - z
    if above.min() > EDGE_MM:
        return
    chest = _ellipse(x, y + 28, 105.0, half_depth + 40)
    mediastinum = half_width + np.float32(4.0) - np.abs(x)
    outside = np.maximum(np.maximum(chest, above), mediastinum)
    _cover(volume, outside, LUNG + 25 * fibres)


def _paint_vessels(volume, x, y, half_depth, patient: Patient, rng) -> None:
    """Paints, in place, the inferior vena cava and, on the patient's left, the aorta, whose wall is
    calcified in old patients."""
    radius = float(np.clip(rng.normal(9.5 + 0.05 * (patient.age - 60), 1.0), 7.5, 15))
    front = -half_depth - radius - 3
    aorta = _ellipse(x - 9, y - front, radius, radius)
    blood = BLOOD + (rng.uniform(80, 140) if patient.contrast else 0)
    _cover(volume, aorta, blood)
    cava = _ellipse(x + 17, y + half_depth + 9, 12.0, 8.5)
    _cover(volume, cava, blood - (25 if patient.contrast else 0))
    load = np.clip((patient.age - 55) / 30 + rng.normal(0, 0.35), 0, 1.5)
    plaque = _mottle(rng, volume.shape, 6) - (2.6 - 0.8 * load)
    wall = np.abs(aorta) - 0.9
    _cover(volume, np.maximum(wall, -plaque * 2), 650)


def paint_disks(volume: np.ndarray, grid: Grid, spine: dict[str, Vertebra]) -> None:
    """Intervertebral disks between neighbouring endplates, in place."""
    for above, below in itertools.pairwise(SPINE):
        upper, lower = spine[above], spine[below]
        centre = (
            upper.centre_mm - upper.frame[2] * upper.height_mm / 2
            + lower.centre_mm + lower.frame[2] * lower.height_mm / 2
        ) / 2  # fmt: skip
        frame = _between(upper.frame, lower.frame)
        a, b = (upper.width_mm + lower.width_mm) / 4, (upper.depth_mm + lower.depth_mm) / 4
        half = np.array([a, b, upper.disk_mm / 2 + 4])
        box = grid.box(centre, frame, -half - 3, half + 3)
        if box is None:
            continue
        u, v, w = grid.frame_mm(box, centre, frame)
        flat = _ellipse(u, v, a, b)
        _cover(volume[box], np.maximum(flat, np.abs(w) - half[2]), DISK)


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """f64[3, 3] the frame half-way between two similar frames."""
    left, _, right = np.linalg.svd(first + second)
    return left @ right


def paint_ribs(volume: np.ndarray, grid: Grid, spine: dict[str, Vertebra]) -> None:
    """Ribs of T1-T12, from the costovertebral joint outwards and down, in place."""
    for level in (name for name in SPINE if name.startswith("T")):
        vertebra = spine[level]
        root = (vertebra.width_mm / 2 + 1, vertebra.depth_mm / 2 - 1, vertebra.height_mm * 0.28)
        length = 0.75 if level == "T12" else 1.2
        for side in (-1, 1):
            points = [
                (side * root[0], root[1], root[2]),
                (side * (root[0] + 26), root[1] + 24, root[2] - 8),
                (side * (root[0] + 26 + 40 * length), root[1] + 14, root[2] - 8 - 34 * length),
            ]
            for start, end in itertools.pairwise(points):
                _paint_rib(volume, grid, vertebra, start, end)


def _paint_rib(volume, grid: Grid, vertebra: Vertebra, start, end) -> None:
    """One straight piece of a rib: cortex round a marrow space, in place."""
    low, high = np.minimum(start, end) - 8, np.maximum(start, end) + 8
    box = grid.box(vertebra.centre_mm, vertebra.frame, low, high)
    if box is None:
        return
    coordinates = grid.frame_mm(box, vertebra.centre_mm, vertebra.frame)
    distance = capsule_distance(coordinates, start, end, 4.2 * vertebra.scale, (1.0, 1.0, 0.7))
    _cover(volume[box], distance, CORTICAL_HU * 0.55)
    _cover(volume[box], distance + 2.2, 150.0)
