"""Who is in the simulated cohort: sites, age, sex, true bone at every level, DXA results.

A patient is a pure function of (settings, number). Published facts and their sources are named in
each constant; constants called invented have no published value that we know of.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools

import numpy as np

from data_prep.simulate.dxa import DEVICES, DXA_LEVELS, LEVEL_RATIO, OSTEOPOROSIS_T_SCORE
from data_prep.simulate.scanner import SITE_SCANNERS
from osteojax.data.schema import LEVELS

SITE_PATIENTS = {"A": 2225, "B": 1120, "C": 359, "D": 193}
"""Patients by site (paper, Table 1)."""
SITE_DEVICE = {"A": "hologic", "B": "ge_lunar", "C": "medix", "D": "hologic"}
DEVICE_CROSSING = 0.10
"""Share of patients of A-C whose DXA was taken on another device, so that a site is not a device
(invented; the paper has one device a site)."""
LABELLED_PER_PATIENT = {"A": 2.238, "B": 1.8125, "C": 3.699, "D": 1.404}
"""Labelled vertebrae per patient (paper, Table 1: vertebrae with GT over patients)."""
NO_DXA_SHARE = 0.08
"""Patients with a CT and no DXA (invented)."""

WOMEN_SHARE = 0.75
AGE_RANGE = (50.0, 90.0)
REFERRAL_KEEP = 0.30
"""Share kept of those whose L1-L4 mean is not osteoporotic. DXA is done where bone loss is
suspected: without this a sample of the published population would be 13% positive, where the
paper's sites A and B are 39% and 17% (from its PPV and NPV). The value is invented."""

CONTRAST_SHARE, FRACTURE_SHARE, CUT_TOP_SHARE = 0.06, 0.04, 0.06
"""Scans with a contrast agent, with a wedge fracture, with the top vertebra cut (invented)."""

DECADE_AGES = (25.5, 35.5, 45.5, 55.5, 65.5, 75.5, 85.5)
HOLOGIC_BY_DECADE = {
    # (mean, SD) in g/cm^2 of L1-L4; 81-90 continues women's last decade, men's stays (invented).
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
"""Trabecular HU at 120 kV by age: under 30 years, and at 90 and over."""
HU_LEVEL_FACTOR = {
    # +2% a level above L1, -1.5% a level to L3; below L3 constant.
    "T9": 1.08, "T10": 1.06, "T11": 1.04, "T12": 1.02, "L1": 1.0, "L2": 0.985, "L3": 0.97,
    "L4": 0.97, "L5": 0.97,
}  # fmt: skip
HU_FLOOR = 20.0
"""Below this the marrow's fat, which is not modelled, would set the HU."""
HU_PER_VBMD, HU_AT_ZERO_VBMD = 1.2, 5.0
"""HU = 1.2 vBMD [mg/cm^3] + 5 at 120 kV: within the range of published phantom calibrations."""

RESIDUAL_CORRELATION = 0.566
"""Of the deviations of HU and of areal BMD from their means at that age and sex. Chosen so that
HU and BMD correlate at 0.55 over women and men of 50-90 years."""
SIZE_WEIGHT, CORTEX_WEIGHT = 0.45, 0.45
"""Share of BMD's independent deviation carried by body size and by cortical thickness, both
rendered; the rest (degenerative change, aortic calcification) is not. Invented."""
TEXTURE_WEIGHT = 0.8
"""Correlation of trabecular structure with the patient's BMD deviation at texture signal 1."""
LEVEL_NOISE = 0.03
"""SD of a level's own BMD and HU about the patient's, relative (invented)."""

BONE_LEVELS = tuple(HU_LEVEL_FACTOR)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a cohort depends on, besides the number of patients.

    Attributes:
      sites: requested sites, of A-D, in order.
      seed: of everything random.
      levels: rendered and labelled levels, from the top.
      spacing_mm: in-plane voxel edge.
      texture_signal: 0 (structure independent of bone state) to 1.
    """

    sites: tuple[str, ...] = ("A", "B", "C", "D")
    seed: int = 0
    levels: tuple[str, ...] = ("T12", "L1", "L2", "L3", "L4", "L5")
    spacing_mm: float = 1.5
    texture_signal: float = 1.0


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


@dataclasses.dataclass(frozen=True)
class DxaResult:
    """One line of a DXA report."""

    level: str
    device: str
    bmd_g_cm2: float
    t_score: float
    osteoporosis: int


@dataclasses.dataclass(frozen=True)
class Patient:
    """A simulated patient with one CT.

    Attributes:
      size_z, cortex_z: deviations of body size and cortical thickness from the population, in SD.
      fractured_level: level with a wedge fracture, or None.
      cut_top: the top level is cut by the border of the CT.
      bones: true bone by level, T9-L5.
      dxa: reported levels; empty for a patient without DXA.
    """

    number: int
    patient_id: str
    scan_id: str
    site: str
    sex: str
    age: int
    ct_date: datetime.date
    dxa_date: datetime.date
    device: str
    scanner: str
    contrast: bool
    fractured_level: str | None
    cut_top: bool
    size_z: float
    cortex_z: float
    bones: dict[str, LevelBone]
    dxa: tuple[DxaResult, ...]


def site_of(number: int, sites: tuple[str, ...]) -> tuple[str, int]:
    """(site, how many patients of that site come before) of a patient's number, from 0.

    Two patients of every site first, then whichever site lags most behind Table 1's proportions;
    so a larger cohort begins with the smaller one.
    """
    return _site_sequence(sites, 1 << number.bit_length())[number]


@functools.cache
def _site_sequence(sites: tuple[str, ...], patients: int) -> list[tuple[str, int]]:
    """`site_of` the first `patients` numbers."""
    total = sum(SITE_PATIENTS[site] for site in sites)
    counts = dict.fromkeys(sites, 0)
    sequence = []
    for n in range(patients):
        if n < 2 * len(sites):
            site = sites[n % len(sites)]
        else:
            lag = {s: (n + 1) * SITE_PATIENTS[s] / total - counts[s] for s in sites}
            site = max(sites, key=lambda s: lag[s])
        sequence.append((site, counts[site]))
        counts[site] += 1
    return sequence


def generator(seed: int, number: int, stream: int) -> np.random.Generator:
    """The random numbers of one patient's stream: 0 the person, 1 the rendering."""
    return np.random.default_rng(np.random.SeedSequence((seed, number, stream)))


def draw_bone(
    rng: np.random.Generator, sex: str, age: float, texture_signal: float
) -> tuple[dict[str, LevelBone], float, float]:
    """True bone of every level of one person, with (size_z, cortex_z).

    Deviations from the mean of age and sex are normal: HU; areal BMD, correlated with it; size and
    cortex, which explain part of what is left of BMD; structure, correlated with BMD by the
    texture signal.
    """
    hu_z, size_z, cortex_z, other_z, structure_noise = rng.standard_normal(5)
    other_weight = np.sqrt(1 - SIZE_WEIGHT**2 - CORTEX_WEIGHT**2)
    independent = SIZE_WEIGHT * size_z + CORTEX_WEIGHT * cortex_z + other_weight * other_z
    bmd_z = RESIDUAL_CORRELATION * hu_z + np.sqrt(1 - RESIDUAL_CORRELATION**2) * independent
    weight = TEXTURE_WEIGHT * texture_signal
    structure_z = weight * bmd_z + np.sqrt(1 - weight**2) * structure_noise

    norms = HOLOGIC_BY_DECADE[sex]
    bmd_mean, bmd_deviation = (np.interp(age, DECADE_AGES, [n[i] for n in norms]) for i in (0, 1))
    hu_mean, hu_deviation = (np.interp(age, HU_AGES, v) for v in (HU_MEANS, HU_DEVIATIONS))
    bones = {}
    for level in BONE_LEVELS:
        hu_noise, bmd_noise, structure_level_noise = rng.standard_normal(3)
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
            float(np.clip(1.0 * np.exp(-0.18 * z), 0.6, 1.8)),
            float(np.clip(1.5 * np.exp(-0.10 * z), 1.0, 2.2)),
            bmd,
        )
    return bones, float(size_z), float(cortex_z)


def draw_person(
    rng: np.random.Generator, texture_signal: float, referral: bool = True
) -> tuple[str, int, dict[str, LevelBone], float, float]:
    """(sex, age, bones, size_z, cortex_z) of someone of 50-90 years.

    Args:
      referral: keep only a share of those without osteoporosis (`REFERRAL_KEEP`); False draws the
        population itself.
    """
    hologic = DEVICES["hologic"]
    while True:
        sex = "F" if rng.random() < WOMEN_SHARE else "M"
        age = int(AGE_RANGE[0] + (AGE_RANGE[1] - AGE_RANGE[0]) * rng.beta(1.7, 1.7))
        bones, size_z, cortex_z = draw_bone(rng, sex, age, texture_signal)
        scores = [hologic.t_score(bones[v].hologic_bmd_g_cm2 or 0.0, v) for v in DXA_LEVELS]
        osteoporotic = np.mean(scores) <= OSTEOPOROSIS_T_SCORE
        if not referral or osteoporotic or rng.random() < REFERRAL_KEEP:
            return sex, age, bones, size_z, cortex_z


def measure_dxa(
    rng: np.random.Generator, bones: dict[str, LevelBone], device_name: str, count: int
) -> tuple[DxaResult, ...]:
    """DXA results of `count` of L1-L4, drawn without replacement, with measurement error."""
    device = DEVICES[device_name]
    chosen = sorted(rng.choice(len(DXA_LEVELS), size=count, replace=False))
    results = []
    for level in (DXA_LEVELS[i] for i in chosen):
        true = device.from_hologic(bones[level].hologic_bmd_g_cm2 or 0.0)
        bmd = round(float(true * (1 + device.precision_cv * rng.standard_normal())), 3)
        score = round(device.t_score(bmd, level), 2)
        positive = int(score <= OSTEOPOROSIS_T_SCORE)
        results.append(DxaResult(level, device_name, bmd, score, positive))
    return tuple(results)


def draw_patient(settings: Settings, number: int) -> Patient:
    """The patient of a number, from 0.

    The first patient of a site is osteoporotic at a labelled level, the second at none, and
    neither is one that a cohort may exclude: the smallest cohort has both classes at every site.
    """
    site, rank = site_of(number, settings.sites)
    rng = generator(settings.seed, number, 0)
    device = SITE_DEVICE[site]
    if site != "D" and rank >= 2 and rng.random() < DEVICE_CROSSING:
        device = str(rng.choice([name for name in DEVICES if name != device]))
    count = int(LABELLED_PER_PATIENT[site] + rng.random())
    if rank >= 2 and rng.random() < NO_DXA_SHARE:
        count = 0
    while True:
        sex, age, bones, size_z, cortex_z = draw_person(rng, settings.texture_signal)
        dxa = measure_dxa(rng, bones, device, count)
        if rank >= 2 or any(r.osteoporosis for r in dxa) == (rank == 0):
            break
    scanners = SITE_SCANNERS[site]
    ct_date = datetime.date(2018, 3, 1) + datetime.timedelta(days=int(rng.integers(0, 2100)))
    patient_id = f"{site}{number + 1:04d}"
    unusual = rng.random(3) < (CONTRAST_SHARE, FRACTURE_SHARE, CUT_TOP_SHARE)
    fractured = [v for v in settings.levels if v in LEVELS[LEVELS.index("T11") :]][:4]
    return Patient(
        number=number,
        patient_id=patient_id,
        scan_id=f"{patient_id}-CT1",
        site=site,
        sex=sex,
        age=age,
        ct_date=ct_date,
        dxa_date=ct_date + datetime.timedelta(days=int(rng.integers(-170, 171))),
        device=device,
        scanner=str(rng.choice(list(scanners), p=list(scanners.values()))),
        contrast=bool(rank >= 2 and unusual[0]),
        fractured_level=str(rng.choice(fractured)) if rank >= 2 and unusual[1] else None,
        cut_top=bool(rank >= 2 and unusual[2]),
        size_z=size_z,
        cortex_z=cortex_z,
        bones=bones,
        dxa=dxa,
    )
