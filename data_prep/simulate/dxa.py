"""DXA scanners of the simulated cohort: cross-calibration, precision, references, T-scores.

True BMD is drawn on Hologic's scale. The other scanners measure an affine function of it, with a
deviation per patient and a precision error. Medix's line is invented, because none is published.
"""

from __future__ import annotations

import dataclasses

import numpy as np

DXA_LEVELS = ("L1", "L2", "L3", "L4")
"""The levels that a lumbar DXA reports."""

LEVEL_RATIO = {"L1": 0.912, "L2": 1.011, "L3": 1.045, "L4": 1.032}
"""BMD of a level divided by the L1-L4 mean."""

YOUNG_MEAN_G_CM2, YOUNG_SD_G_CM2 = 1.047, 0.110
"""Young-adult reference on Hologic, L1-L4, used for both sexes; both scale with `LEVEL_RATIO`."""

OSTEOPOROSIS_T_SCORE = -2.5


@dataclasses.dataclass(frozen=True)
class Device:
    """A DXA scanner: BMD = (slope * Hologic BMD + offset) * (1 + the patient's deviation).

    Attributes:
      name: as written into `dxa.csv`.
      slope: dimensionless.
      offset_g_cm2: g/cm^2.
      precision_cv: SD of a repeated measurement divided by its mean.
      deviation_sd: SD of a patient's deviation from the line, relative. Two scanners treat soft
        tissue and the edges of bone differently, and no line between them removes that: after
        standardisation a patient's results differ by 3.5% on average (Hui et al. 1997), with a
        standard error of 4-7% (Fan et al. 2010). Set so that Hologic and the scanner differ by an
        SD of 4%, both precision errors included.
    """

    name: str
    slope: float
    offset_g_cm2: float
    precision_cv: float
    deviation_sd: float

    def from_hologic(self, bmd_g_cm2: float, deviation: float = 0.0) -> float:
        """The BMD this scanner would show without measurement error, g/cm^2.

        Args:
          deviation: of the patient on this scanner, relative.
        """
        return (self.slope * bmd_g_cm2 + self.offset_g_cm2) * (1 + deviation)

    def reference(self, level: str) -> tuple[float, float]:
        """(mean, SD) in g/cm^2 of the young reference of one of L1-L4 on this scanner.

        The Hologic reference mapped through the cross-calibration, so that T <= -2.5 falls at
        about 0.77 g/cm^2 on Hologic and 0.88 on Lunar, as published.
        """
        ratio = LEVEL_RATIO[level]
        mean = self.from_hologic(YOUNG_MEAN_G_CM2 * ratio)
        return mean, self.slope * YOUNG_SD_G_CM2 * ratio

    def t_score(self, bmd_g_cm2: float, level: str) -> float:
        """SDs above the young reference of the level."""
        mean, deviation = self.reference(level)
        return (bmd_g_cm2 - mean) / deviation


DEVICES = {
    device.name: device
    for device in (
        Device("hologic", 1.0, 0.0, 0.011, 0.0),
        Device("ge_lunar", 1.074, 0.054, 0.012, 0.0365),  # Genant et al. 1994
        Device("medix", 1.02, 0.02, 0.016, 0.0350),  # invented: within 3% and 0.03 of Hologic
    )
}
"""The scanners by name."""

IDENTICAL_DEVICES = {name: dataclasses.replace(DEVICES["hologic"], name=name) for name in DEVICES}
"""Control in which all scanners measure as Hologic does and differ only in name."""


def draw_deviations(rng: np.random.Generator, devices: dict[str, Device]) -> dict[str, float]:
    """One patient's relative deviation on each scanner (`Device.deviation_sd`)."""
    return {
        name: device.deviation_sd * float(rng.standard_normal()) for name, device in devices.items()
    }


@dataclasses.dataclass(frozen=True)
class DxaResult:
    """One line of a DXA report."""

    level: str
    device: str
    bmd_g_cm2: float
    t_score: float
    osteoporosis: int


def measure_dxa(
    rng: np.random.Generator,
    hologic_bmd_g_cm2: dict[str, float],
    device: Device,
    levels: tuple[str, ...],
    deviation: float = 0.0,
) -> tuple[DxaResult, ...]:
    """DXA results of some of L1-L4, with measurement error.

    Args:
      hologic_bmd_g_cm2: the patient's true BMD by level, on Hologic.
      deviation: of the patient on this scanner, relative.
    """
    results = []
    for level in levels:
        true = device.from_hologic(hologic_bmd_g_cm2[level], deviation)
        bmd = round(float(true * (1 + device.precision_cv * rng.standard_normal())), 3)
        score = round(device.t_score(bmd, level), 2)
        positive = int(score <= OSTEOPOROSIS_T_SCORE)
        results.append(DxaResult(level, device.name, bmd, score, positive))
    return tuple(results)


def choose_levels(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """`count` of L1-L4, drawn without replacement, in order."""
    chosen = sorted(rng.choice(len(DXA_LEVELS), size=count, replace=False))
    return tuple(DXA_LEVELS[i] for i in chosen)
