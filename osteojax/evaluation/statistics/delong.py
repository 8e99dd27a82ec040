"""Variance of the AUROC without resampling, and the paired test based on it.

E. DeLong, D. DeLong and D. Clarke-Pearson, Biometrics 44:837 (1988): each case contributes its
share of correctly ordered pairs ("placement value"). N. Obuchowski, Biometrics 53:567 (1997), first
sums the contributions of the cases of a cluster, so that vertebrae of one patient do not count as
independent; with one case per cluster this is DeLong's variance.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from osteojax.evaluation.statistics.metrics import Undefined, require_both_classes


def auroc_covariance(
    labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of several scores on the same cases, and their covariance.

    Args:
      labels: int[N], 1 = positive.
      scores: float[S, N], higher means more likely positive.
      clusters: [N] patient of each case; None treats all cases as independent.

    Returns:
      f64[S] AUROC and f64[S, S] covariance.

    Raises:
      Undefined: fewer than two clusters with a positive, or with a negative, case.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    require_both_classes(labels)
    index = np.arange(len(labels))
    if clusters is not None:
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
    positive, negative = labels == 1, labels == 0
    m, n = int(positive.sum()), int(negative.sum())
    wins_positive, wins_negative = _placements(scores[:, positive], scores[:, negative])
    areas = wins_positive.mean(axis=1)
    # Centred sums per cluster, f64[S, clusters]; a cluster without such cases contributes 0.
    size = index.max() + 1
    from_positive = _cluster_sums(wins_positive - areas[:, None], index[positive], size)
    from_negative = _cluster_sums(wins_negative - areas[:, None], index[negative], size)
    with_positive, with_negative = len(set(index[positive])), len(set(index[negative]))
    if min(with_positive, with_negative) < 2:
        raise Undefined(
            f"needs 2 patients with a positive and 2 with a negative case, has {with_positive} and "
            f"{with_negative}"
        )
    s10 = from_positive @ from_positive.T * with_positive / ((with_positive - 1) * m)
    s01 = from_negative @ from_negative.T * with_negative / ((with_negative - 1) * n)
    s11 = from_positive @ from_negative.T * size / (size - 1)
    return areas, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def auroc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    clusters: np.ndarray | None = None,
    confidence: float = 0.95,
) -> list[float]:
    """[low, high] of the AUROC of float[N] scores, normal approximation, cut to 0-1.

    Raises:
      Undefined: as `auroc_covariance`; or the classes are separated entirely (variance 0).
    """
    areas, covariance = auroc_covariance(labels, np.asarray(scores)[None], clusters)
    area, variance = float(areas[0]), float(covariance[0, 0])
    if variance <= 0 or area in (0.0, 1.0):
        raise Undefined(
            f"AUROC is {area:g}: its estimated variance is 0, the interval would be too"
        )
    reach = stats.norm.ppf((1 + confidence) / 2) * np.sqrt(variance)
    return [float(max(0.0, area - reach)), float(min(1.0, area + reach))]


def paired_test(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray | None = None,
) -> dict[str, float]:
    """Tests whether the AUROC of `first` and `second` differ on the same cases.

    Args:
      labels: int[N], 1 = positive.
      first, second: float[N], or float[S, N] of S training seeds, whose mean AUROC is compared. The
        test covers the choice of patients, not that of seeds.
      clusters: [N] patient of each case; None treats all cases as independent.

    Returns:
      difference (first - second), standard_error, z, p (two-sided).

    Raises:
      Undefined: as `auroc_covariance`; or the scores rank the cases alike (variance 0).
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    areas, covariance = auroc_covariance(labels, np.concatenate([first, second]), clusters)
    contrast = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    difference = float(contrast @ areas)
    variance = float(contrast @ covariance @ contrast)
    if variance <= 1e-18:
        raise Undefined("both scores rank the cases alike: there is no variance to test with")
    z = difference / np.sqrt(variance)
    return {
        "difference": difference,
        "standard_error": float(np.sqrt(variance)),
        "z": float(z),
        "p": float(2 * stats.norm.sf(abs(z))),
    }


def _placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f64[S, M], f64[S, N]: for each case, the share of cases of the other class on its correct
    side; ties count one half.

    Computed from midranks (Sun and Xu 2014) in n log n time; comparing all pairs takes M * N.
    """
    m, n = positive.shape[1], negative.shape[1]
    together = stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    among_positive = stats.rankdata(positive, axis=1)
    among_negative = stats.rankdata(negative, axis=1)
    return (
        (together[:, :m] - among_positive) / n,
        1 - (together[:, m:] - among_negative) / m,
    )


def _cluster_sums(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """f64[S, N] -> f64[S, size] sums over the cases of each cluster."""
    return np.stack([np.bincount(index, row, minlength=size) for row in values])
