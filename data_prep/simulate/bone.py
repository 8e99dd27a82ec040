"""Trabecular bone at 0.3 mm: a thresholded Gaussian random field.

Trabeculae are 0.1-0.2 mm thick, so this is an effective structure, not histology: its volume
fraction sets the mean HU, and its correlation length and anisotropy set how much structure remains
after a scanner has blurred and sampled it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import fft

MARROW_HU = -30.0
"""HU of adult vertebral marrow, about half of which is fat."""
MATRIX_HU = 1200.0
"""HU of a voxel of 0.3 mm full of bone, at 120 kV."""
SMOOTHING_PER_SPACING = 0.16
"""SD of the field's smoothing divided by the trabecular spacing. It leaves 20-70 HU of structure at
1.5 mm voxels, as clinical CT of vertebral bodies shows once its noise is subtracted."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """Microstructure of a vertebra's trabecular bone.

    Attributes:
      spacing_mm: mean distance from a trabecula to the next, across the vertebral axis.
      anisotropy: correlation length along the vertebral axis divided by that across it.
    """

    spacing_mm: float
    anisotropy: float


def volume_fraction(trabecular_hu: float) -> float:
    """Share of bone in the marrow space that gives a mean HU at 120 kV."""
    return (trabecular_hu - MARROW_HU) / (MATRIX_HU - MARROW_HU)


def gaussian_field(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    step_mm: float,
    structure: Structure,
    axis: np.ndarray,
) -> np.ndarray:
    """Anisotropic Gaussian random field with mean 0 and SD 1 (to about 1%).

    Args:
      shape: samples along the grid's axes.
      step_mm: distance between samples.
      structure: correlation length and anisotropy.
      axis: f64[3] unit vector of the vertebral axis in the grid's axes.

    Returns:
      f32[shape]
    """
    padded = tuple(fft.next_fast_len(n, real=True) for n in shape)
    f = [
        fft.fftfreq(padded[0], step_mm)[:, None, None],
        fft.fftfreq(padded[1], step_mm)[None, :, None],
        fft.rfftfreq(padded[2], step_mm)[None, None, :],
    ]
    # White noise is drawn in the frequency domain: one transform instead of two.
    half = (padded[0], padded[1], padded[2] // 2 + 1)
    spectrum = rng.standard_normal((*half, 2), dtype=np.float32).view(np.complex64)[..., 0]
    # Smoothing is exp(-2 pi^2 sigma^2 f'Qf), Q = 1 + (anisotropy^2 - 1) axis axis'. It is computed
    # as a product of three planes, because exponentials of the whole volume are slow.
    sigma = SMOOTHING_PER_SPACING * structure.spacing_mm
    q = np.eye(3) + (structure.anisotropy**2 - 1) * np.outer(axis, axis)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        exponent = q[i, i] * f[i] ** 2 + 2 * q[i, j] * f[i] * f[j]
        spectrum *= np.exp(-2 * (np.pi * sigma) ** 2 * exponent).astype(np.float32)
    field = fft.irfftn(spectrum, s=padded, overwrite_x=True)[: shape[0], : shape[1], : shape[2]]
    field *= 1 / field[::3, ::3, ::3].std()
    return field


def trabeculae(field: np.ndarray, inside: np.ndarray, fraction: float) -> np.ndarray:
    """Puts bone where the field is highest, in exactly `fraction` of the inside.

    Args:
      field: f32[...] Gaussian field.
      inside: bool[...] the marrow space.
      fraction: share of bone there, in (0, 1).

    Returns:
      f32[...] 1 for bone, 0 for marrow.
    """
    values = field[inside]
    if not values.size:  # the CT contains only the rim of this body
        return np.zeros_like(field)
    rank = min(int((1 - fraction) * values.size), values.size - 1)
    return (field >= np.partition(values, rank)[rank]).astype(np.float32)
