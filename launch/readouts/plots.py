"""Figure of a study of frozen readouts: every row's readout with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from launch.readouts.plan import GROUPS, Readout, ReadoutStudy
from osteojax.evaluation.report.plots import COLOURS, GREY

LOOKS = {"held": (COLOURS[5], "s"), "new": (COLOURS[0], "o")}
"""Group -> colour and marker."""

PANELS = {
    "r": "r of log trabecular spacing",
    "AUROC": "AUROC of the label",
}
_INCHES_A_LINE = 0.24
_APART = 0.36
"""Distance of the two groups of one row, in lines."""


def readouts(
    study: ReadoutStudy, scores: Sequence[dict[str, Any]], rows: Sequence[Readout]
) -> Figure | None:
    """A line for each of some rows, with a point and the 95% interval for either group; one panel
    for r, one for AUROC. None if nothing is scored."""
    found = {
        (s["row"], s["group"], s["metric"]): s
        for s in scores
        if not s["patients_fitted"] and s["estimate"] is not None
    }
    places: dict[str, float] = {}
    headings: dict[str, float] = {}
    line = 0.0
    for part in study.parts:
        names = [row.name for row in rows if row.part == part]
        names = [
            name for name in names if any((name, g, m) in found for g in GROUPS for m in PANELS)
        ]
        if names:
            headings[part] = line
            places |= {name: line + 1 + number for number, name in enumerate(names)}
            line += len(names) + 1.4
    if not places:
        return None
    figure = Figure(figsize=(11, _INCHES_A_LINE * line + 1.3))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        _panel(axis, metric, found, places)
        axis.set_xlabel(title)
        axis.set_ylim(line - 0.4, -0.9)
    _name_rows(axes[0], places, headings)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="-", label=_describe(group))
        for group, (colour, marker) in LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _describe(group: str) -> str:
    return {"held": "held-out patients", "new": "patients of a new cohort"}[group]


def _panel(axis: Axes, metric: str, found: dict[Any, dict[str, Any]], places: dict[str, float]):
    for name, place in places.items():
        for group, (colour, marker) in LOOKS.items():
            entry = found.get((name, group, metric))
            if entry is None:
                continue
            height = place + (_APART / 2 if group == "new" else -_APART / 2)
            if entry["low"] is not None:
                axis.plot([entry["low"], entry["high"]], [height] * 2, color=colour, linewidth=1.6)
            axis.plot(entry["estimate"], height, color=colour, marker=marker, markersize=4.5)
        axis.axhline(place, color="#eeeeee", linewidth=0.6, zorder=0)
    axis.axvline(0.5 if metric == "AUROC" else 0.0, color=GREY, linewidth=0.8, zorder=0.5)
    axis.grid(axis="x", color="#eeeeee")
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _name_rows(axis: Axes, places: dict[str, float], headings: dict[str, float]) -> None:
    """Names of rows and, in bold, of parts, as labels of the axis."""
    labels, at = [*headings, *places], [*headings.values(), *places.values()]
    axis.set_yticks(at, labels, fontsize=8)
    for label in axis.get_yticklabels()[: len(headings)]:
        label.set_fontweight("bold")
