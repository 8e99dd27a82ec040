"""Measures how much of the trabecular texture's signal is left in a CT and in its ROI.

Vertebrae are drawn in pairs with the same body and mean HU, one with a structure one SD finer than
the mean and one with a structure one SD coarser (`people.draw_bone`). Both are scanned at several
slice thicknesses, resampled as `prepare` does, and turned into its texture maps. The signal left is
how well a map's mean inside the body separates the two.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from data_prep.simulate.anatomy import Vertebra, body_distance, place_spine
from data_prep.simulate.cohort_writer import to_image
from data_prep.simulate.grid import Grid
from data_prep.simulate.patients import Settings, draw_patient, generator
from data_prep.simulate.people import LevelBone, structure_of
from data_prep.simulate.render import render_body
from data_prep.simulate.scanner import SCANNERS, noise
from data_prep.simulate.soft_tissue import MUSCLE
from data_prep.vertebrae import roi
from data_prep.vertebrae.texture import TextureSettings, texture_pools
from osteojax.data.boxes import cube_grid
from osteojax.data.vertebrae import image_spec, level_class

LEVEL = "L2"
SCANNER = "scanner1"
TRABECULAR_HU = 115.0
"""Mean HU of every vertebra: that of the simulated population at 75 years."""
STRUCTURE_Z = (-1.0, 1.0)
"""Structure of the coarse and of the fine vertebra, in SD of the population."""
INTERIOR_MM = 6.0
"""Only voxels this deep below the body's surface are measured, so that even interpolation between
slices of 5 mm reads nothing from outside."""
FEATURES = ("Contrast", "DifferenceAverage", "hu_sd", "hu_mean")
_BOX_MM = 60.0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the CT samples a vertebra.

    Attributes:
      slice_mm: slice thickness and increment.
      spacing_mm: in-plane voxel.
    """

    slice_mm: float
    spacing_mm: float


def survival(
    sampling: Sampling, roi_mm: tuple[float, ...], pairs: int, seed: int = 0
) -> list[dict[str, float]]:
    """Effect of structure on each feature, for each voxel of the ROI, with and without noise.

    The coarse and the fine vertebra of a pair differ in structure and in every random number of
    structure and noise; they share anatomy and position.

    Args:
      roi_mm: voxels of the ROI.
      pairs: at least 8, so that no resample repeats one pair only.

    Returns:
      One row per ROI voxel size and noise: `slice_mm`, `spacing_mm`, `roi_mm`, `noise_hu`, `pairs`,
      and for each feature its mean in coarse and fine vertebrae and its `effect`.
    """
    values = np.array(
        [
            [vertebra_features(sampling, roi_mm, seed, number, z) for z in STRUCTURE_Z]
            for number in range(pairs)
        ]
    )  # [pairs, coarse and fine, ROI voxels, with and without noise, features]
    scanner = SCANNERS[SCANNER].with_slices(sampling.slice_mm)
    rows = []
    for j, voxel_mm in enumerate(roi_mm):
        for i, noise_hu in enumerate((scanner.noise_hu, 0.0)):
            row = {**dataclasses.asdict(sampling), "roi_mm": voxel_mm, "noise_hu": noise_hu}
            row["pairs"] = pairs
            for k, feature in enumerate(FEATURES):
                coarse, fine = values[:, 0, j, i, k], values[:, 1, j, i, k]
                row[f"{feature}_coarse"] = float(coarse.mean())
                row[f"{feature}_fine"] = float(fine.mean())
                row |= {f"{feature}_{name}": v for name, v in effect(coarse, fine).items()}
            rows.append(row)
    return rows


def effect(coarse: np.ndarray, fine: np.ndarray) -> dict[str, float]:
    """How well a feature separates coarse from fine vertebrae, which are paired: float[N] each.

    Returns:
      "d", Cohen's d of coarse minus fine, with "d_low" and "d_high" of a 95% bootstrap interval
      over pairs; "auroc" of the feature for coarse against fine; "r" = d / sqrt(d^2 + 4), the
      correlation of feature and structure in a population in which coarse and fine differ by two
      SD of structure.
    """
    d = float(_cohens_d(coarse, fine))
    sampled = stats.bootstrap(
        (coarse, fine), _cohens_d, paired=True, n_resamples=2000, method="percentile", rng=0
    )
    low, high = sampled.confidence_interval
    labels = np.repeat([1, 0], [len(coarse), len(fine)])
    area = float(roc_auc_score(labels, np.concatenate([coarse, fine])))
    return {
        "d": d,
        "d_low": float(low),
        "d_high": float(high),
        "auroc": area,
        "r": d / float(np.hypot(d, 2)),
    }


def _cohens_d(coarse: np.ndarray, fine: np.ndarray, axis: int = -1) -> np.ndarray:
    spread = np.sqrt((coarse.var(axis, ddof=1) + fine.var(axis, ddof=1)) / 2)
    return (coarse.mean(axis) - fine.mean(axis)) / spread


def vertebra_features(
    sampling: Sampling, roi_mm: tuple[float, ...], seed: int, number: int, structure_z: float
) -> list[list[list[float]]]:
    """`FEATURES` inside one vertebral body, [ROI voxels, with and without noise, features]."""
    patient = draw_patient(Settings(seed=seed, levels=(LEVEL,)), number)
    vertebra = place_spine(patient, generator(seed, number, 1))[LEVEL]
    vertebra = dataclasses.replace(vertebra, crush=0.0)
    scanner = SCANNERS[SCANNER].with_slices(sampling.slice_mm)
    rng = np.random.default_rng([seed, number, 3, int(structure_z > 0)])
    grid = _grid(sampling, vertebra, np.random.default_rng([seed, number, 4]))
    spacing_mm, anisotropy = structure_of(structure_z)
    bone = LevelBone(LEVEL, 0.0, TRABECULAR_HU, spacing_mm, anisotropy, None)
    clean = np.full(grid.shape, MUSCLE, np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    label = level_class(LEVEL)
    with threadpool_limits(1):
        render_body(clean, labels, grid, scanner, vertebra, bone, 0.0, label, rng)
    in_plane = (sampling.spacing_mm, sampling.spacing_mm)
    noisy = clean + noise(rng, grid.shape, in_plane, scanner)
    return [
        [_features(volume, labels, grid, vertebra, voxel_mm) for volume in (noisy, clean)]
        for voxel_mm in roi_mm
    ]


def _grid(sampling: Sampling, vertebra: Vertebra, rng: np.random.Generator) -> Grid:
    """Axial slices around the body, whose centre is at a random position within a voxel."""
    spacing = np.array([sampling.spacing_mm, sampling.spacing_mm, sampling.slice_mm])
    counts = np.ceil(_BOX_MM / spacing).astype(int) + 1
    corner = vertebra.centre_mm - spacing * (counts - 1) / 2 + spacing * rng.uniform(-0.5, 0.5, 3)
    x, y, z = (float(s) for s in spacing)
    columns, rows, slices = (int(n) for n in counts)
    return Grid(corner, np.eye(3), (x, y, z), (slices, rows, columns))


def _features(
    volume: np.ndarray, labels: np.ndarray, grid: Grid, vertebra: Vertebra, roi_mm: float
) -> list[float]:
    """`FEATURES` of a CT of one body, from the ROI and the texture maps of `prepare`."""
    ct = to_image(np.rint(volume).astype(np.int16), grid, "LPS")
    mask = to_image(labels, grid, "LPS")
    size = round(48 / roi_mm)
    region = roi.extract_roi(ct, mask, _as_found(vertebra), cube_grid(size, roi_mm))
    inside = _interior(vertebra, size, roi_mm)
    codes = image_spec().encode(region.hu)
    settings = TextureSettings(domain="vertebra")
    maps = texture_pools(codes[None], inside[None], settings)
    hu = region.hu[inside]
    return [
        *(float(maps[name][0][inside].mean()) for name in FEATURES[:2]),
        float(hu.std()),
        float(hu.mean()),
    ]


def _as_found(vertebra: Vertebra) -> roi.Vertebra:
    """The true position and axes in the form of `roi.measure_vertebrae`."""
    volume = vertebra.width_mm * vertebra.depth_mm * vertebra.height_mm
    return roi.Vertebra(
        level_class=level_class(vertebra.level),
        centre_mm=vertebra.centre_mm,
        axes=vertebra.frame[::-1],
        axial_rule="neighbours",
        posterior_rule="elements",
        truncated=False,
        radius_mm=vertebra.height_mm / 2,
        body_volume_mm3=volume,
        mask_volume_mm3=volume,
    )


def _interior(vertebra: Vertebra, size: int, roi_mm: float) -> np.ndarray:
    """bool[size, size, size]: the ROI's voxels deep inside the body."""
    along = ((np.arange(size) - (size - 1) / 2) * roi_mm).astype(np.float32)
    w, v, u = along[:, None, None], along[None, :, None], along[None, None, :]
    return np.broadcast_to(body_distance(u, v, w, vertebra) < -INTERIOR_MM, (size, size, size))
