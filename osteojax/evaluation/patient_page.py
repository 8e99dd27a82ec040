"""One page for one CT: where the vertebrae are and what the model says of each."""

from __future__ import annotations

import dataclasses
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

PAGE_SPACING_MM = 1.5
PROBABILITY_COLOURS = "viridis_r"
EXPERT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclasses.dataclass(frozen=True)
class Reformat:
    """The spine, straightened sideways: at each height the planes follow the vertebral centres.

    Attributes:
      sagittal_hu: f32[Z, Y], inferior to superior, anterior to posterior.
      coronal_hu: f32[Z, X], inferior to superior, right to left.
      sagittal_classes, coronal_classes: uint8, class 1-18 of the vertebra there, or 0.
      spacing_mm: of both axes.
    """

    sagittal_hu: np.ndarray
    coronal_hu: np.ndarray
    sagittal_classes: np.ndarray
    coronal_classes: np.ndarray
    spacing_mm: float


def reformat(
    hu_ZYX: np.ndarray,
    classes_ZYX: np.ndarray,
    centres_index: np.ndarray,
    spacing_mm: float = PAGE_SPACING_MM,
) -> Reformat:
    """Sagittal and coronal planes through the vertebral centres.

    Args:
      hu_ZYX, classes_ZYX: on an isotropic grid along superior, posterior, left.
      centres_index: f64[N, 3], centres of the vertebrae as (z, y, x) indices.
    """
    depth = hu_ZYX.shape[0]
    order = np.argsort(centres_index[:, 0])
    heights = np.arange(depth)

    def along(axis: int) -> np.ndarray:
        path = np.interp(heights, centres_index[order, 0], centres_index[order, axis])
        return np.clip(np.rint(path).astype(int), 0, hu_ZYX.shape[axis] - 1)

    y, x = along(1), along(2)
    return Reformat(
        hu_ZYX[heights, :, x],
        hu_ZYX[heights, y, :],
        classes_ZYX[heights, :, x],
        classes_ZYX[heights, y, :],
        spacing_mm,
    )


def draw(planes: Reformat, table: pd.DataFrame, answer: dict[str, Any], title: str) -> Figure:
    """The page.

    Args:
      planes: of the CT.
      table: one row per vertebra from above: level, level_class, probability, bmd_g_cm2, bmd_low,
        bmd_high (NaN where no interval is known), gate_*, flags (text), decides (bool).
      answer: of the patient: text, threshold_vertebra.
      title: the user's own name of the case.
    """
    figure = plt.figure(figsize=(13, 8.2), layout="constrained")
    grid = GridSpec(
        2, 5, figure=figure, height_ratios=(12, 1), width_ratios=(2.2, 2.2, 1.6, 1.6, 1.2)
    )
    colours = plt.get_cmap(PROBABILITY_COLOURS)
    _plane(
        figure.add_subplot(grid[0, 0]), planes.sagittal_hu, planes.sagittal_classes,
        table, colours, planes.spacing_mm, "sagittal (anterior left)",
    )  # fmt: skip
    _plane(
        figure.add_subplot(grid[0, 1]), planes.coronal_hu, planes.coronal_classes,
        table, colours, planes.spacing_mm, "coronal (patient's right on the left)",
    )  # fmt: skip
    bars = [figure.add_subplot(grid[0, i]) for i in (2, 3, 4)]
    _probabilities(bars[0], table, colours, answer["threshold_vertebra"])
    _bmd(bars[1], table)
    _gates(bars[2], table)
    for axis in bars:
        axis.set_ylim(len(table) - 0.5, -0.5)
        axis.spines[["top", "right"]].set_visible(False)
    bars[0].set_yticks(range(len(table)), [_row_name(row) for _, row in table.iterrows()])
    for axis in bars[1:]:
        axis.set_yticks([])
    note = figure.add_subplot(grid[1, :])
    note.axis("off")
    note.text(0, 0.9, _notes(table, answer), va="top", fontsize=9, wrap=True)
    figure.suptitle(f"{title}: {answer['text']}", fontsize=13)
    return figure


def _plane(axis, hu, classes, table, colours, spacing_mm: float, title: str) -> None:
    height, width = hu.shape[0] * spacing_mm, hu.shape[1] * spacing_mm
    axis.imshow(
        hu, cmap="gray", vmin=-200, vmax=700, origin="lower", extent=(0, width, 0, height),
        interpolation="bilinear",
    )  # fmt: skip
    for _, row in table.iterrows():
        inside = classes == row["level_class"]
        if not inside.any():
            continue
        z, other = np.nonzero(inside)
        axis.contour(
            inside.astype(float), levels=[0.5], colors=[colours(row["probability"])],
            linewidths=1.6, extent=(0, width, 0, height),
        )  # fmt: skip
        axis.text(
            other.mean() * spacing_mm, z.mean() * spacing_mm, row["level"], color="white",
            fontsize=8, ha="center", va="center",
        )  # fmt: skip
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("mm")
    axis.tick_params(labelsize=8)


def _row_name(row: pd.Series) -> str:
    return row["level"] if row["decides"] else f"({row['level']})"


def _probabilities(axis, table: pd.DataFrame, colours, threshold: float) -> None:
    rows = np.arange(len(table))
    axis.barh(rows, table["probability"], color=[colours(p) for p in table["probability"]])
    for i, probability in enumerate(table["probability"]):
        inside = probability > 0.8
        axis.text(
            probability + (-0.02 if inside else 0.02), i, f"{probability:.2f}", va="center",
            ha="right" if inside else "left", color="white" if inside else "black", fontsize=9,
        )  # fmt: skip
    axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axis.set_xlim(0, 1)
    axis.set_title("probability of osteoporosis", fontsize=10)
    axis.set_xlabel(f"dashed: threshold {threshold:.2f}", fontsize=9)


def _bmd(axis, table: pd.DataFrame) -> None:
    rows = np.arange(len(table))
    value = table["bmd_g_cm2"].to_numpy()
    if table["bmd_low"].notna().all():
        errors = np.clip([value - table["bmd_low"], table["bmd_high"] - value], 0, None)
        axis.errorbar(value, rows, xerr=errors, fmt="o", color="#0072B2", capsize=3)
        axis.set_xlabel("g/cm$^2$, 90% of validation errors", fontsize=9)
    else:
        axis.plot(value, rows, "o", color="#0072B2")
        axis.set_xlabel("g/cm$^2$", fontsize=9)
    axis.set_title("BMD", fontsize=10)
    axis.margins(x=0.15)


def _gates(axis, table: pd.DataFrame) -> None:
    names = [name for name in table.columns if name.startswith("gate_")]
    left = np.zeros(len(table))
    for i, name in enumerate(names):
        weight = table[name].to_numpy()
        axis.barh(
            np.arange(len(table)), weight, left=left, label=str(i + 1),
            color=EXPERT_COLOURS[i % len(EXPERT_COLOURS)],
        )  # fmt: skip
        left += weight
    axis.set_xlim(0, 1)
    axis.set_title("expert weights", fontsize=10)
    axis.legend(
        title="expert", ncols=len(names), fontsize=8, title_fontsize=8, handlelength=1,
        columnspacing=0.8, loc="upper center", bbox_to_anchor=(0.5, -0.06),
    )  # fmt: skip


def _notes(table: pd.DataFrame, answer: dict[str, Any]) -> str:
    lines = [f"{row['level']}: {row['flags']}" for _, row in table.iterrows() if row["flags"]]
    lines += answer["notes"]
    lines.append("Levels in brackets are outside L1-L4: shown, not decided on.")
    lines.append("Research only. Not a medical device, not a diagnosis.")
    return "\n".join(lines)
