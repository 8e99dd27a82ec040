"""The patients of a simulated cohort: sites, age, sex, true bone at every level, DXA results.

A patient is a pure function of (settings, number). Each constant names its published source;
constants called invented have no published value that we know of.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools

import numpy as np

from data_prep.simulate.dxa import (
    DEVICES,
    DXA_LEVELS,
    IDENTICAL_DEVICES,
    Device,
    DxaResult,
    choose_levels,
    draw_deviations,
    measure_dxa,
)
from data_prep.simulate.people import LevelBone, draw_person
from data_prep.simulate.scanner import SITE_SCANNERS
from osteojax.data.schema import SPLITS
from osteojax.data.vertebrae import LEVELS

SITE_PATIENTS = {"A": 2225, "B": 1120, "C": 359, "D": 193}
"""Patients by site (paper, Table 1)."""
SITE_DEVICE = {"A": "hologic", "B": "ge_lunar", "C": "medix", "D": "hologic"}
DEVICE_CROSSING = 0.10
"""Share of patients of A-C whose DXA was taken on another site's scanner, so that the site does not
determine the scanner (invented; the paper has one scanner per site)."""
LABELLED_PER_PATIENT = {"A": 2.238, "B": 1.8125, "C": 3.699, "D": 1.404}
"""Labelled vertebrae per patient (paper, Table 1: vertebrae with GT over patients)."""
NO_DXA_SHARE = 0.08
"""Share of patients with a CT and no DXA (invented)."""

CONTRAST_SHARE, FRACTURE_SHARE, CUT_TOP_SHARE, IMPLANT_SHARE = 0.06, 0.04, 0.06, 0.02
"""Shares of scans with a contrast agent, with a wedge fracture, whose border cuts the top vertebra,
and with metal screws (invented)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a cohort, without the number of patients.

    Attributes:
      sites: requested sites, of A-D, in order.
      seed: of all random draws.
      levels: rendered and labelled levels, from the top.
      spacing_mm: in-plane voxel edge.
      slice_mm: slice thickness for all CT scanners; None keeps each scanner's own.
      scanners: "usual" or "wide", the mix of scanners (`scanner.SITE_SCANNERS`).
      texture_signal: 0 (structure independent of bone state) to 1.
      hu_signal: 1, or less down to 0: HU, cortex, body size, age and sex independent of BMD.
      identical_devices: every DXA scanner measures as Hologic does.
      complete_labels: shares of each site's patients in the validation and in the test split; these
        have all of L1-L4 labelled, as have all of site D. None leaves the split to `prepare`.
    """

    sites: tuple[str, ...] = ("A", "B", "C", "D")
    seed: int = 0
    levels: tuple[str, ...] = ("T12", "L1", "L2", "L3", "L4", "L5")
    spacing_mm: float = 1.5
    slice_mm: float | None = None
    scanners: str = "usual"
    texture_signal: float = 1.0
    hu_signal: float = 1.0
    identical_devices: bool = False
    complete_labels: tuple[float, float] | None = None

    @property
    def devices(self) -> dict[str, Device]:
        return IDENTICAL_DEVICES if self.identical_devices else DEVICES


@dataclasses.dataclass(frozen=True)
class Patient:
    """A simulated patient with one CT.

    Attributes:
      size_z, cortex_z: deviations of body size and cortical thickness from the population, in SD.
      fractured_level: level with a wedge fracture, or None.
      cut_top: the top level is cut by the border of the CT.
      screwed_levels: neighbours joined by pedicle screws and rods; empty in most patients.
      split: "train", "valid", "test" or "external"; empty if it is left to `prepare`.
      device_deviations: by scanner, relative (`dxa.Device.deviation_sd`).
      bones: true bone by level, T1-L5.
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
    screwed_levels: tuple[str, ...]
    split: str
    device_deviations: dict[str, float]
    size_z: float
    cortex_z: float
    bones: dict[str, LevelBone]
    dxa: tuple[DxaResult, ...]


def site_of(number: int, sites: tuple[str, ...]) -> tuple[str, int]:
    """(site, number of earlier patients of that site) for a patient's number, from 0.

    The first two patients of every site come first; then each patient goes to the site that is
    furthest behind its share in Table 1. So a larger cohort begins with a smaller one.
    """
    return _site_sequence(sites, 1 << number.bit_length())[number]


@functools.cache
def _site_sequence(sites: tuple[str, ...], patients: int) -> list[tuple[str, int]]:
    """`site_of` for the first `patients` numbers."""
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
    """A patient's random generator for one stream: 0 the person, 1 the rendering, 2 features added
    later (scanners, implants, more labels), which thus leave the first two streams unchanged."""
    return np.random.default_rng(np.random.SeedSequence((seed, number, stream)))


def split_of(site: str, rank: int, complete_labels: tuple[float, float] | None) -> str:
    """Split of the patient with a rank within its site; empty if it is left to `prepare`.

    Each patient goes to the split that is furthest behind its share.
    """
    if complete_labels is None:
        return ""
    if site == "D":
        return "external"
    valid, test = complete_labels
    return _split_sequence((1 - valid - test, valid, test), 1 << rank.bit_length())[rank]


@functools.cache
def _split_sequence(shares: tuple[float, float, float], patients: int) -> list[str]:
    """`split_of` for the first ranks."""
    counts = [0, 0, 0]
    sequence = []
    for n in range(patients):
        lag = [
            round((n + 1) * share - count, 9) for share, count in zip(shares, counts, strict=True)
        ]
        chosen = lag.index(max(lag))
        counts[chosen] += 1
        sequence.append(SPLITS[chosen])
    return sequence


def draw_patient(settings: Settings, number: int) -> Patient:
    """Draws the patient with a number, from 0.

    The first patient of a site is osteoporotic at a labelled level, the second at none, and
    neither has a feature for which a cohort may exclude patients. So the smallest cohort has both
    classes at every site.
    """
    site, rank = site_of(number, settings.sites)
    rng, later = (generator(settings.seed, number, stream) for stream in (0, 2))
    device = SITE_DEVICE[site]
    if site != "D" and rank >= 2 and rng.random() < DEVICE_CROSSING:
        device = str(rng.choice([name for name in DEVICES if name != device]))
    count = int(LABELLED_PER_PATIENT[site] + rng.random())
    if rank >= 2 and rng.random() < NO_DXA_SHARE:
        count = 0
    split = split_of(site, rank, settings.complete_labels)
    deviations = draw_deviations(later, settings.devices)
    screwed = draw_screws(later, settings.levels) if rank >= 2 else ()
    measured_by = settings.devices[device], deviations[device]
    while True:
        sex, age, bones, size_z, cortex_z = draw_person(
            rng, settings.texture_signal, settings.hu_signal
        )
        bmd = {level: bones[level].hologic_bmd_g_cm2 or 0.0 for level in DXA_LEVELS}
        dxa = _dxa((rng, later), bmd, measured_by, count, complete=split not in ("", "train"))
        if rank >= 2 or any(r.osteoporosis for r in dxa) == (rank == 0):
            break
    scanners = SITE_SCANNERS[settings.scanners][site]
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
        screwed_levels=screwed,
        split=split,
        device_deviations=deviations,
        size_z=size_z,
        cortex_z=cortex_z,
        bones=bones,
        dxa=dxa,
    )


def draw_screws(rng: np.random.Generator, levels: tuple[str, ...]) -> tuple[str, ...]:
    """Two or three adjacent lumbar `levels` that are screwed together; () for most patients."""
    screwed, length, start = rng.random() < IMPLANT_SHARE, int(rng.integers(2, 4)), rng.random()
    lumbar = [v for v in levels if v.startswith("L")]
    if not screwed or len(lumbar) < length:
        return ()
    first = int(start * (len(lumbar) - length + 1))
    return tuple(lumbar[first : first + length])


def _dxa(
    rngs: tuple[np.random.Generator, np.random.Generator],
    bmd: dict[str, float],
    measured_by: tuple[Device, float],
    count: int,
    complete: bool,
) -> tuple[DxaResult, ...]:
    """DXA results of `count` levels by the first generator, and of the others by the second."""
    device, deviation = measured_by
    chosen = choose_levels(rngs[0], count)
    results = measure_dxa(rngs[0], bmd, device, chosen, deviation)
    if complete:
        others = tuple(level for level in DXA_LEVELS if level not in chosen)
        results += measure_dxa(rngs[1], bmd, device, others, deviation)
    return tuple(sorted(results, key=lambda result: result.level))
