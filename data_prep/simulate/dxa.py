"""DXA scanners of the simulated cohort: cross-calibration, precision, references, T-scores.

Hologic is the scale everything is drawn on; the other devices are affine functions of it plus
their own precision error. Medix's line is invented: nobody has published one.
"""

from __future__ import annotations

import dataclasses

DXA_LEVELS = ("L1", "L2", "L3", "L4")
"""The levels a lumbar DXA reports."""

LEVEL_RATIO = {"L1": 0.912, "L2": 1.011, "L3": 1.045, "L4": 1.032}
"""BMD of a level over the L1-L4 mean."""

YOUNG_MEAN_G_CM2, YOUNG_SD_G_CM2 = 1.047, 0.110
"""Young-adult reference on Hologic, L1-L4, used for both sexes; both scale with `LEVEL_RATIO`."""

OSTEOPOROSIS_T_SCORE = -2.5


@dataclasses.dataclass(frozen=True)
class Device:
    """A DXA device: BMD = slope * Hologic BMD + offset.

    Attributes:
      name: as written into `dxa.csv`.
      slope: dimensionless.
      offset_g_cm2: g/cm^2.
      precision_cv: SD of a repeated measurement over its mean.
    """

    name: str
    slope: float
    offset_g_cm2: float
    precision_cv: float

    def from_hologic(self, bmd_g_cm2: float) -> float:
        """The BMD this device would show without measurement error, g/cm^2."""
        return self.slope * bmd_g_cm2 + self.offset_g_cm2

    def reference(self, level: str) -> tuple[float, float]:
        """(mean, SD) in g/cm^2 of the young reference of one of L1-L4 on this device.

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
        Device("hologic", 1.0, 0.0, 0.011),
        Device("ge_lunar", 1.074, 0.054, 0.012),  # Genant et al. 1994
        Device("medix", 1.02, 0.02, 0.016),  # invented: within 3% and 0.03 of Hologic
    )
}
"""The devices by name."""
