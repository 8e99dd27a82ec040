"""One page for one CT: the spine with its vertebrae, and the model's predictions for each."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec

from osteojax.evaluation.columns import expert_columns
from osteojax.evaluation.report.planes import Reformat
from osteojax.files import atomic_path

AXIAL_PLANES = 4
PROBABILITY_COLOURS = "viridis_r"
CAUTION_COLOUR = "#B00020"
EXPERT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclasses.dataclass(frozen=True)
class Attention:
    """Grad-CAM of one vertebra in the mid-sagittal plane.

    Attributes:
      level: "L1".
      hu: f32[Z, Y], inferior to superior, anterior to posterior.
      share: f32[Z, Y] >= 0, Grad-CAM divided by the vertebra's maximum; all 0 if no channel raised
        the risk of osteoporosis.
    """

    level: str
    hu: np.ndarray
    share: np.ndarray


def draw(
    planes: Reformat,
    table: pd.DataFrame,
    answer: dict[str, Any],
    title: str,
    attention: Sequence[Attention] = (),
) -> Figure:
    """Draws the page.

    Args:
      planes: of the CT.
      table: one row per vertebra from above: level, level_class, core_hu, probability,
        probability_calibrated (NaN where none was fitted), bmd_pred_g_cm2, bmd_low, bmd_high (NaN
        where no interval is known), expert_*, flags (text), doubtful (bool), decides (bool).
      answer: of the patient: verdict, caution, notes, threshold_vertebra.
      title: the user's name of the case; empty for a page without a name.
      attention: of some vertebrae, for a row of slices.
    """
    shown = _axial_rows(table)
    heights = (12.0, *([3.6] if shown else []), *([3.2] if attention else []), 1.6)
    figure = Figure(figsize=(13, 8.6 / 13.6 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    sagittal, coronal = planes.sagittal_hu.shape[1], planes.coronal_hu.shape[1]
    widths = (  # both planes have the same scale
        5.0 * sagittal / (sagittal + coronal), 5.0 * coronal / (sagittal + coronal), 1.6, 1.6, 1.2
    )  # fmt: skip
    grid = GridSpec(len(heights), 5, figure=figure, height_ratios=heights, width_ratios=widths)
    colours = colormaps[PROBABILITY_COLOURS]
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
    bars[0].set_ylabel("level, and HU of its trabecular core", fontsize=9)
    for label, doubtful in zip(bars[0].get_yticklabels(), table["doubtful"], strict=True):
        label.set_color(CAUTION_COLOUR if doubtful else "black")
    for axis in bars[1:]:
        axis.set_yticks([])
    if shown:
        _axial(figure, grid[1, :], planes, table, shown, colours)
    if attention:
        _attention(figure, grid[-2, :], attention)
    note = figure.add_subplot(grid[-1, :])
    note.axis("off")
    note.text(0, 1.0, _notes(table, answer), va="top", fontsize=8.5)
    entitle(figure, title, answer)
    return figure


def entitle(figure: Figure, title: str, answer: dict[str, Any]) -> None:
    """Writes the case's name, if it has one, and the answer above the page."""
    head = f"{title}: {answer['verdict']}" if title else answer["verdict"]
    caution = textwrap.fill(f"Caution: {answer['caution']}", 130) if answer["caution"] else ""
    figure.suptitle(
        "\n".join([textwrap.fill(head, 105), caution]).strip(),
        fontsize=12, color=CAUTION_COLOUR if caution else "black",
    )  # fmt: skip


def pixels(figure: Figure) -> np.ndarray:
    """uint8[H, W, 3] of the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | Path) -> None:
    """Writes the page as PNG at 150 dots per inch, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _attention(figure: Figure, place: SubplotSpec, attention: Sequence[Attention]) -> None:
    """A row of slices with Grad-CAM laid over them."""
    row = place.subgridspec(1, len(attention))
    for i, one in enumerate(attention):
        axis = figure.add_subplot(row[0, i])
        axis.imshow(one.hu, cmap="gray", vmin=-200, vmax=700, origin="lower")
        if one.share.max() > 0:
            axis.imshow(one.share, cmap="inferno", origin="lower", alpha=0.55 * one.share)
            name = f"{one.level}: where it looked"
        else:
            name = f"{one.level}: nothing speaks for it"
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()


def _axial_rows(table: pd.DataFrame) -> list[int]:
    """The vertebrae whose axial planes are shown: those that decide, or else the first ones."""
    deciding = np.flatnonzero(table["decides"])
    return (deciding if len(deciding) else np.arange(len(table)))[:AXIAL_PLANES].tolist()


def _axial(
    figure: Figure, place: SubplotSpec, planes: Reformat, table: pd.DataFrame, shown: list[int],
    colours: Colormap,
) -> None:  # fmt: skip
    """A row of axial planes with the outline of the mask."""
    row = place.subgridspec(1, AXIAL_PLANES)
    for place_in_row, i in enumerate(shown):
        axis = figure.add_subplot(row[0, place_in_row])
        plane, vertebra = planes.axial[i], table.iloc[i]
        axis.imshow(plane.hu, cmap="gray", vmin=-200, vmax=700, interpolation="bilinear")
        inside = plane.classes == vertebra["level_class"]
        if inside.any():
            colour = colours(vertebra["probability"])
            axis.contour(inside.astype(float), levels=[0.5], colors=[colour], linewidths=1.6)
        axis.set_title(f"{vertebra['level']}, axial (patient's right on the left)", fontsize=9)
        axis.set_axis_off()


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
    level = row["level"] if row["decides"] else f"({row['level']})"
    return f"{level}\n{row['core_hu']:.0f} HU" if np.isfinite(row["core_hu"]) else level


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
    label = f"dashed: threshold {threshold:.2f}"
    if table["probability_calibrated"].notna().all():
        axis.plot(
            table["probability_calibrated"], rows + 0.28, "D", color="white", clip_on=False,
            markeredgecolor="black", markersize=5,
        )  # fmt: skip
        label += "\ndiamond: calibrated"
    axis.set_xlim(0, 1)
    axis.set_title("probability of osteoporosis", fontsize=10)
    axis.set_xlabel(label, fontsize=9)


def _bmd(axis, table: pd.DataFrame) -> None:
    rows = np.arange(len(table))
    value = table["bmd_pred_g_cm2"].to_numpy()
    if table["bmd_low"].notna().all():
        errors = np.clip([value - table["bmd_low"], table["bmd_high"] - value], 0, None)
        axis.errorbar(value, rows, xerr=errors, fmt="o", color="#0072B2", capsize=3)
        axis.set_xlabel("g/cm$^2$\n90% of validation errors", fontsize=9)
    else:
        axis.plot(value, rows, "o", color="#0072B2")
        axis.set_xlabel("g/cm$^2$", fontsize=9)
    axis.set_title("BMD", fontsize=10)
    axis.margins(x=0.15)


def _gates(axis, table: pd.DataFrame) -> None:
    names = expert_columns(table)
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
    flags = "  |  ".join(lines)
    notes = [
        *answer["notes"],
        "Levels in brackets are outside L1-L4: shown, not decided on.",
        "Research only. Not a medical device, not a diagnosis.",
    ]
    parts = [flags, " ".join(notes)] if flags else [" ".join(notes)]
    return "\n".join(textwrap.fill(part, 190) for part in parts)
