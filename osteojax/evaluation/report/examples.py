"""Figures of single vertebrae: the most confident errors, with the model's input and attention."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from osteojax.evaluation.predictions import labelled
from osteojax.evaluation.report.cells import ABSENT, Shown, number
from osteojax.evaluation.subgroups import NO_DEVICE

LARGEST_ERRORS = 10
PICTURED = 3
"""Number of vertebrae of each kind, each of another patient."""
KINDS = {
    "missed": "Most confident misses",
    "false_alarms": "Most confident false alarms",
    "hits": "Osteoporosis found with the highest probability",
}
WINDOW_HU = (-200.0, 800.0)


@dataclasses.dataclass(frozen=True)
class Picture:
    """The model's input for one vertebra, in the vertebra's frame, with its heat map.

    Arrays are [D, H, W]: inferior to superior, anterior to posterior, right to left.

    Attributes:
      hu: f32, clipped as in the shards.
      mask: bool, the vertebra.
      heat: f32, `osteojax.models.gradcam`, not normalised; None if the model has none.
      spacing_mm: edge of a voxel.
    """

    hu: np.ndarray
    mask: np.ndarray
    heat: np.ndarray | None
    spacing_mm: float


def largest_errors(test: pd.DataFrame, fitted: dict[str, Any]) -> pd.DataFrame:
    """The labelled vertebrae with the most confident wrong decisions at the validation threshold.

    Returns up to `LARGEST_ERRORS` rows, misses and false alarms, the most confident first; no rows
    if no threshold could be fitted.
    """
    kinds = _kinds(test, fitted)
    wrong = kinds[kinds["kind"].isin(("missed", "false_alarms"))]
    columns = ["scan_id", "site", "level", "device", "osteoporosis", "probability", "bmd_g_cm2"]
    return wrong[[*columns, "bmd_pred_g_cm2"]].head(LARGEST_ERRORS).reset_index(drop=True)


def chosen(test: pd.DataFrame, fitted: dict[str, Any]) -> pd.DataFrame:
    """The vertebrae for figures: up to `PICTURED` of each of `KINDS`, one per patient.

    Returns rows of the table with `kind`; errors sorted by confidence, hits by probability.
    """
    kinds = _kinds(test, fitted)
    hits = kinds[kinds["kind"] == "hits"].sort_values("probability", ascending=False, kind="stable")
    parts = [kinds[kinds["kind"] == kind] for kind in ("missed", "false_alarms")]
    found = [part.drop_duplicates("patient_id").head(PICTURED) for part in (*parts, hits)]
    return pd.concat(found, ignore_index=True)


def _kinds(test: pd.DataFrame, fitted: dict[str, Any]) -> pd.DataFrame:
    """Labelled rows with `kind`, the largest error first; no rows without a threshold."""
    cases, threshold = labelled(test), fitted["vertebra"]["threshold"]
    if threshold is None:
        return cases.iloc[:0].assign(kind="")
    called, sick = cases["probability"] >= threshold, cases["osteoporosis"] == 1
    kind = np.select(
        [sick & ~called, ~sick & called, sick & called], list(KINDS), default="right negative"
    )
    distance = (cases["osteoporosis"] - cases["probability"]).abs()
    order = distance.sort_values(ascending=False, kind="stable").index
    return cases.assign(kind=kind).loc[order]


def errors_shown(errors: pd.DataFrame) -> Shown:
    """`largest_errors` as a table."""
    rows = tuple(
        (
            row["scan_id"],
            row["site"],
            row["level"],
            row["device"] or NO_DEVICE,
            "missed" if row["osteoporosis"] else "false alarm",
            f"{row['probability']:.3f}",
            ABSENT if np.isnan(row["bmd_g_cm2"]) else f"{row['bmd_g_cm2']:.3f}",
            f"{row['bmd_pred_g_cm2']:.3f}",
        )
        for row in errors.to_dict("records")
    )
    header = ("scan", "site", "level", "device", "error", "probability", "BMD", "predicted BMD")
    return Shown("Most confident wrong vertebrae, BMD in g/cm²", header, rows)


def draw(rows: pd.DataFrame, pictures: list[Picture], title: str) -> Figure:
    """One row per vertebra: facts, mid-sagittal and mid-axial CT, and both with the heat map.

    Args:
      rows: some of `chosen`.
      pictures: of the same vertebrae.
      title: of the figure.
    """
    figure = Figure(figsize=(9.6, 2.35 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(rows), 5, squeeze=False, width_ratios=(1.1, 1, 1, 1, 1))
    for axes, (_, row), picture in zip(grid, rows.iterrows(), pictures, strict=True):
        axes[0].axis("off")
        axes[0].text(0, 0.5, _facts(row), va="center", fontsize=8, transform=axes[0].transAxes)
        for column, (name, across) in enumerate((("sagittal", 2), ("axial", 0)), start=1):
            _plane(axes[column], picture, across)
            _plane(axes[column + 2], picture, across)
            _heat(axes[column + 2], picture, across)
            axes[column].set_title(name, fontsize=8)
            axes[column + 2].set_title(f"{name}, Grad-CAM", fontsize=8)
    return figure


def _facts(row: pd.Series) -> str:
    measured = ABSENT if np.isnan(row["bmd_g_cm2"]) else f"{row['bmd_g_cm2']:.3f} g/cm²"
    t_score = "" if np.isnan(row["t_score"]) else f", T {number(row['t_score'], 1)}"
    truth = "osteoporosis" if row["osteoporosis"] else "no osteoporosis"
    return (
        f"{row['scan_id']}, {row['level']}\n"
        f"site {row['site']}, {row['device'] or NO_DEVICE}\n\n"
        f"measured: {truth}\n{measured}{t_score}\n\n"
        f"predicted: probability {row['probability']:.3f}\n{row['bmd_pred_g_cm2']:.3f} g/cm²"
    )


def _plane(axis: Axes, picture: Picture, across: int) -> None:
    """The middle plane of the CT across an axis of the volume, with the vertebra's outline."""
    axis.set_xticks([])
    axis.set_yticks([])
    hu, mask = (np.take(v, v.shape[across] // 2, across) for v in (picture.hu, picture.mask))
    low, high = WINDOW_HU
    axis.imshow(hu, cmap="gray", vmin=low, vmax=high, origin=_origin(across))
    if mask.any() and not mask.all():
        axis.contour(mask.astype(float), levels=[0.5], colors="#56B4E9", linewidths=0.8)


def _heat(axis: Axes, picture: Picture, across: int) -> None:
    """The heat map's maximum along the axis, because a single plane would miss other regions."""
    if picture.heat is None or picture.heat.max() <= 0:
        what = "none" if picture.heat is None else "nothing raises\nthe log odds"
        axis.text(0.5, 0.03, what, color="white", fontsize=7, ha="center", transform=axis.transAxes)
        return
    share = np.clip(picture.heat.max(axis=across) / picture.heat.max(), 0, 1)
    alpha = 0.75 * share**0.7
    axis.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=alpha, origin=_origin(across))


def _origin(across: int) -> Literal["upper", "lower"]:
    """Superior is up in sagittal planes, anterior in axial ones."""
    return "lower" if across == 2 else "upper"
