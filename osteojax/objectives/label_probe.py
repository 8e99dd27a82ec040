"""A frozen linear readout of a binary label, whose regularisation is chosen within training."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import GroupKFold

STRENGTHS = 10.0 ** np.arange(-6.0, 1.1, 0.5)
"""Of the ridge penalty, relative to the largest squared singular value of the embeddings. At the
smallest, directions of a thousandth of the largest one's deviation are read nearly in full."""

FOLDS = 5


def ridge_scores(
    train_NF: np.ndarray, label_N: np.ndarray, patient_N: np.ndarray, valid_MF: np.ndarray
) -> np.ndarray:
    """Scores of a ridge regression on labels of +-1, whose order is all that an AUROC needs.

    Encoders put most of their variance into a few directions, and the label need not be there. A
    fixed penalty either hides the others or fits noise, so the strength is chosen: that with the
    largest correlation of label and score over held-out folds of training patients. Correlation,
    not squared error, because a shrunk score in the right order is right.

    Args:
      train_NF: embeddings of training vertebrae.
      label_N: int[N], 0 or 1, both present.
      patient_N: [N] patients; all vertebrae of one are in one fold.
      valid_MF: embeddings to be scored.

    Returns:
      f64[M].
    """
    train_NF, valid_MF = train_NF.astype(np.float64), valid_MF.astype(np.float64)
    target_N = 2.0 * label_N - 1.0
    num_folds = min(FOLDS, len(set(patient_N)))
    chosen = len(STRENGTHS) // 2
    if num_folds > 1:
        held_out_SN = np.zeros((len(STRENGTHS), len(train_NF)))
        for fit, rest in GroupKFold(num_folds).split(train_NF, groups=patient_N):
            held_out_SN[:, rest] = _scores(train_NF[fit], target_N[fit], train_NF[rest])
        chosen = int(np.argmax([_correlation(s_N, target_N) for s_N in held_out_SN]))
    return _scores(train_NF, target_N, valid_MF)[chosen]


def _scores(train_NF: np.ndarray, target_N: np.ndarray, other_MF: np.ndarray) -> np.ndarray:
    """f64[len(STRENGTHS), M], from one singular value decomposition."""
    mean_F, mean_target = train_NF.mean(axis=0), target_N.mean()
    left_NR, singular_R, right_RF = np.linalg.svd(train_NF - mean_F, full_matrices=False)
    squared_R = singular_R**2
    penalty_S = STRENGTHS * max(squared_R.max(initial=0.0), 1e-30)
    shrunk_SR = singular_R / (squared_R + penalty_S[:, None])
    weights_SR = shrunk_SR * (left_NR.T @ (target_N - mean_target))
    return weights_SR @ (right_RF @ (other_MF - mean_F).T) + mean_target


def _correlation(score_N: np.ndarray, target_N: np.ndarray) -> float:
    """Pearson's; -1 for a constant score, which is never chosen."""
    if np.ptp(score_N) == 0.0:
        return -1.0
    return float(np.corrcoef(score_N, target_N)[0, 1])
