"""Distance of a vertebra from those that the model was trained on (out-of-distribution score).

It is the Mahalanobis distance in the encoder's embedding (Lee et al., NeurIPS 2018, with one
class). The covariance of the training vertebrae is shrunk by Ledoit and Wolf's (2004) method, since
there may be fewer vertebrae than features. Quantiles on validation say which distances are usual.
An input that differs only in ways that the encoder ignores is not detected.

`embedding.safetensors` contains

    mean        f32[F]       of the training vertebrae's embeddings
    whitening   f32[F, F]    distance = |whitening (embedding - mean)| / sqrt(F)
    quantiles   f32[101]     of the distances on validation: 0%, 1%, ... 100%

and, as metadata, `format`, `format_version`, `checkpoint_step`, `which`, `training_vertebrae` and
`validation_vertebrae`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from osteojax.errors import UserError
from osteojax.files import atomic_path

FILE = "embedding.safetensors"
FORMAT, FORMAT_VERSION = "osteojax-embedding", "1"
UNUSUAL_PERCENTILE = 99.0
"""A vertebra whose distance exceeds this percentile of validation counts as unlike training."""
MIN_TRAINING, MIN_VALIDATION = 20, 20

Stats = dict[str, np.ndarray]


def fit(training: np.ndarray, validation: np.ndarray) -> Stats:
    """Computes statistics from f[N, F] embeddings of training and f[M, F] of validation vertebrae.

    Raises:
      Undefined: fewer than `MIN_TRAINING` or `MIN_VALIDATION`, or values that are not finite.
    """
    from sklearn.covariance import ledoit_wolf  # not imported at the top: `predict` runs without it

    from osteojax.evaluation.statistics.metrics import Undefined

    for name, rows, least in (
        ("training", training, MIN_TRAINING),
        ("validation", validation, MIN_VALIDATION),
    ):
        if len(rows) < least:
            raise Undefined(f"needs {least} {name} vertebrae, has {len(rows)}")
        if not np.isfinite(rows).all():
            raise Undefined(f"embeddings of {name} vertebrae are not finite")
    training = np.asarray(training, np.float64)
    covariance, _ = ledoit_wolf(training)
    values, vectors = np.linalg.eigh(covariance)
    # The lower bound avoids a division by 0 for directions in which training does not vary.
    values = np.maximum(values, max(1e-6 * values.max(), 1e-12))
    stats = {
        "mean": training.mean(axis=0).astype(np.float32),
        # Contiguous, because safetensors writes the buffer in memory order.
        "whitening": np.ascontiguousarray((vectors / np.sqrt(values)).T, np.float32),
    }
    distances = ood_distance(validation, stats)
    stats["quantiles"] = np.percentile(distances, np.arange(101)).astype(np.float32)
    return stats


def ood_distance(embedding: np.ndarray, stats: Stats) -> np.ndarray:
    """f64[B] distances of f[B, F] embeddings, about 1 for a vertebra of the training split.

    Raises:
      UserError: the embedding has another length than the statistics.
    """
    embedding, mean = np.asarray(embedding, np.float64), stats["mean"]
    if embedding.ndim != 2 or embedding.shape[1] != len(mean):
        raise UserError(
            f"{FILE} is for embeddings of {len(mean)} features, the model's have shape "
            f"{embedding.shape}: they belong to different models. Evaluate and export again."
        )
    whitened = (embedding - mean) @ stats["whitening"].astype(np.float64).T
    return np.sqrt(np.mean(whitened**2, axis=1))


def percentile(distance: np.ndarray, stats: Stats) -> np.ndarray:
    """f64[B]: percentile, 0-100, of each of f[B] distances among those on validation."""
    quantiles = stats["quantiles"].astype(np.float64)
    distance = np.asarray(distance, np.float64)
    found = np.interp(distance, quantiles, np.arange(101.0))
    return np.where(distance > quantiles[-1], 100.0, found)


def unusual(distance: np.ndarray, stats: Stats) -> np.ndarray:
    """bool[B]: farther than 99% of the validation vertebrae."""
    return np.asarray(distance, np.float64) > stats["quantiles"][int(UNUSUAL_PERCENTILE)]


def save(path: str | Path, stats: Stats, facts: dict[str, Any]) -> None:
    """Writes the file, atomically; facts are its metadata (checkpoint_step, which, ...)."""
    named = {str(key): str(value) for key, value in facts.items()}
    named |= {"format": FORMAT, "format_version": FORMAT_VERSION}
    with atomic_path(path) as temporary:
        save_file(stats, str(temporary), metadata=named)


def load(path: str | Path) -> Stats:
    """Reads a file that `save` wrote. Raises UserError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. `osteojax evaluate` writes it.")
    try:
        with safe_open(str(path), "numpy") as file:
            facts = file.metadata() or {}
            stats = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}). Evaluate and export again.") from error
    kind = facts.get("format"), facts.get("format_version")
    size = stats["mean"].size if "mean" in stats else -1
    shapes = {"mean": (size,), "whitening": (size, size), "quantiles": (101,)}
    if kind != (FORMAT, FORMAT_VERSION) or {k: v.shape for k, v in stats.items()} != shapes:
        raise UserError(
            f"{path}: not statistics of embeddings of this version (format {kind[0]!r}, version "
            f"{kind[1]!r}, tensors {', '.join(sorted(stats)) or 'none'}). Evaluate again."
        )
    return stats
