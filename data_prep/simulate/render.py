"""Renders a patient's CT and labels.

Bone is built on fine grids (bodies at 0.3 mm, posterior elements at 0.9 mm), blurred by the
scanner's aperture and point-spread function, and laid over soft tissue that is sampled with soft
edges. Calibration and noise follow.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from threadpoolctl import threadpool_limits

from data_prep.simulate.anatomy import (
    SPINE,
    Vertebra,
    body_distance,
    place_spine,
    posterior_distance,
    posterior_extent_mm,
)
from data_prep.simulate.bone import (
    MARROW_HU,
    MATRIX_HU,
    Structure,
    gaussian_field,
    trabeculae,
    volume_fraction,
)
from data_prep.simulate.grid import Box, Grid, apply_axes, linear_weights
from data_prep.simulate.implants import paint_screws
from data_prep.simulate.patients import Patient, Settings, generator
from data_prep.simulate.people import LevelBone
from data_prep.simulate.scanner import SCANNERS, Scanner, noise, response
from data_prep.simulate.soft_tissue import CORTICAL_HU, paint_background, paint_disks, paint_ribs
from osteojax.data.vertebrae import level_class

FINE_MM = 0.3
COARSE_MM = 0.9
"""Grid on which the smooth surface distance is computed, before interpolation to the fine grid."""
POSTERIOR_MM = 0.9
POSTERIOR_CORTEX_RATIO = 1.8
"""Cortical thickness of the posterior elements divided by that of the body."""
POSTERIOR_CORTEX_HU = 850.0
FIELD_OF_VIEW_MM = (156.0, 168.0)
"""Left-right and anterior-posterior: holds a 96 mm box around nearly every body."""
CURVED_MM = 60.0
"""Largest anterior-posterior distance of body centres that fits that field of view. The kyphosis of
the upper thoracic spine exceeds it, and the field is enlarged by the excess."""
MARGIN_MM = 21.0
"""Length of the CT above the top and below the bottom labelled body."""
CONTRAST_TRABECULAR_HU = 9.0
"""Portal-venous contrast agent raises L1 by 11.2 HU; 95% interval 8.2 to 14.2 (Pickhardt et al.
2016)."""
VERSE_ID_OF_CLASS = 7
"""VerSe id = class (1-18) + 7."""


@dataclasses.dataclass(frozen=True)
class Rendering:
    """A simulated CT.

    Attributes:
      ct_hu: int16[slices, rows, columns].
      labels: uint8 of the same shape, VerSe ids, whole vertebrae.
      grid: geometry of both.
    """

    ct_hu: np.ndarray
    labels: np.ndarray
    grid: Grid


def ct_trabecular_hu(bone: LevelBone, patient: Patient) -> float:
    """Trabecular HU in the patient's CT, with its kVp, calibration shift and contrast agent."""
    scanner = SCANNERS[patient.scanner]
    contrast = CONTRAST_TRABECULAR_HU if patient.contrast else 0.0
    return bone.trabecular_hu * scanner.mineral_scale + contrast + scanner.offset_hu


def make_grid(
    spine: dict[str, Vertebra],
    settings: Settings,
    patient: Patient,
    scanner: Scanner,
    rng: np.random.Generator,
) -> Grid:
    """The field of view around the labelled levels; a cut scan ends inside the top body."""
    c, s = np.cos(np.radians(scanner.tilt_degrees)), np.sin(np.radians(scanner.tilt_degrees))
    axes = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    centres = np.array([spine[level].centre_mm for level in settings.levels]) @ axes
    top, bottom = spine[settings.levels[0]], spine[settings.levels[-1]]
    high = centres[0, 2] + top.height_mm / 2 + MARGIN_MM + rng.uniform(-4, 4)
    if patient.cut_top:
        high = centres[0, 2] + rng.uniform(-6, 6)
    low = centres[-1, 2] - bottom.height_mm / 2 - MARGIN_MM + rng.uniform(-4, 4)
    middle = (centres[:, :2].min(0) + centres[:, :2].max(0)) / 2 + rng.uniform(-4, 4, 2)
    middle[1] += 6  # the posterior elements
    spacing = (settings.spacing_mm, settings.spacing_mm, scanner.slice_mm)
    field = np.array(FIELD_OF_VIEW_MM) + np.maximum(np.ptp(centres[:, :2], axis=0) - CURVED_MM, 0)
    columns, rows = (round(f / settings.spacing_mm) for f in field)
    slices = round((high - low) / scanner.slice_mm)
    corner = np.array([*(middle - field / 2), low])
    return Grid(axes @ corner, axes, spacing, (slices, rows, columns))


def _fine_axes(low_mm: np.ndarray, high_mm: np.ndarray, step_mm: float) -> list[np.ndarray]:
    """Evenly spaced positions along column, row, slice that cover a box of the grid."""
    return [
        np.arange(low, high + step_mm, step_mm) for low, high in zip(low_mm, high_mm, strict=True)
    ]


class _Camera:
    """The scanner's sampling of a fine grid, as one matrix per axis for image and for labels."""

    def __init__(self, grid: Grid, scanner: Scanner, fine: list[np.ndarray], box: Box) -> None:
        sigmas = (scanner.psf_sigma_mm, scanner.psf_sigma_mm, 0.2)
        self.seen, self.filled = [], []
        for axis in (2, 1, 0):
            centres = grid.centres_mm(axis, box[2 - axis])
            aperture = grid.spacing_mm[axis]
            self.seen.append(response(centres, fine[axis], aperture, sigmas[axis]))
            self.filled.append(response(centres, fine[axis], aperture, 0.05))

    def image(self, volume: np.ndarray) -> np.ndarray:
        return apply_axes((self.seen[0], self.seen[1], self.seen[2]), volume)

    def coverage(self, volume: np.ndarray) -> np.ndarray:
        return apply_axes((self.filled[0], self.filled[1], self.filled[2]), volume)


def _place(
    volume: np.ndarray,
    labels: np.ndarray,
    camera: _Camera,
    box: Box,
    occupancy: np.ndarray,
    hu: np.ndarray,
    label: int,
) -> None:
    """Adds bone of a fine grid to the volume and to the labels, in place."""
    volume[box] += camera.image(occupancy * hu) - camera.image(occupancy) * volume[box]
    if label:
        labels[box][camera.coverage(occupancy) >= 0.5] = label


def _visible(
    grid: Grid, scanner: Scanner, vertebra: Vertebra, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Box] | None:
    """The part of a vertebra's box inside the CT, and the voxels that it affects.

    Args:
      low, high: f64[3] corners in the vertebra's own frame, mm.

    Returns:
      (low, high) along the grid's axes, mm from voxel 0, and the box; None outside the CT.
    """
    bottom, top = grid.extent_mm(vertebra.centre_mm, vertebra.frame, low, high)
    spacing = np.array(grid.spacing_mm)
    reach = 3 * scanner.psf_sigma_mm + spacing  # distance over which blur spreads bone
    bottom = np.maximum(bottom, -2 * reach)
    top = np.minimum(top, spacing * np.array(grid.shape[::-1]) + 2 * reach)
    box = grid.voxels(bottom - reach, top + reach) if (top > bottom).all() else None
    return None if box is None else (bottom, top, box)


def _render_posterior(
    volume: np.ndarray,
    labels: np.ndarray,
    grid: Grid,
    scanner: Scanner,
    vertebra: Vertebra,
    trabecular_hu: float,
    label: int,
) -> None:
    """Adds the posterior elements of one vertebra, in place."""
    visible = _visible(grid, scanner, vertebra, *posterior_extent_mm(vertebra))
    if visible is None:
        return
    low, high, box = visible
    fine = _fine_axes(low, high, POSTERIOR_MM)
    coordinates = grid.points_mm(fine, vertebra.centre_mm, vertebra.frame)
    distance = posterior_distance(*coordinates, vertebra)
    occupancy = np.clip(0.5 - distance / np.float32(POSTERIOR_MM), 0, 1)
    cortex = POSTERIOR_CORTEX_RATIO * vertebra.cortex_mm
    inner = np.clip(0.5 - (distance + np.float32(cortex)) / POSTERIOR_MM, 0, 1)
    marrow = np.float32(0.9 * trabecular_hu + 90)
    hu = POSTERIOR_CORTEX_HU + inner * (marrow - POSTERIOR_CORTEX_HU)
    camera = _Camera(grid, scanner, fine, box)
    _place(volume, labels, camera, box, occupancy, hu.astype(np.float32), label)


def render_body(
    volume: np.ndarray,
    labels: np.ndarray,
    grid: Grid,
    scanner: Scanner,
    vertebra: Vertebra,
    bone: LevelBone,
    contrast_hu: float,
    label: int,
    rng: np.random.Generator,
) -> None:
    """Adds the body of one vertebra (shell, endplates, trabecular bone), in place."""
    half = np.array([vertebra.width_mm, vertebra.depth_mm, vertebra.height_mm]) / 2
    half = half + np.array([1.5, 1.5, 1.0 + vertebra.wedge_mm / 4])
    visible = _visible(grid, scanner, vertebra, -half, half)
    if visible is None:
        return
    low, high, box = visible
    fine = _fine_axes(low, high, FINE_MM)
    coarse = _fine_axes(low, high + COARSE_MM, COARSE_MM)
    u, v, w = grid.points_mm(coarse, vertebra.centre_mm, vertebra.frame)
    upsample = tuple(linear_weights(fine[axis], coarse[axis]) for axis in (2, 1, 0))
    matrices = (upsample[0], upsample[1], upsample[2])
    distance = apply_axes(matrices, body_distance(u, v, w, vertebra).astype(np.float32))
    distance *= np.float32(-1 / FINE_MM)  # now the depth inside the surface, in fine samples
    distance += np.float32(0.5)
    occupancy = np.clip(distance, 0, 1)
    distance -= np.float32(vertebra.cortex_mm / FINE_MM)
    core = np.clip(distance, 0, 1, out=distance)

    structure = Structure(bone.trabecular_spacing_mm, bone.anisotropy)
    direction = (vertebra.frame[2] @ grid.axes)[::-1]
    field = gaussian_field(rng, occupancy.shape, FINE_MM, structure, direction)
    # Bone is denser towards the endplates and the posterior wall, as in dissected bodies.
    trend = 0.12 * (2 * w / vertebra.height_mm) ** 2 + 0.08 * (2 * v / vertebra.depth_mm)
    trend = np.broadcast_to(trend, [len(coarse[axis]) for axis in (2, 1, 0)])
    field += apply_axes(matrices, trend.astype(np.float32))
    solid = trabeculae(field, core > 0.5, volume_fraction(bone.trabecular_hu))

    # The core is marrow or matrix, the rest cortex.
    hu = solid
    hu *= np.float32(MATRIX_HU - MARROW_HU)
    hu += np.float32(MARROW_HU + contrast_hu / scanner.mineral_scale - CORTICAL_HU)
    hu *= core
    hu += np.float32(CORTICAL_HU)
    hu *= np.float32(scanner.mineral_scale)
    camera = _Camera(grid, scanner, fine, box)
    _place(volume, labels, camera, box, occupancy, hu, label)


def render(settings: Settings, patient: Patient) -> Rendering:
    """The CT of a patient and its labels; a pure function of its arguments."""
    # One thread, because another order of sums would round differently, and because the products
    # are small (on busy cores, several threads made them 20 times slower).
    with threadpool_limits(1):
        return _render(settings, patient)


def _render(settings: Settings, patient: Patient) -> Rendering:
    rng = generator(settings.seed, patient.number, 1)
    scanner = SCANNERS[patient.scanner].with_slices(settings.slice_mm)
    spine = place_spine(patient, rng)
    grid = make_grid(spine, settings, patient, scanner, rng)
    volume = paint_background(grid, spine, patient, rng)
    labels = np.zeros(grid.shape, np.uint8)
    paint_disks(volume, grid, spine)
    paint_ribs(volume, grid, spine)
    contrast_hu = CONTRAST_TRABECULAR_HU if patient.contrast else 0.0
    ids = {v: level_class(v) + VERSE_ID_OF_CLASS for v in settings.levels}
    neighbour = {"C7": "T1", "S1": "L5"}
    bones = {level: patient.bones[neighbour.get(level, level)] for level in SPINE}
    for level in SPINE:
        hu = bones[level].trabecular_hu * scanner.mineral_scale
        _render_posterior(volume, labels, grid, scanner, spine[level], hu, ids.get(level, 0))
    for level in SPINE:
        render_body(
            volume, labels, grid, scanner, spine[level], bones[level], contrast_hu,
            ids.get(level, 0), rng,
        )  # fmt: skip
    paint_screws(volume, grid, spine, patient.screwed_levels)
    # Calibration shifts what attenuates; air stays at -1000 HU.
    volume += np.float32(scanner.offset_hu) * np.clip(volume / 1000 + 1, 0, 1)
    volume += noise(rng, grid.shape, (grid.spacing_mm[1], grid.spacing_mm[0]), scanner)
    ct_hu = np.clip(np.rint(volume), -1024, 3071).astype(np.int16)
    return Rendering(ct_hu, labels, grid)
