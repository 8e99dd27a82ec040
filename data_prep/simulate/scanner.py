"""CT scanners of the simulated cohort: kernel, noise, slices, kVp, calibration, orientation.

They are invented within the range of clinical practice; none is a real product.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import fft, special

KVP_MINERAL_SCALE = {80: 1.23, 100: 1.08, 120: 1.00, 140: 0.94}
"""HU of trabecular bone relative to 120 kV, by tube voltage (kV). L1 of 16,747 abdominal CTs had
148.1 HU at 100 kV and 131.3 at 140 kV, for which a physical model expects 137.3 and 138.3 at
120 kV; at 120 kV 140.9 were measured ("Normalization of Trabecular Bone Attenuation across kVp
Values", AAPM 2026). 80 kV: by NIST's attenuation of ICRU-44 cortical bone and water at 60 keV
against 71 keV."""


@dataclasses.dataclass(frozen=True)
class Scanner:
    """One CT scanner with its reconstruction.

    Attributes:
      name: as written into `truth.csv`.
      psf_sigma_mm: SD of the in-plane point-spread function (Gaussian).
      slice_mm: slice thickness and increment.
      noise_hu: SD of the noise of one voxel.
      noise_peak_per_mm: frequency at which the in-plane noise power peaks; the higher, the
        sharper the kernel.
      kvp: tube voltage, kV, of `KVP_MINERAL_SCALE`.
      filtration: HU of mineral relative to the standard beam of this voltage.
      offset_hu: calibration shift of every voxel but air.
      orientation: "LPS", "RAS" or "LAS": directions of the stored axes.
      tilt_degrees: rotation of the slices about the patient's left-right axis.
    """

    name: str
    psf_sigma_mm: float
    slice_mm: float
    noise_hu: float
    noise_peak_per_mm: float
    kvp: int
    filtration: float
    offset_hu: float
    orientation: str
    tilt_degrees: float

    @property
    def mineral_scale(self) -> float:
        """HU of mineral relative to 120 kV."""
        return KVP_MINERAL_SCALE[self.kvp] * self.filtration

    def with_slices(self, slice_mm: float | None) -> Scanner:
        """This scanner at another slice thickness (None keeps it) and the same dose: a thinner
        slice has fewer photons, and noise is inversely proportional to the root of their number."""
        if slice_mm is None:
            return self
        noise_hu = self.noise_hu * float(np.sqrt(self.slice_mm / slice_mm))
        return dataclasses.replace(self, slice_mm=slice_mm, noise_hu=noise_hu)


SCANNERS = {
    scanner.name: scanner
    for scanner in (
        Scanner("scanner1", 0.50, 1.5, 22.0, 0.25, 120, 1.00, 0.0, "LPS", 0.0),
        Scanner("scanner2", 0.60, 2.0, 17.0, 0.20, 120, 1.00, 5.0, "RAS", 0.0),
        Scanner("scanner3", 0.65, 3.0, 13.0, 0.18, 140, 1.00, -4.0, "LPS", 8.0),
        Scanner("scanner4", 0.45, 1.5, 27.0, 0.30, 120, 1.05, 3.0, "LAS", 0.0),
        Scanner("thin", 0.40, 0.7, 34.0, 0.35, 100, 1.00, 2.0, "LPS", 0.0),
        Scanner("low_dose", 0.55, 1.0, 31.0, 0.25, 80, 1.00, -2.0, "RAS", 0.0),
        Scanner("thick", 0.70, 5.0, 10.0, 0.16, 120, 0.98, 0.0, "LPS", 0.0),
    )
}
"""The scanners by name."""

SITE_SCANNERS = {
    "usual": {
        "A": {"scanner1": 0.85, "scanner2": 0.15},
        "B": {"scanner2": 0.85, "scanner1": 0.15},
        "C": {"scanner3": 0.80, "scanner1": 0.20},
        "D": {"scanner4": 1.0},
    },
    "wide": {
        "A": {"scanner1": 0.65, "scanner2": 0.10, "thin": 0.15, "thick": 0.10},
        "B": {"scanner2": 0.65, "scanner1": 0.10, "low_dose": 0.10, "thick": 0.15},
        "C": {"scanner3": 0.60, "scanner1": 0.15, "thin": 0.10, "thick": 0.15},
        "D": {"scanner4": 0.80, "low_dose": 0.20},
    },
}
"""Share of each site's scans by scanner. A-C share scanners, so that the site does not determine
the scanner. "usual": slices of 1.5-3 mm at 120 and 140 kV; "wide": 0.7-5 mm at 80-140 kV."""


def response(
    centres_mm: np.ndarray, fine_mm: np.ndarray, aperture_mm: float, sigma_mm: float
) -> np.ndarray:
    """Weight of each fine sample in each voxel along one axis.

    The voxel's aperture (a box) convolved with a Gaussian, integrated over one fine sample.

    Args:
      centres_mm: f64[N] centres of the voxels.
      fine_mm: f64[M] centres of the fine samples, evenly spaced.
      aperture_mm: width of a voxel (in plane) or of a slice.
      sigma_mm: SD of the point-spread function.

    Returns:
      f32[N, M]; a row sums to 1 if the samples cover the voxel's whole response.
    """
    step = fine_mm[1] - fine_mm[0]
    edges = np.append(fine_mm - step / 2, fine_mm[-1] + step / 2)[None, :] - centres_mm[:, None]
    # The response is a difference of two normal distribution functions. `_ramp` is the integral of
    # one, so that weights are exact also for fine samples wider than the box.
    low, high = (edges - aperture_mm / 2) / sigma_mm, (edges + aperture_mm / 2) / sigma_mm
    seen = (_ramp(high) - _ramp(low)) * (sigma_mm / aperture_mm)
    return np.diff(seen, axis=1).astype(np.float32)


def _ramp(t: np.ndarray) -> np.ndarray:
    """Integral of the normal distribution function from minus infinity to t."""
    return t * special.ndtr(t) + np.exp(-t * t / 2) / np.sqrt(2 * np.pi)


def noise(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float],
    scanner: Scanner,
) -> np.ndarray:
    """Quantum noise with the kernel's power spectrum.

    In-plane noise power is f * exp(-f / peak): the ramp of filtered back-projection times the
    kernel's roll-off. Slices are independent, because increment equals thickness.

    Args:
      shape: (slices, rows, columns).
      spacing_mm: (row, column) spacing.

    Returns:
      f32[shape] in HU, SD `scanner.noise_hu`.
    """
    frequency = np.hypot(
        fft.fftfreq(shape[1], spacing_mm[0])[:, None], fft.rfftfreq(shape[2], spacing_mm[1])[None]
    )
    amplitude = np.sqrt(frequency * np.exp(-frequency / scanner.noise_peak_per_mm))
    white = rng.standard_normal(shape, dtype=np.float32)
    spectrum = fft.rfft2(white) * amplitude.astype(np.float32)
    field = fft.irfft2(spectrum, s=shape[1:])
    return field * np.float32(scanner.noise_hu / field.std())
