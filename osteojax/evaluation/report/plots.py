"""Figures of the report. Each function takes a checked predictions table and returns a Figure.

Colours are Okabe and Ito's, which are distinct for any colour vision; curves differ by line style
too. A figure that cannot be drawn shows the reason instead, so that no panel is missing silently.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from osteojax.data.vertebrae import LEVELS
from osteojax.evaluation.columns import expert_columns
from osteojax.evaluation.patients import cases_of
from osteojax.evaluation.statistics import calibration
from osteojax.evaluation.statistics.metrics import Undefined, auroc, bmd_regression
from osteojax.evaluation.subgroups import device_names
from osteojax.evaluation.summary import auroc_interval, gate_usage, net_benefit_table
from osteojax.files import atomic_path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#666666"
_PANELS = (("vertebra", "Vertebrae"), ("patient", "Patients (any vertebra positive)"))


def save(figure: Figure, path: str | Path) -> None:
    """Writes the figure as PNG at 150 dots per inch, atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def roc(table: pd.DataFrame) -> Figure:
    """ROC curves of vertebrae and patients: internal test in black, each site in colour."""
    figure, axes = _panels(2)
    for axis, (unit, title) in zip(axes, _PANELS, strict=True):
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        internal = table[table["split"] != "external"]
        if internal["site"].nunique() > 1:
            _roc_curve(axis, cases_of(internal, unit), "all internal", "black", "-", 2.2)
        groups = list(table.groupby(["site", "split"], sort=True))
        for number, ((site, split), rows) in enumerate(groups):
            name = f"site {site}" + (", external" if split == "external" else "")
            style = STYLES[number % len(STYLES)]
            colour = COLOURS[number % len(COLOURS)]
            _roc_curve(axis, cases_of(rows, unit), name, colour, style, 1.6)
        axis.set(
            title=title,
            xlabel="1 - specificity",
            ylabel="sensitivity",
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
            aspect="equal",
        )
        axis.legend(
            loc="lower right",
            fontsize=8,
            title="AUROC, 95% interval of DeLong",
            title_fontsize=8,
            edgecolor="none",
            handlelength=3,
        )
    return figure


def _roc_curve(
    axis: Axes, cases: pd.DataFrame, name: str, colour: str, style: object, width: float
) -> None:
    labels, scores = cases["osteoporosis"].to_numpy(), cases["probability"].to_numpy()
    try:
        label = f"{name}: {auroc(labels, scores):.3f}{_interval(cases)}, n = {len(labels)}"
        false_rate, true_rate, _ = roc_curve(labels, scores)
    except Undefined as reason:
        label, false_rate, true_rate = f"{name}: {reason}", [], []
    axis.plot(false_rate, true_rate, color=colour, linestyle=style, linewidth=width, label=label)


def _interval(cases: pd.DataFrame) -> str:
    """(low-high) of the AUROC, empty where there is none."""
    try:
        low, high = auroc_interval(cases)
    except Undefined:
        return ""
    return f" ({low:.3f}–{high:.3f})"


def reliability(table: pd.DataFrame, fitted: dict) -> Figure:
    """Share positive against mean probability, before and after temperature scaling.

    Args:
      table: checked predictions; internal rows are drawn.
      fitted: of `summary.fit_on_validation`, for its temperatures.
    """
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=[4, 1])
    internal = table[table["split"] != "external"]
    for column, (unit, title) in enumerate(_PANELS):
        axis, below = grid[0, column], grid[1, column]
        cases = cases_of(internal, unit)
        labels, raw = cases["osteoporosis"].to_numpy(), cases["probability"].to_numpy()
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="ideal")
        axis.set(title=title, ylabel="share positive", xlim=(0, 1), ylim=(-0.02, 1.02))
        below.set(xlabel="predicted probability of osteoporosis", ylabel="cases")
        if len(labels) == 0:
            _say(axis, "no labelled cases")
            continue
        curves = [("as predicted", raw, 0)]
        temperature = fitted[unit]["temperature"]
        if temperature is not None:
            scaled = calibration.apply_temperature(raw, temperature)
            curves.append((f"temperature {temperature:.2f}", scaled, 1))
        for name, probabilities, number in curves:
            rows = calibration.reliability(labels, probabilities)
            rows = rows[rows[:, 0] > 0]
            ece = calibration.expected_calibration_error(labels, probabilities)
            axis.plot(
                rows[:, 1],
                rows[:, 2],
                color=COLOURS[number],
                linestyle=STYLES[number],
                marker=MARKERS[number],
                markersize=5,
                label=f"{name}: ECE {ece:.3f}",
            )
        below.hist(raw, bins=np.linspace(0, 1, calibration.BINS + 1), color=COLOURS[0], alpha=0.7)
        # Between the two axes: curves may run anywhere in theirs.
        axis.legend(
            fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3
        )
    return figure


def bmd(table: pd.DataFrame) -> Figure:
    """Predicted against measured BMD, and their Bland-Altman plot, coloured by DXA scanner."""
    figure, (scatter, difference) = _panels(2)
    measured = table[table["bmd_g_cm2"].notna()]
    scatter.set(title="Predicted and measured", xlabel="DXA, g/cm²", ylabel="predicted, g/cm²")
    difference.set(
        title="Bland-Altman",
        xlabel="mean of DXA and predicted, g/cm²",
        ylabel="predicted - DXA, g/cm²",
    )
    if measured.empty:
        for axis in (scatter, difference):
            _say(axis, "no vertebra has a DXA measurement")
        return figure
    truth, predicted = measured["bmd_g_cm2"].to_numpy(), measured["bmd_pred_g_cm2"].to_numpy()
    devices = device_names(measured).to_numpy()
    for number, device in enumerate(sorted(set(devices))):
        rows = devices == device
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        stats = bmd_regression(truth[rows], predicted[rows])
        r = "-" if stats["r"] is None else f"{stats['r']:.2f}"
        style = {"color": colour, "marker": marker, "s": 14, "alpha": 0.6, "linewidths": 0}
        label = f"{device}: MAE {stats['MAE']:.3f}, r {r} (n = {stats['n']})"
        scatter.scatter(truth[rows], predicted[rows], label=label, **style)
        gap = predicted[rows] - truth[rows]
        label = f"{device}: bias {stats['bias']:+.3f}"
        difference.scatter((truth[rows] + predicted[rows]) / 2, gap, label=label, **style)
        difference.axhline(stats["bias"], color=colour, linewidth=0.9, alpha=0.8)
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    scatter.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle=":")
    _limits(difference, bmd_regression(truth, predicted))
    for axis, where in ((scatter, "upper left"), (difference, "lower right")):
        axis.margins(y=0.22)
        axis.legend(fontsize=8, frameon=False, loc=where)
    return figure


def _limits(axis: Axes, stats: dict) -> None:
    """Draws the bias and limits of agreement of all vertebrae, labelled at the right border."""
    for name, text in (("bias", "bias"), ("lower", "-1.96 SD"), ("upper", "+1.96 SD")):
        if stats[name] is None:
            continue
        axis.axhline(stats[name], color="black", linewidth=1.2, linestyle="--")
        axis.annotate(
            f"{text} {stats[name]:+.3f}",
            (1, stats[name]),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )


def gates(table: pd.DataFrame) -> Figure:
    """Mean weight of each expert by DXA scanner, as a heat map with its numbers."""
    usage = gate_usage(table)
    names = list(usage["devices"])
    figure = Figure(figsize=(1.4 * max(3, usage["experts"]) + 2.5, 0.6 * max(3, len(names)) + 1.6))
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    axis.set(title="Mean expert weight by DXA device")
    if not expert_columns(table):
        _say(axis, "the model has no experts")
        return figure
    weights = np.array([usage["devices"][name]["mean"] for name in names])
    picture = axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*weights.shape):
        shade = "white" if weights[row, column] > 0.55 else "black"
        text = f"{weights[row, column]:.2f}"
        axis.text(column, row, text, ha="center", va="center", color=shade)
    axis.set_xticks(range(usage["experts"]), [f"expert {i + 1}" for i in range(usage["experts"])])
    axis.set_yticks(
        range(len(names)), [f"{name} (n = {usage['devices'][name]['n']})" for name in names]
    )
    figure.colorbar(picture, ax=axis, label="mean weight")
    return figure


def levels(table: pd.DataFrame) -> Figure:
    """Confusion of vertebral levels, rows summing to 1, over the levels that occur."""
    truth, predicted = table["level_class"].to_numpy(), table["level_pred"].to_numpy()
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    size = high - low + 1
    counts = np.zeros((size, size))
    np.add.at(counts, (truth - low, predicted - low), 1)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    figure = Figure(figsize=(0.42 * size + 3.0, 0.38 * size + 2.2), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        shade = "white" if share[row, column] > 0.55 else "black"
        text = f"{counts[row, column]:.0f}"
        axis.text(column, row, text, ha="center", va="center", color=shade, fontsize=7)
    names = LEVELS[low - 1 : high]
    axis.set_xticks(range(size), names, fontsize=8)
    axis.set_yticks(range(size), names, fontsize=8)
    axis.set(title="Vertebral levels", xlabel="predicted", ylabel="true (vertebrae counted)")
    figure.colorbar(picture, ax=axis, label="share of the true level", shrink=0.8)
    return figure


def decision_curve(table: pd.DataFrame, fitted: dict) -> Figure:
    """Net benefit of decisions by the temperature-scaled probability, internal rows."""
    figure, axes = _panels(2)
    internal = table[table["split"] != "external"]
    for axis, (unit, title) in zip(axes, _PANELS, strict=True):
        axis.set(title=title, xlabel="threshold probability", ylabel="net benefit per case")
        try:
            curve = net_benefit_table(internal, unit, fitted)
        except Undefined as reason:
            _say(axis, str(reason))
            continue
        for number, (column, name) in enumerate(
            (("model", "act on the model"), ("all", "act on all"), ("none", "act on none"))
        ):
            colour = (COLOURS[0], COLOURS[1], GREY)[number]
            axis.plot(
                curve["threshold"],
                curve[column],
                color=colour,
                linestyle=STYLES[number],
                label=name,
            )
        top = max(curve["model"].max(), curve["all"].max())
        axis.set_ylim(-0.25 * top - 0.01, 1.1 * top + 0.01)
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def _panels(count: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(5 * count, 4.6), layout="constrained")
    return figure, figure.subplots(1, count)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=GREY)
    axis.set_xticks([])
    axis.set_yticks([])
