"""Sizes, curvature and shape of vertebrae.

There are two frames of reference, both in millimetres. The patient's is LPS: x to the left, y to
posterior, z to superior. A vertebra's has its origin at the centre of its body: u to the left, v to
posterior, w to superior.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from data_prep.simulate.patients import Patient

SIZES_MM = {
    # width, depth, height of the body, height of the disk below: rounded from published CT and
    # cadaver means (L5: Zhou et al. 2000 and later CT series; T1-L4: Panjabi et al. 1991, 1992,
    # with heights raised by 15%, as CT of living people shows; C7: Panjabi et al. 1991).
    "C7": (23.5, 16.5, 14.5, 4.0),
    "T1": (26.0, 18.0, 16.5, 3.5),
    "T2": (26.0, 20.0, 18.0, 3.0),
    "T3": (25.5, 22.0, 18.5, 3.0),
    "T4": (25.5, 23.0, 19.0, 3.0),
    "T5": (26.0, 24.0, 19.5, 3.0),
    "T6": (27.0, 25.5, 20.5, 3.5),
    "T7": (28.5, 26.5, 21.0, 4.0),
    "T8": (30.0, 27.5, 21.5, 4.5),
    "T9": (31.5, 28.5, 22.5, 4.5),
    "T10": (33.0, 29.5, 23.5, 5.0),
    "T11": (35.5, 30.5, 24.5, 5.5),
    "T12": (39.0, 31.5, 26.0, 6.5),
    "L1": (41.5, 32.5, 27.0, 8.0),
    "L2": (43.5, 33.5, 27.5, 9.5),
    "L3": (45.5, 34.0, 28.0, 10.5),
    "L4": (47.5, 34.5, 28.0, 11.0),
    "L5": (50.0, 34.5, 28.0, 9.5),
    "S1": (50.0, 32.0, 28.0, 3.0),
}
TILT_DEGREES = {
    # Angle by which the superior axis of a body leans to anterior: kyphosis above, lordosis below.
    # T3-T12 bend by 34 degrees with the apex at T7 (37 in Bernhardt and Bridwell 1989).
    "C7": 27.0, "T1": 28.0, "T2": 25.0, "T3": 21.5, "T4": 17.5, "T5": 12.5, "T6": 7.0, "T7": 1.0,
    "T8": -4.5, "T9": -9.0, "T10": -11.0, "T11": -12.5, "T12": -12.5, "L1": -10.0, "L2": -6.0,
    "L3": 1.0, "L4": 10.0, "L5": 22.0, "S1": 38.0,
}  # fmt: skip
WEDGE_MM = {"L4": 1.0, "L5": 4.0, "S1": 5.0}
"""Anterior minus posterior height of the body."""
TRANSVERSE_REACH_MM = {
    # Half the width over both transverse processes (Panjabi et al. 1991, 1992).
    "C7": 33.0, "T1": 37.0, "T2": 34.0, "T3": 30.5, "T4": 29.5, "T5": 30.0, "T6": 30.0, "T7": 29.5,
    "T8": 29.0, "T9": 28.0, "T10": 27.0, "T11": 24.0, "T12": 23.0, "L1": 34.0, "L2": 38.0,
    "L3": 43.0, "L4": 41.0, "L5": 42.0, "S1": 46.0,
}  # fmt: skip
PEDICLE_WIDTH_MM = {
    # Zindrick et al. 1987.
    "C7": 6.5, "T1": 7.9, "T2": 7.0, "T3": 5.6, "T4": 4.9, "T5": 4.7, "T6": 5.2, "T7": 5.3,
    "T8": 5.9, "T9": 6.0, "T10": 6.5, "T11": 7.5, "T12": 7.8, "L1": 7.5, "L2": 8.2, "L3": 9.8,
    "L4": 12.0, "L5": 15.5, "S1": 18.0,
}  # fmt: skip
CANAL_WIDTH_MM = {
    # Narrow in the middle of the thoracic spine (Panjabi et al. 1991); elsewhere one width.
    "C7": 24.5, "T1": 21.5, "T2": 19.5, "T3": 18.0, "T4": 17.0, "T5": 17.0, "T6": 17.0, "T7": 17.5,
    "T8": 18.5, "T9": 20.0, "T10": 23.0, "T11": 23.0, "T12": 23.0, "L1": 23.0, "L2": 23.0,
    "L3": 23.0, "L4": 23.0, "L5": 23.0, "S1": 23.0,
}  # fmt: skip
CANAL_DEPTH_MM = 16.0
SPINOUS_DROP_MM = {
    # How far the spinous process points down; those of T5-T9 cover the one below.
    "C7": 6.0, "T1": 10.0, "T2": 14.0, "T3": 18.0, "T4": 22.0, "T5": 25.0, "T6": 27.0, "T7": 28.0,
    "T8": 28.0, "T9": 26.0, "T10": 22.0, "T11": 16.0, "T12": 12.0, "L1": 9.0, "L2": 9.0, "L3": 9.0,
    "L4": 9.0, "L5": 9.0, "S1": 9.0,
}  # fmt: skip
SEX_SCALE = {"F": 0.95, "M": 1.06}
SIZE_SD = 0.045
"""SD of the linear size within a sex, relative to its mean."""
CORTEX_MM = 0.48
"""Thickness of the body's cortical shell and of its endplates."""

SPINE = tuple(SIZES_MM)
"""C7 to S1. C7 and S1 are rendered as neighbours of T1 and L5, and never labelled."""
UPPER_SPINE = SPINE[: SPINE.index("T9")]


@dataclasses.dataclass(frozen=True)
class Vertebra:
    """One vertebra in place. Millimetres.

    Attributes:
      centre_mm: f64[3] of the body, patient LPS.
      frame: f64[3, 3], rows u, v, w in patient LPS.
      width_mm, depth_mm, height_mm: of the body.
      wedge_mm: anterior minus posterior height.
      crush: share of the anterior height lost to a wedge fracture.
      disk_mm: height of the disk below.
      cortex_mm: thickness of the cortical shell.
      scale: linear size relative to the tables above.
    """

    level: str
    centre_mm: np.ndarray
    frame: np.ndarray
    width_mm: float
    depth_mm: float
    height_mm: float
    wedge_mm: float
    crush: float
    disk_mm: float
    cortex_mm: float
    scale: float

    @property
    def canal_centre_v_mm(self) -> float:
        return self.depth_mm / 2 + CANAL_DEPTH_MM * self.scale / 2


def _rotation(degrees: float, axis: int) -> np.ndarray:
    """f64[3, 3] rotation about a patient axis (0 x, 1 y, 2 z)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def place_spine(patient: Patient, rng: np.random.Generator) -> dict[str, Vertebra]:
    """C7 to S1 of a patient, the body of L3 at the origin.

    Lordosis and kyphosis depend on the level and are scaled by a factor per patient. There is a
    slight scoliosis, a small rotation of the patient on the table, and a small independent tilt of
    each body (oblique endplates).
    """
    scale = SEX_SCALE[patient.sex] * float(np.exp(SIZE_SD * patient.size_z))
    curvature = float(np.clip(rng.normal(1.0, 0.22), 0.4, 1.6))
    scoliosis, phase = rng.normal(0, 3.5), rng.uniform(0, 2 * np.pi)
    turn = _rotation(rng.normal(0, 4), 2) @ _rotation(rng.normal(0, 2), 1)
    turn = turn @ _rotation(rng.normal(0, 2.5), 0)
    cortex = CORTEX_MM * float(np.exp(0.2 * patient.cortex_z))

    frames, sizes = {}, {}
    upper_rng = rng.spawn(1)[0]  # draws below T9 do not depend on whether levels above exist
    for index, level in enumerate(SPINE, start=-SPINE.index("T9")):
        level_rng = upper_rng if level in UPPER_SPINE else rng
        # A positive rotation about x brings the superior axis to anterior.
        sagittal = TILT_DEGREES[level] * curvature + level_rng.normal(0, 1.2)
        coronal = scoliosis * np.sin(2 * np.pi * index / 9 + phase) + level_rng.normal(0, 1.0)
        matrix = turn @ _rotation(coronal, 1) @ _rotation(sagittal, 0)
        frames[level] = matrix.T  # rows: images of the patient's x, y, z
        sizes[level] = np.array(SIZES_MM[level]) * scale * np.exp(level_rng.normal(0, 0.02, 4))

    axis = {level: frames[level][2] for level in SPINE}
    centres = {SPINE[0]: np.zeros(3)}
    for above, below in itertools.pairwise(SPINE):
        down = sizes[above][2] / 2 * axis[above] + sizes[below][2] / 2 * axis[below]
        down = down + sizes[above][3] * (axis[above] + axis[below]) / 2
        centres[below] = centres[above] - down
    return {
        level: Vertebra(
            level=level,
            centre_mm=centres[level] - centres["L3"],
            frame=frames[level],
            width_mm=float(sizes[level][0]),
            depth_mm=float(sizes[level][1]),
            height_mm=float(sizes[level][2]),
            wedge_mm=WEDGE_MM.get(level, 0.0) * scale,
            crush=0.35 if level == patient.fractured_level else 0.0,
            disk_mm=float(sizes[level][3]),
            cortex_mm=cortex,
            scale=scale,
        )
        for level in SPINE
    }


def smooth_maximum(a: np.ndarray, b: np.ndarray, radius_mm: float) -> np.ndarray:
    """Maximum of two signed distances with a rounded edge."""
    overlap = np.maximum(radius_mm - np.abs(a - b), 0) / radius_mm
    return np.maximum(a, b) + overlap * overlap * (radius_mm / 4)


def body_distance(u: np.ndarray, v: np.ndarray, w: np.ndarray, shape: Vertebra) -> np.ndarray:
    """Approximate signed distance to the surface of a vertebral body, negative inside.

    A superellipse with a concave posterior wall, narrower at the waist, between two concave
    endplates.

    Args:
      u, v, w: f32, broadcastable: the vertebra's own coordinates, mm.

    Returns:
      f32, mm.
    """
    half_height = shape.height_mm / 2
    waist = 1 - 0.09 * np.clip(1 - (w / half_height) ** 2, 0, 1)
    a, b = shape.width_mm / 2 * waist, shape.depth_mm / 2 * waist
    dent = 3.0 * shape.scale * np.exp(-((u / (0.42 * a)) ** 2))
    v_wall = np.where(v > 0, v + dent * np.clip(v / b, 0, 1), v)
    x, y = np.abs(u) / a, np.abs(v_wall) / b
    norm = np.maximum((x**2.4 + y**2.4) ** np.float32(1 / 2.4), 1e-3)
    side = (1 - 1 / norm) * np.sqrt(u * u + v_wall * v_wall)

    radial = np.minimum(x * x + y * y, 1)
    forward = np.clip(-v / b, -1, 1)  # 1 at the anterior wall
    half = half_height - 1.8 * shape.scale * (1 - radial) + shape.wedge_mm / 4 * forward
    lost = shape.crush * shape.height_mm * np.clip(0.5 + 0.6 * forward, 0, 1)
    top = w - (half - lost)  # a fracture lowers the upper endplate
    bottom = -w - half
    return smooth_maximum(side, np.maximum(top, bottom), 2.5)


def capsule_distance(
    coordinates: tuple[np.ndarray, np.ndarray, np.ndarray],
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    radius_mm: float,
    flatten: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Signed distance to a capsule from `start` to `end`, f32, mm.

    Args:
      flatten: factors on the coordinates; 0.4 along w makes the section 2.5 times as tall as wide.
    """
    delta = [(e - s) * f for s, e, f in zip(start, end, flatten, strict=True)]
    offset = [
        (c - np.float32(s)) * np.float32(f)
        for c, s, f in zip(coordinates, start, flatten, strict=True)
    ]
    length = max(sum(d * d for d in delta), 1e-6)
    along = sum(o * np.float32(d / length) for o, d in zip(offset, delta, strict=True))
    along = np.clip(along, 0, 1)
    squared = sum((o - along * np.float32(d)) ** 2 for o, d in zip(offset, delta, strict=True))
    return np.sqrt(squared) - np.float32(radius_mm)


def pedicle_offset_mm(shape: Vertebra) -> float:
    """Distance from the midplane to the axis of a pedicle."""
    pedicle, canal = PEDICLE_WIDTH_MM[shape.level], CANAL_WIDTH_MM[shape.level]
    return (canal + pedicle) * shape.scale / 2


def posterior_extent_mm(shape: Vertebra) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) f64[3] corners, in the vertebra's own frame, around its posterior elements."""
    s = shape.scale
    reach = TRANSVERSE_REACH_MM[shape.level] * s + 6
    bottom = -shape.height_mm / 2 - shape.disk_mm - 16 * s
    if shape.level in UPPER_SPINE:  # the long spinous process ends below the disk
        bottom = min(bottom, -(SPINOUS_DROP_MM[shape.level] + 16) * s)
    low = (-reach, shape.depth_mm / 2 - 9 * s, bottom)
    high = (reach, shape.depth_mm / 2 + 52 * s, shape.height_mm / 2 + 14 * s)
    return np.array(low), np.array(high)


def posterior_distance(u: np.ndarray, v: np.ndarray, w: np.ndarray, shape: Vertebra) -> np.ndarray:
    """Signed distance to pedicles, laminae, articular, transverse and spinous processes, f32, mm.

    Symmetric about the midplane; the spinal canal is left open.
    """
    s = shape.scale
    wall, canal_half = shape.depth_mm / 2, CANAL_WIDTH_MM[shape.level] * s / 2
    depth, pedicle = CANAL_DEPTH_MM * s, PEDICLE_WIDTH_MM[shape.level] * s
    half = shape.height_mm / 2
    reach = TRANSVERSE_REACH_MM[shape.level] * s
    thoracic = shape.level.startswith("T")
    drop = SPINOUS_DROP_MM[shape.level]
    side = canal_half + pedicle / 2
    # Capsules: start, end, radius, flattening; lengths are s times those (mm) at scale 1.
    parts = [
        ((side, wall - 5 * s, 0.2 * half), (side, wall + 0.6 * depth, 0.15 * half), pedicle / 2,
         (1.0, 1.0, pedicle / (15 * s))),
        ((canal_half + 3 * s, wall + 0.75 * depth, 0.0), (0.0, wall + depth + 4 * s, -5 * s),
         3.5 * s, (1.0, 1.0, 0.36)),
        ((0.0, wall + depth + 5 * s, -5 * s), (0.0, wall + depth + 27 * s, (-5 - drop) * s),
         3.2 * s, (1.0, 1.0, 0.34)),
        ((side, wall + 0.45 * depth, 0.2 * half),
         (reach, wall + (16 if thoracic else 10) * s, 0.25 * half), 3.7 * s, (1.0, 1.0, 0.65)),
        ((canal_half + 4 * s, wall + 0.75 * depth, 2 * s),
         (canal_half + 8 * s, wall + 0.72 * depth, half + 5 * s), 4.4 * s, (1.0, 0.9, 1.0)),
        ((canal_half + 1 * s, wall + depth, -5 * s),
         (canal_half - 1.5 * s, wall + depth + 3.5 * s, -half - 0.6 * shape.disk_mm - 5 * s),
         4.4 * s, (1.0, 0.9, 1.0)),
    ]  # fmt: skip
    mirrored = (np.abs(u), v, w)
    distance: np.ndarray | None = None
    for start, end, radius, flatten in parts:
        part = capsule_distance(mirrored, start, end, radius, flatten)
        distance = part if distance is None else np.minimum(distance, part)
    assert distance is not None
    x, y = u / np.float32(canal_half), (v - np.float32(wall + depth / 2)) / np.float32(depth / 2)
    canal = (np.sqrt(x * x + y * y) - 1) * np.float32(depth / 2)
    return np.maximum(distance, -canal)
