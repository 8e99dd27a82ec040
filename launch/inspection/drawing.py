"""Draws a slice: colours, mask outline, directions, colour bar in the map's unit.

Slices are of a vertebra's box, axes [0] inferior to superior, [1] anterior to posterior, [2] the
patient's right to left, and are shown by radiological convention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, FuncNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from osteojax.data.codes import MapSpec
from osteojax.data.vertebrae import HU_MIN
from osteojax.files import atomic_path

WINDOW_HU = (HU_MIN, 600.0)
OUTSIDE_CT = "#5b7fa6"
"""Colour of voxels without data: a blue that is in neither colour map."""
OUTLINE = {"image": "#ff9d3b", "map": "white"}
HIDDEN_PERCENT = 0.2
"""Percentage of a map's voxels that are clipped to the brightest colour; otherwise a few at
cortical edges would darken all others."""

PLANES = {
    "sagittal": "SIAP",
    "coronal": "SIRL",
    "axial": "APRL",
}
"""Plane -> the directions on top, at the bottom, on the left and on the right of its picture."""


def plane(volume: np.ndarray, name: str, at: Sequence[int] | None = None) -> np.ndarray:
    """[H, W] of the slice of [D, H, W] through a voxel, in a plane of `PLANES`, its first row on
    top. at: index of the voxel; the middle by default."""
    z, y, x = [size // 2 for size in volume.shape] if at is None else at
    if name == "sagittal":
        return volume[::-1, :, x]
    if name == "coronal":
        return volume[::-1, y, :]
    return volume[z]


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, made without pyplot and its global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Writes a PNG, atomically, without matplotlib's metadata."""
    with atomic_path(path) as temporary:
        figure.savefig(
            temporary, dpi=dpi, format="png", bbox_inches="tight", metadata={"Software": None}
        )


def norm(spec: MapSpec, values: Iterable[np.ndarray]) -> Normalize:
    """Colour scale of a map: the CT window for the image, else the range of the given values (NaN
    ignored) without the top HIDDEN_PERCENT, linear or logarithmic as the map is stored."""
    low, high = WINDOW_HU
    if spec.name != "image":
        shown = np.concatenate([v.ravel() for v in values])
        shown = shown[np.isfinite(shown)]
        low, high = (0.0, 1.0) if not shown.size else (
            float(shown.min()), float(np.percentile(shown, 100 - HIDDEN_PERCENT))
        )  # fmt: skip
        high = high if high > low else low + 1
    if spec.transform == "log1p":
        return FuncNorm((np.log1p, np.expm1), low, high)
    return Normalize(low, high)


def colours(spec: MapSpec) -> Colormap:
    """Grey for the CT, viridis for maps; both are readable without colour vision."""
    return colormaps["gray" if spec.name == "image" else "viridis"].with_extremes(bad=OUTSIDE_CT)


def draw_slice(
    axis: Axes, values: np.ndarray, mask: np.ndarray, spec: MapSpec, scale: Normalize
) -> AxesImage:
    """Draws float[H, W] in the map's unit (NaN: outside the CT) and the outline of bool[H, W]."""
    drawn = axis.imshow(values, cmap=colours(spec), norm=scale, interpolation="nearest")
    if mask.any() and not mask.all():
        colour = OUTLINE["image" if spec.name == "image" else "map"]
        outline = axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.7)
        outline.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="black")])
    axis.set_xticks([])
    axis.set_yticks([])
    return drawn


def draw_directions(axis: Axes, name: str) -> None:
    """Writes the four directions of a plane around its picture, where they hide no bone."""
    places = ((0.5, 1.01), (0.5, -0.01), (-0.01, 0.5), (1.01, 0.5))
    aligned = (("center", "bottom"), ("center", "top"), ("right", "center"), ("left", "center"))
    for letter, (x, y), (across, up) in zip(PLANES[name], places, aligned, strict=True):
        axis.text(x, y, letter, transform=axis.transAxes, ha=across, va=up, fontsize=7)


def draw_bar(figure: Figure, drawn: AxesImage, axes: Any, spec: MapSpec, **where: Any) -> None:
    """Draws a colour bar in the map's unit beside some axes."""
    bar = figure.colorbar(drawn, ax=axes, extend="max", **where)
    if spec.transform == "log1p":
        low, high = drawn.get_clim()
        bar.set_ticks(log_ticks(low or 0.0, high or 1.0))
        bar.minorticks_off()
    bar.set_label(unit_text(spec), fontsize=7)
    bar.ax.tick_params(labelsize=6)


def log_ticks(low: float, high: float) -> list[float]:
    """Round tick values within a log1p scale: 0, 1, 3, 10, ..., or closer ones if few fit."""
    ticks: list[float] = []
    for multiples in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        values = [0.0, *(m * 10.0**power for power in range(4) for m in multiples)]
        ticks = [value for value in values if low <= value <= high]
        if len(ticks) >= 4:
            break
    return ticks


def unit_text(spec: MapSpec) -> str:
    """The unit as it is written in a figure."""
    return spec.unit.replace("^2", "\N{SUPERSCRIPT TWO}")
