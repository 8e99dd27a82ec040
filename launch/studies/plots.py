"""Figure of a study's contrasts: expected signs, results, and differences that would matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from osteojax.evaluation.report.plots import COLOURS, GREY

LOOKS = {
    "as expected": (COLOURS[2], "o"),
    "against expectation": (COLOURS[1], "X"),
    "no difference that matters": (COLOURS[0], "s"),
    "not shown": (GREY, "D"),
    "inconclusive": (GREY, "|"),
}
"""Beginning of a verdict (scores.verdict) -> its colour and marker."""

_INCHES_A_LINE = 0.3


def contrasts(lines: Sequence[dict[str, Any]]) -> Figure | None:
    """Every contrast with its interval, a panel per metric; None if none could be computed.

    The band shows differences that do not matter; an arrow points to the expected side.
    """
    found = [line for line in lines if line["low"] is not None]
    metrics = list(dict.fromkeys(line["metric"] for line in found))
    if not metrics:
        return None
    counts = [sum(line["metric"] == metric for line in found) for metric in metrics]
    figure = Figure(figsize=(10, _INCHES_A_LINE * (sum(counts) + 4 * len(metrics))))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=[n + 1 for n in counts])
    for axis, metric in zip(grid[:, 0], metrics, strict=True):
        _panel(axis, metric, [line for line in found if line["metric"] == metric])
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=name)
        for name, (colour, marker) in LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _panel(axis: Axes, metric: str, lines: list[dict[str, Any]]) -> None:
    reach = 1.05 * max(max(abs(line["low"]), abs(line["high"]), line["matters"]) for line in lines)
    for place, line in enumerate(lines):
        colour, marker = _colour_and_marker(line["verdict"])
        axis.fill_betweenx(
            [place - 0.5, place + 0.5], -line["matters"], line["matters"], color="#eeeeee", lw=0
        )
        axis.plot([line["low"], line["high"]], [place, place], color=colour, linewidth=1.6)
        axis.plot(line["difference"], place, color=colour, marker=marker, markersize=7)
        if line["expected"]:
            axis.plot(
                0.98 * line["expected"] * reach, place, color="black",
                marker=">" if line["expected"] > 0 else "<", markersize=4,
            )  # fmt: skip
    axis.axvline(0.0, color=GREY, linewidth=0.8, zorder=0.5)
    axis.set_yticks(range(len(lines)), [_name(line) for line in lines], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set(ylim=(len(lines) - 0.5, -0.5), xlim=(-reach, reach))
    unit = ", g/cm²" if metric == "MAE" else ""
    axis.set_xlabel(
        f"difference of {metric}{unit} (95% interval; band: does not matter; arrow: expected)"
    )
    axis.spines[["top", "right"]].set_visible(False)


def _colour_and_marker(verdict: str) -> tuple[str, str]:
    return next(look for name, look in LOOKS.items() if verdict.startswith(name))


def _name(line: dict[str, Any]) -> str:
    where = [line["unit"]] if line["unit"] != "vertebra" else []
    where += [line["group"]] if line["group"] != "internal" else []
    name = f"{line['first']} − {line['second']}"
    return f"{name} ({', '.join(where)})" if where else name
