"""Diagnostics of whether pre-training learns bone (docs/method.md, "SSL diagnostics").

The loss does not show it, because distinguishing maps, scanners or poses lowers it too.
"""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import normalized_mutual_info_score, r2_score, roc_auc_score

from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import POOL
from osteojax.errors import UserError
from osteojax.objectives.label_probe import ridge_scores
from osteojax.ops.sinkhorn import sinkhorn

log = logging.getLogger(__name__)

NMI_MAP_LIMIT = 0.2
"""Above this value, prototypes separate types of maps rather than bones."""

FLAT_LIMIT = 0.98
"""A loss above this share of ln K has taught nothing. In trials on simulated bone, every run that
lost texture stayed above it (docs/method.md)."""


def assignment_metrics(
    cohort: PreparedCohort, pairs: dict[str, np.ndarray], settings: ConfigDict
) -> dict[str, float]:
    """Metrics of what the prototypes encode, from validation pairs.

    Args:
      pairs: rows i64[N], map_ids i32[N, 2], scores f32[N, 2, K].
      settings: `config.objective`.

    Returns:
      prototype_perplexity (1 to K) and assignment_entropy (nats) of predictions; prototypes_used
      and largest_assignment as in `swav.decided`; swapped_prediction (per view), the same per map
      pair (`pair/a+b`), its flat value ln_k, and loss_over_flat; normalised mutual information
      `nmi_*` of the hard assignment with map, site, level, patient and label.
    """
    scores_NVK = jnp.asarray(pairs["scores"])
    log_p_NVK = np.asarray(jax.nn.log_softmax(scores_NVK / settings.temperature, axis=-1))
    p_NVK = np.exp(log_p_NVK)
    targets_NVK = np.stack(
        [
            np.asarray(
                sinkhorn(
                    scores_NVK[:, v],
                    epsilon=settings.sinkhorn_epsilon,
                    num_iterations=settings.sinkhorn_iterations,
                )
            )
            for v in range(scores_NVK.shape[1])
        ],
        axis=1,
    )
    losses_N = -np.sum(targets_NVK[:, ::-1] * log_p_NVK, axis=(1, 2)) / 2
    share_K = p_NVK.mean(axis=(0, 1))
    flat = float(np.log(settings.num_prototypes))
    metrics = {
        "prototype_perplexity": float(np.exp(-np.sum(share_K * np.log(share_K + 1e-30)))),
        "assignment_entropy": float(-np.mean(np.sum(p_NVK * log_p_NVK, axis=-1))),
        "prototypes_used": float(len(np.unique(pairs["scores"].argmax(axis=-1)))),
        "largest_assignment": float(targets_NVK.max()),
        "swapped_prediction": float(losses_N.mean()),
        "ln_k": flat,
        "loss_over_flat": float(losses_N.mean()) / flat,
    }
    return metrics | _pair_losses(pairs["map_ids"], losses_N) | _mutual_information(cohort, pairs)


def _pair_losses(map_ids_N2: np.ndarray, losses_N: np.ndarray) -> dict[str, float]:
    ordered = np.sort(map_ids_N2, axis=1)
    return {
        f"pair/{POOL[s]}+{POOL[t]}": float(losses_N[(ordered == (s, t)).all(axis=1)].mean())
        for s, t in np.unique(ordered, axis=0)
    }


def _mutual_information(cohort: PreparedCohort, pairs: dict[str, np.ndarray]) -> dict[str, float]:
    assignment = pairs["scores"].argmax(axis=-1).reshape(-1)
    rows = np.repeat(pairs["rows"], pairs["map_ids"].shape[1])
    table = cohort.table
    factors = {
        "map": pairs["map_ids"].reshape(-1),
        "site": table["site"].to_numpy()[rows],
        "level": table["level"].to_numpy()[rows],
        "patient": table["patient_id"].to_numpy()[rows],
    }
    metrics = {
        f"nmi_{name}": float(normalized_mutual_info_score(factor, assignment))
        for name, factor in factors.items()
    }
    label = cohort.labels.osteoporosis[rows]
    known = label >= 0
    if known.any():
        nmi = normalized_mutual_info_score(label[known], assignment[known])
        metrics["nmi_label"] = float(nmi)
    return metrics


def probe_metrics(
    cohort: PreparedCohort,
    train_rows: np.ndarray,
    train_NF: np.ndarray,
    valid_rows: np.ndarray,
    valid_NF: np.ndarray,
    label_probe: str = "logistic",
) -> dict[str, float]:
    """Frozen linear probes, fitted on labelled training vertebrae, scored on validation.

    Args:
      label_probe: "ridge" (`label_probe.ridge_scores`), or "logistic" as in osteojax 0.1: logistic
        regression with C 0.1 on one scale, which hardly sees directions of small variance.
        Raises UserError for another.

    Returns:
      label_probe_auroc (absent where a split has one class only),
      hu_probe_r2 (mean HU inside the mask) and volume_probe_r2 (mask volume), by ridge regression.
    """
    metrics: dict[str, float] = {}
    train_NF, valid_NF = on_one_scale(train_NF, valid_NF)
    if len(train_rows) == 0 or len(valid_rows) == 0:
        return metrics
    label = cohort.labels.osteoporosis
    train_known, valid_known = label[train_rows] >= 0, label[valid_rows] >= 0
    train_label, valid_label = label[train_rows][train_known], label[valid_rows][valid_known]
    if len(set(train_label)) == 2 and len(set(valid_label)) == 2:
        if label_probe == "ridge":
            patients = cohort.table["patient_id"].to_numpy()[train_rows][train_known]
            predicted = ridge_scores(
                train_NF[train_known], train_label, patients, valid_NF[valid_known]
            )
        elif label_probe == "logistic":
            probe = LogisticRegression(max_iter=2000, C=0.1)
            probe.fit(train_NF[train_known], train_label)
            predicted = probe.decision_function(valid_NF[valid_known])
        else:
            raise UserError(f"checkpoint.label_probe is {label_probe!r}; choose ridge or logistic.")
        metrics["label_probe_auroc"] = float(roc_auc_score(valid_label, predicted))
    for name, column in (("hu", "mean_hu"), ("volume", "mask_volume_mm3")):
        values = cohort.table[column].to_numpy(np.float64)
        score = r2_score(values[valid_rows], ridge_readout(train_NF, values[train_rows], valid_NF))
        metrics[f"{name}_probe_r2"] = float(score)
    return metrics


def on_one_scale(train_NF: np.ndarray, valid_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, divided by the mean SD of the channels in training. A channel that hardly varies in
    training, divided by its own deviation, would put an unusual vertebra hundreds of deviations
    away."""
    scale = (float(train_NF.std(axis=0).mean()) if len(train_NF) else 1.0) + 1e-12
    return train_NF / scale, valid_NF / scale


def ridge_readout(train_NF: np.ndarray, train_N: np.ndarray, valid_NF: np.ndarray) -> np.ndarray:
    """f[M]: ridge regression of a number on embeddings of one scale, its strength chosen by
    leave-one-out errors in training."""
    return RidgeCV(alphas=np.logspace(-1, 4, 11)).fit(train_NF, train_N).predict(valid_NF)


def warn(
    metrics: dict[str, float], initial_hu_probe: float, warned: set[str], *, warmed_up: bool
) -> None:
    """Logs a warning, once per run, if the encoder learns nothing or map types, or forgets bone
    density.

    Args:
      metrics: of a validation.
      initial_hu_probe: hu_probe_r2 at initialisation; NaN where it is not known.
      warned: names of the warnings that this run has logged; new ones are added.
      warmed_up: whether the learning rate's warm-up is over. Before, a flat loss is no sign.
    """
    if warmed_up and metrics.get("loss_over_flat", 0.0) > FLAT_LIMIT and "flat" not in warned:
        warned.add("flat")
        log.warning(
            "the assignments are flat: after the warm-up the loss is %.3f of ln K, its value where "
            "nothing is learnt. Try a smaller objective.sinkhorn_epsilon (0.02), statistics of the "
            "body (data.statistics=body) and objective.unit_prototypes=true; docs/method.md, SSL "
            "diagnostics, has what such runs had in common.",
            metrics["loss_over_flat"],
        )
    if metrics.get("nmi_map", 0.0) > NMI_MAP_LIMIT and "map" not in warned:
        warned.add("map")
        log.warning(
            "prototypes sort maps by type: NMI %.2f > %.2f. Try data.pairs=cross_group if "
            "it is not set, or model.norm=per_map, and watch valid/nmi_map.",
            metrics["nmi_map"],
            NMI_MAP_LIMIT,
        )
    if metrics.get("hu_probe_r2", np.inf) < initial_hu_probe and "hu" not in warned:
        warned.add("hu")
        log.warning(
            "the encoder predicts mean HU worse (R2 %.2f) than at initialisation (%.2f): it is "
            "forgetting bone density. Watch valid/hu_probe_r2.",
            metrics["hu_probe_r2"],
            initial_hu_probe,
        )
