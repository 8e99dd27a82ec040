"""A person's true bone at every level, by age and sex.

Each constant names its published source; constants called invented have no published value that we
know of.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_prep.simulate.dxa import DEVICES, DXA_LEVELS, LEVEL_RATIO, OSTEOPOROSIS_T_SCORE

WOMEN_SHARE = 0.75
AGE_RANGE = (50.0, 90.0)
REFERRAL_KEEP = 0.30
"""Share of the people without osteoporosis (by the L1-L4 mean) that is kept. DXA is done where bone
loss is suspected: a sample of the published population would be 13% positive, while the paper's
sites A and B are 39% and 17% (from its PPV and NPV). The value is invented."""

DECADE_AGES = (25.5, 35.5, 45.5, 55.5, 65.5, 75.5, 85.5)
HOLOGIC_BY_DECADE = {
    # (mean, SD) in g/cm^2 of L1-L4. For 81-90, women's decline goes on and men's mean stays
    # (invented).
    "F": (
        (1.064, 0.106), (1.065, 0.110), (1.056, 0.134), (0.993, 0.141), (0.952, 0.142),
        (0.902, 0.167), (0.852, 0.167),
    ),
    "M": (
        (1.057, 0.110), (1.042, 0.117), (1.051, 0.129), (1.053, 0.143), (1.070, 0.142),
        (1.068, 0.177), (1.068, 0.177),
    ),
}  # fmt: skip
"""Published Hologic norms by decade of age."""

HU_AGES, HU_MEANS, HU_DEVIATIONS = (30.0, 90.0), (226.0, 89.0), (44.0, 38.0)
"""Mean and SD of trabecular HU at 120 kV at up to 30 and from 90 years, linear in between."""
HU_LEVEL_FACTOR = {
    # 2% more per level above L1, 1.5% less per level down to L3, then constant.
    "T1": 1.24, "T2": 1.22, "T3": 1.20, "T4": 1.18, "T5": 1.16, "T6": 1.14, "T7": 1.12,
    "T8": 1.10, "T9": 1.08, "T10": 1.06, "T11": 1.04, "T12": 1.02, "L1": 1.0, "L2": 0.985,
    "L3": 0.97, "L4": 0.97, "L5": 0.97,
}  # fmt: skip
HU_FLOOR = 20.0
"""Lowest trabecular HU. Below it the marrow's fat, which is not modelled, would set the HU."""
HU_PER_VBMD, HU_AT_ZERO_VBMD = 1.2, 5.0
"""HU = 1.2 vBMD [mg/cm^3] + 5 at 120 kV: within the range of published phantom calibrations."""

RESIDUAL_CORRELATION = 0.566
"""Correlation of the deviations of HU and of areal BMD from their means at that age and sex. Chosen
so that HU and BMD correlate at 0.55 over women and men of 50-90 years."""
SIZE_WEIGHT, CORTEX_WEIGHT = 0.45, 0.45
"""Weights of body size and of cortical thickness, both rendered, in BMD's deviation that HU does
not explain; the rest (degenerative change, aortic calcification) is not rendered. Invented."""
TEXTURE_WEIGHT = 0.8
"""Correlation of trabecular structure with the patient's BMD deviation at texture signal 1."""
LEVEL_NOISE = 0.03
"""SD of a level's BMD and HU about the patient's mean, relative (invented)."""
REFERENCE_AGE, REFERENCE_SEX = 70.0, "F"
"""At HU signal 0 everyone has the means of this age and sex, so that age and sex carry no
information about bone."""

BONE_LEVELS = tuple(HU_LEVEL_FACTOR)
UPPER_LEVELS = BONE_LEVELS[: BONE_LEVELS.index("T9")]


@dataclasses.dataclass(frozen=True)
class LevelBone:
    """True bone of one vertebra.

    Attributes:
      level: "L1".
      vbmd_mg_cm3: trabecular density.
      trabecular_hu: its HU at 120 kV without contrast agent.
      trabecular_spacing_mm, anisotropy: structure (`bone.Structure`).
      hologic_bmd_g_cm2: areal BMD on Hologic without measurement error; None outside L1-L4.
    """

    level: str
    vbmd_mg_cm3: float
    trabecular_hu: float
    trabecular_spacing_mm: float
    anisotropy: float
    hologic_bmd_g_cm2: float | None


def draw_bone(
    rng: np.random.Generator,
    sex: str,
    age: float,
    texture_signal: float,
    hu_signal: float = 1.0,
) -> tuple[dict[str, LevelBone], float, float]:
    """Draws the true bone of every level of one person, with (size_z, cortex_z).

    Deviations from the mean of age and sex are normal. Areal BMD correlates with HU; size and
    cortex explain part of the rest of BMD; structure correlates with BMD by the texture signal. At
    HU signal 0 only structure carries information about BMD: the correlations with HU, size and
    cortex are 0, and the means are those of one age and sex.
    """
    hu_z, size_z, cortex_z, other_z, structure_noise = rng.standard_normal(5)
    size_weight, cortex_weight = SIZE_WEIGHT * hu_signal, CORTEX_WEIGHT * hu_signal
    other_weight = np.sqrt(1 - size_weight**2 - cortex_weight**2)
    independent = size_weight * size_z + cortex_weight * cortex_z + other_weight * other_z
    correlation = RESIDUAL_CORRELATION * hu_signal
    bmd_z = correlation * hu_z + np.sqrt(1 - correlation**2) * independent
    weight = TEXTURE_WEIGHT * texture_signal
    structure_z = weight * bmd_z + np.sqrt(1 - weight**2) * structure_noise

    means = zip(_norms(sex, age), _norms(REFERENCE_SEX, REFERENCE_AGE), strict=True)
    bmd_mean, bmd_deviation, hu_mean, hu_deviation = (
        hu_signal * own + (1 - hu_signal) * everyones for own, everyones in means
    )
    bones = {}
    upper_rng = rng.spawn(1)[0]  # draws below T9 do not depend on whether levels above exist
    for level in BONE_LEVELS:
        level_rng = upper_rng if level in UPPER_LEVELS else rng
        hu_noise, bmd_noise, structure_level_noise = level_rng.standard_normal(3)
        hu = (hu_mean + hu_deviation * hu_z) * HU_LEVEL_FACTOR[level]
        hu = max(hu * (1 + LEVEL_NOISE * hu_noise), HU_FLOOR)
        bmd = None
        if level in DXA_LEVELS:
            bmd = (bmd_mean + bmd_deviation * bmd_z) * LEVEL_RATIO[level]
            bmd = max(float(bmd * (1 + LEVEL_NOISE * bmd_noise)), 0.3)
        z = structure_z + 0.15 * structure_level_noise
        bones[level] = LevelBone(
            level,
            float((hu - HU_AT_ZERO_VBMD) / HU_PER_VBMD),
            float(hu),
            *structure_of(z),
            bmd,
        )
    return bones, float(size_z), float(cortex_z)


def structure_of(z: float) -> tuple[float, float]:
    """(trabecular spacing in mm, anisotropy) of a structure z SD denser than the mean. Denser bone
    has closer and less oriented trabeculae. The slopes are invented."""
    spacing_mm = min(max(float(np.exp(-0.18 * z)), 0.6), 1.8)
    return spacing_mm, min(max(float(1.5 * np.exp(-0.10 * z)), 1.0), 2.2)


def _norms(sex: str, age: float) -> tuple[float, float, float, float]:
    """(mean, SD) of areal BMD on Hologic, L1-L4, g/cm^2, then of trabecular HU."""
    decades = HOLOGIC_BY_DECADE[sex]
    return (
        float(np.interp(age, DECADE_AGES, [mean for mean, _ in decades])),
        float(np.interp(age, DECADE_AGES, [deviation for _, deviation in decades])),
        float(np.interp(age, HU_AGES, HU_MEANS)),
        float(np.interp(age, HU_AGES, HU_DEVIATIONS)),
    )


def draw_person(
    rng: np.random.Generator,
    texture_signal: float,
    hu_signal: float = 1.0,
    referral: bool = True,
) -> tuple[str, int, dict[str, LevelBone], float, float]:
    """Draws (sex, age, bones, size_z, cortex_z) of a person of 50-90 years.

    Args:
      referral: keep only a share of people without osteoporosis (`REFERRAL_KEEP`); False draws
        from the whole population.
    """
    hologic = DEVICES["hologic"]
    while True:
        sex = "F" if rng.random() < WOMEN_SHARE else "M"
        age = int(AGE_RANGE[0] + (AGE_RANGE[1] - AGE_RANGE[0]) * rng.beta(1.7, 1.7))
        bones, size_z, cortex_z = draw_bone(rng, sex, age, texture_signal, hu_signal)
        scores = [hologic.t_score(bones[v].hologic_bmd_g_cm2 or 0.0, v) for v in DXA_LEVELS]
        osteoporotic = np.mean(scores) <= OSTEOPOROSIS_T_SCORE
        if not referral or osteoporotic or rng.random() < REFERRAL_KEEP:
            return sex, age, bones, size_z, cortex_z
