"""SwAV's loss, its gradient and its optimiser in float64 NumPy, from the papers (Caron et al. 2020,
Loshchilov & Hutter 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np


def assignment(scores_NK: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Sinkhorn's Q, f64[N, K], in the linear domain; every row sums to 1."""
    samples, prototypes = scores_NK.shape
    q = np.exp(scores_NK / epsilon)
    for _ in range(iterations):
        for k in range(prototypes):
            q[:, k] /= q[:, k].sum() * prototypes
        for n in range(samples):
            q[n] /= q[n].sum() * samples
    return q * samples


def targets(
    projection_BVD: np.ndarray, vectors_KD: np.ndarray, queue_QVD: np.ndarray, settings: Any
) -> np.ndarray:
    """Q of every view of the batch beside the queue's (which may be empty), f64[B, V, K]."""
    unit = vectors_KD / np.linalg.norm(vectors_KD, axis=1, keepdims=True)
    found = []
    for view in range(projection_BVD.shape[1]):
        everyone = np.concatenate([projection_BVD[:, view], queue_QVD[:, view]])
        q = assignment(everyone @ unit.T, settings.sinkhorn_epsilon, settings.sinkhorn_iterations)
        found.append(q[: len(projection_BVD)])
    return np.stack(found, axis=1)


def loss(
    projection_BVD: np.ndarray, vectors_KD: np.ndarray, targets_BVK: np.ndarray, settings: Any
) -> dict[str, float]:
    """ "swapped" (both directions of a pair of views, averaged over pairs and examples),
    "diversity" and the whole "loss", with given targets."""
    unit = vectors_KD / np.linalg.norm(vectors_KD, axis=1, keepdims=True)
    logits = projection_BVD @ unit.T / settings.temperature
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    views, prototypes = projection_BVD.shape[1], len(vectors_KD)
    terms = [
        -(targets_BVK[:, one] * log_p[:, other]).sum(axis=-1).mean()
        for one in range(views)
        for other in range(views)
        if one != other
    ]
    squares = [max(unit[i] @ unit[j], 0.0) ** 2 for i in range(prototypes) for j in range(i)]
    swapped, diversity = 2 * float(np.mean(terms)), float(np.mean(squares))
    return {
        "swapped": swapped,
        "diversity": diversity,
        "loss": swapped + settings.diversity_weight * diversity,
    }


def slope(function: Any, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Gradient of a function of an array by central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        found[place] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return found


def trained_prototypes(
    vectors_KD: np.ndarray, gradients: list[np.ndarray], rate: float, optim: Any, settings: Any
) -> list[np.ndarray]:
    """The prototypes after each of some AdamW steps with given gradients. They stand still for
    `freeze_prototypes_steps`; with `unit_prototypes` every step ends at unit length."""
    m = v = np.zeros_like(vectors_KD)
    found, count = [], 0
    for step, gradient in enumerate(gradients):
        if step >= settings.freeze_prototypes_steps:
            count += 1
            m = optim.beta1 * m + (1 - optim.beta1) * gradient
            v = optim.beta2 * v + (1 - optim.beta2) * gradient**2
            adam = m / (1 - optim.beta1**count)
            adam = adam / (np.sqrt(v / (1 - optim.beta2**count)) + 1e-8)
            vectors_KD = vectors_KD - rate * (adam + optim.weight_decay * vectors_KD)
        if settings.unit_prototypes:
            vectors_KD = vectors_KD / np.linalg.norm(vectors_KD, axis=1, keepdims=True)
        found.append(vectors_KD)
    return found
