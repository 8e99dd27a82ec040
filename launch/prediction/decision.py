"""From the model's outputs to an answer per vertebra and per patient, with reasons for doubt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from launch.prediction.batches import Outputs
from launch.prediction.flags import Flag, doubts, joined
from launch.prediction.loading import LoadedCase
from osteojax.data.places import find_places, needed_voxels, share_text
from osteojax.data.vertebrae import LEVELS, UNKNOWN_DEVICE
from osteojax.evaluation.predictions import from_outputs
from osteojax.evaluation.statistics import ood
from osteojax.evaluation.statistics.calibration import apply_temperature
from osteojax.export.load import ExportedModel

DECIDING_LEVELS = ("L1", "L2", "L3", "L4")
"""Levels that DXA measures and that have training labels; other levels are extrapolated."""
DEFAULT_THRESHOLD = 0.5
SURE_OF_LEVEL = 0.8
"""Probability from which a predicted level that differs from the mask's gives a flag."""


def vertebra_table(
    model: ExportedModel, loaded: LoadedCase, outputs: Outputs
) -> tuple[pd.DataFrame, list[list[Flag]]]:
    """One row per vertebra from above, and its flags.

    Columns: level, level_class; the model's own (`predictions.from_outputs`), with
    probability_calibrated (NaN without a fitted temperature; thresholds are of the other one) and
    bmd_low, bmd_high (90% of validation residuals; for an unknown device widened to the spread over
    the devices); ood_distance, ood_percentile (NaN without statistics), core_hu, slice_index (of
    the CT, from 0), truncated (1 or 0), decides, flags (text), doubtful (any flag that is more than
    a remark).
    """
    table = pd.DataFrame({"level": [vertebra.level for vertebra in loaded.vertebrae]})
    table["level_class"] = [vertebra.level_class for vertebra in loaded.vertebrae]
    answers = from_outputs(outputs)
    table["probability"] = answers.pop("probability")
    temperature = _fitted(model, "vertebra").get("temperature")
    table["probability_calibrated"] = (
        apply_temperature(table["probability"].to_numpy(), float(temperature))
        if temperature
        else np.nan
    )
    bmd = table["bmd_pred_g_cm2"] = answers.pop("bmd_pred_g_cm2")
    low, high = _residuals(model)
    table["bmd_low"], table["bmd_high"] = bmd + low, bmd + high
    if loaded.case.device == UNKNOWN_DEVICE:
        known = outputs["bmd_by_device_g_cm2"][:, :-1].astype(np.float64)
        table["bmd_low"] = np.fmin(table["bmd_low"], known.min(axis=1))
        table["bmd_high"] = np.fmax(table["bmd_high"], known.max(axis=1))
    table["bmd_low"] = table["bmd_low"].clip(lower=0.0)
    table = pd.concat([table, answers], axis=1)
    distance, percentile, unlike = _unlike_training(model, outputs["embedding"])
    table["ood_distance"], table["ood_percentile"] = distance, percentile
    table["core_hu"] = loaded.core_hu
    table["slice_index"] = loaded.slices
    table["truncated"] = [int(vertebra.truncated) for vertebra in loaded.vertebrae]
    table["decides"] = table["level"].isin(DECIDING_LEVELS)
    flags = [list(found) for found in loaded.flags]
    for i, row in enumerate(table.to_dict("records")):
        if row["level_pred"] != row["level_class"] and row["level_probability"] >= SURE_OF_LEVEL:
            name = LEVELS[row["level_pred"] - 1]
            flags[i].append(Flag("other_level", f"looks like {name} to the model"))
        if unlike[i]:
            text = f"unlike the training data ({_farther(percentile[i])} of validation)"
            flags[i].append(Flag("unlike_training", text))
        flags[i] += _crop_flags(model, loaded.body[i])
    table["flags"] = [joined(found) for found in flags]
    table["doubtful"] = [bool(doubts(found)) for found in flags]
    return table, flags


def _crop_flags(model: ExportedModel, body: np.ndarray) -> list[Flag]:
    """A flag if the model sees crops of the body and none lies inside this one: then it is answered
    from the crop of largest share. body: bool[D, H, W]."""
    crops = model.card["inputs"].get("crops")
    if crops is None:
        return []
    edge, needed = crops["edge_voxels"], float(crops["body_share"])
    _, share = find_places(body, edge, needed)
    if round(share * edge**3) >= needed_voxels(edge, needed):
        return []
    size = f"{edge * model.spacing_mm:g} mm"
    text = f"no {size} crop lies inside its body (the best one is {share_text(share)} body)"
    return [Flag("body_crop", text)]


def _farther(percentile: float) -> str:
    return "farther than all" if percentile > 99.5 else f"farther than {percentile:.0f}%"


def _fitted(model: ExportedModel, unit: str) -> dict[str, Any]:
    """Values fitted on validation for vertebrae or patients; empty without an evaluation."""
    return (model.card.get("fitted") or {}).get(unit) or {}


def _residuals(model: ExportedModel) -> tuple[float, float]:
    """5% and 95% quantile of (measured - predicted) BMD on validation; NaN where not fitted."""
    quantiles = _fitted(model, "bmd_residual_g_cm2").get("quantiles")
    if not quantiles:
        return np.nan, np.nan
    return float(quantiles["0.05"]), float(quantiles["0.95"])


def _unlike_training(
    model: ExportedModel, embedding: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the training embeddings, its percentile on validation, and whether unusual."""
    if model.ood is None:
        unknown = np.full(len(embedding), np.nan)
        return unknown, unknown, np.zeros(len(embedding), bool)
    distance = ood.ood_distance(embedding, model.ood)
    return distance, ood.percentile(distance, model.ood), ood.unusual(distance, model.ood)


def decide(
    model: ExportedModel,
    table: pd.DataFrame,
    device: str,
    flags: list[list[Flag]],
    case_flags: list[Flag],
) -> dict[str, Any]:
    """The patient's answer: positive if any of L1-L4 reaches the patient's threshold.

    Args:
      table, flags: of `vertebra_table`.
      case_flags: of the whole CT.

    Returns:
      osteoporosis_pred (None if the mask has none of L1-L4), probability, threshold_vertebra,
      threshold_patient, verdict, caution (reasons for doubt; empty if there are none), text
      (verdict and caution), flags (names of all doubts), notes.
    """
    thresholds, notes = {}, []
    for unit in ("vertebra", "patient"):
        threshold = _fitted(model, unit).get("threshold")
        if threshold is None:
            notes.append(
                f"No {unit} threshold was fitted on validation: {DEFAULT_THRESHOLD} is used."
            )
        thresholds[unit] = DEFAULT_THRESHOLD if threshold is None else float(threshold)
    notes += _notes(model, device) + [f"{flag.text}." for flag in case_flags]
    deciding = table.index[table["decides"]]
    doubted = [*case_flags, *(flag for i in deciding for flag in flags[i])]
    caution = _caution(table, deciding, flags, case_flags)
    answer: dict[str, Any] = {
        "threshold_vertebra": thresholds["vertebra"], "threshold_patient": thresholds["patient"],
        "caution": caution, "flags": sorted({flag.name for flag in doubts(doubted)}),
        "notes": notes,
    }  # fmt: skip
    if deciding.empty:
        verdict = "undecided, no vertebra of L1-L4 in the mask"
        found: dict[str, Any] = {"osteoporosis_pred": None, "probability": None, "verdict": verdict}
    else:
        row = table.loc[table.loc[deciding, "probability"].idxmax()]
        probability = float(row["probability"])
        positive = probability >= thresholds["patient"]
        verdict = (
            f"{'osteoporosis suspected' if positive else 'no osteoporosis suspected'} (highest of "
            f"L1-L4: {row['level']} {probability:.2f}, threshold {thresholds['patient']:.2f})"
        )
        found = {
            "osteoporosis_pred": positive, "probability": probability, "verdict": verdict
        }  # fmt: skip
    text = f"{verdict}. Caution: {caution}." if caution else f"{verdict}."
    return {**found, **answer, "text": text}


def _notes(model: ExportedModel, device: str) -> list[str]:
    notes = []
    if device == UNKNOWN_DEVICE:
        notes.append(
            "The DXA device is unknown: BMD is a pooled answer, its interval spans the devices."
        )
    if model.ood is None:
        notes.append("The model has no embedding statistics: unusual inputs are not detected.")
    if model.card.get("simulated_training_data"):
        notes.append("This model was trained on simulated CTs.")
    return notes


def _caution(
    table: pd.DataFrame, deciding: pd.Index, flags: list[list[Flag]], case_flags: list[Flag]
) -> str:
    """Reasons to doubt the answer: vertebrae unlike training first, then the CT, then the rest."""
    unlike = [
        table.loc[i, "level"]
        for i in deciding
        if any(flag.name == "unlike_training" for flag in flags[i])
    ]
    other = [
        f"{table.loc[i, 'level']} {flag.text}"
        for i in deciding
        for flag in doubts(flags[i])
        if flag.name != "unlike_training"
    ]
    parts = [f"{', '.join(unlike)} unlike the training data"] if unlike else []
    return "; ".join([*parts, *(flag.text for flag in doubts(case_flags)), *other])
