"""Histograms of the stored codes of every map, over a sample of vertebrae of bounded size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from launch.inspection import drawing
from launch.inspection.members import shown_codes, shown_planes, spread, stores_maps
from osteojax.data.boxes import REGIONS
from osteojax.data.codes import MapSpec
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import HU_MAX, HU_MIN

SAMPLE = 64
"""Largest number of vertebrae that are counted: 57 million voxels at 96^3."""

COLOURS = {"box": "0.6", "vertebra": "#0072b2", "body": "#d55e00"}
"""Regions with their colours (Okabe and Ito's blue and vermilion)."""


@dataclasses.dataclass(frozen=True)
class Histograms:
    """Counts of codes.

    Attributes:
      counts: region -> i64[len(POOL), 256], of shown windows; "box" is every voxel inside the CT,
        "vertebra" the mask's, "body" the vertebral body's where the folder has it.
      rows: i64[...] rows of the folder's table that were counted.
    """

    counts: dict[str, np.ndarray]
    rows: np.ndarray


def count_codes(cohort: PreparedCohort, sample: int = SAMPLE) -> Histograms:
    """Counts the codes of at most `sample` vertebrae, evenly spread over the folder."""
    rows = spread(sample, len(cohort))
    names = [name for name in REGIONS if name != "body" or cohort.about.has_body]
    counts = {name: np.zeros((len(cohort.about.maps), 256), np.int64) for name in names}
    for row in rows:
        mask, inside, *body = shown_planes(cohort, int(row))
        regions = [inside, mask & inside, *(plane & inside for plane in body)]
        for member, codes in enumerate(shown_codes(cohort, int(row))):
            for name, voxels in zip(names, regions, strict=True):
                counts[name][member] += np.bincount(codes[voxels], minlength=256)
    return Histograms(counts, rows)


def ends(counts: np.ndarray, spec: MapSpec) -> tuple[float, float]:
    """Shares of voxels in the first and in the last code of the stored range.

    In the image these are the clipped voxels. In maps, many voxels in the last code mean that the
    stored range is wrong; the first code is a map's lowest value (flat tissue, air).
    """
    total = max(int(counts.sum()), 1)
    return float(counts[0] / total), float(counts[spec.codes - 1] / total)


def draw_histograms(cohort: PreparedCohort, found: Histograms, out: Path) -> None:
    """Writes a PNG: a panel per map, in its unit, linear or logarithmic as it is stored."""
    about = cohort.about
    figure = drawing.new_figure(11.0, 6.4)
    panels = figure.subplots(2, 3).ravel()
    for member, (axis, spec) in enumerate(zip(panels, about.maps, strict=False)):
        _panel(axis, spec, {name: own[member] for name, own in found.counts.items()})
    panels[0].legend(loc="upper right", fontsize=8, frameon=False)
    for axis in panels[len(about.maps) :]:
        axis.axis("off")
    panels[-1].text(
        0.0, 0.95, _caption(cohort, found), va="top", fontsize=8, linespacing=1.5,
        transform=panels[-1].transAxes,
    )  # fmt: skip
    drawing.save(figure, out)


def _panel(axis: Axes, spec: MapSpec, counts: dict[str, np.ndarray]) -> None:
    """Draws shares of voxels by code. Bars of end codes may be cut; the text has their shares."""
    highest, lines = 0.0, []
    for name, of_region in counts.items():
        own = of_region[: spec.codes]
        shares = 100 * own / max(int(own.sum()), 1)
        highest = max(highest, float(shares[1:-1].max()))
        axis.stairs(
            shares, np.arange(spec.codes + 1) - 0.5, color=COLOURS[name], label=name,
            fill=name == "box", alpha=0.6 if name == "box" else 1.0, linewidth=1.2,
        )  # fmt: skip
        low, high = ends(of_region, spec)
        lines.append(f"{name}: {_percent(low)} in the lowest code, {_percent(high)} in the highest")
    low_value, high_value = spec.decode(np.array([0, spec.codes - 1], np.uint8))
    axis.set_title(f"{spec.name}\n" + "\n".join(lines), fontsize=8)
    axis.set_ylim(0, 1.15 * highest if highest else 1.0)
    axis.set_xlim(-2, spec.codes + 1)
    ticks = _ticks(spec, float(low_value), float(high_value))
    axis.set_xticks([_code(spec, tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    scale = ", log(1 + x) scale" if spec.transform == "log1p" else ""
    axis.set_xlabel(f"{drawing.unit_text(spec)}{scale}", fontsize=8)
    axis.set_ylabel("% of voxels per code", fontsize=8)
    axis.tick_params(labelsize=7)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _code(spec: MapSpec, value: float) -> float:
    t = np.log1p(value) if spec.transform == "log1p" else value
    return float((t - spec.offset) / spec.step)


def _ticks(spec: MapSpec, low: float, high: float) -> list[float]:
    """Round values within the stored range."""
    if spec.name == "image":
        return list(range(-200, 1001, 200))
    if spec.transform == "log1p":
        return drawing.log_ticks(low, high)
    step = max(1, 10 * round((high - low) / 50))
    return [tick for tick in range(0, int(high) + 1, step) if low <= tick <= high]


def _percent(share: float) -> str:
    if share == 0:
        return "none"
    return f"{100 * share:#.2g}%" if share >= 1e-4 else "< 0.01%"


def _caption(cohort: PreparedCohort, found: Histograms) -> str:
    table = cohort.table.iloc[found.rows]
    if len(found.rows) == len(cohort):
        sample = f"All {len(cohort)} vertebrae"
    else:
        sample = f"{len(found.rows)} of {len(cohort)} vertebrae, evenly spread over the folder"
    splits = ", ".join(f"{n} {split}" for split, n in table["split"].value_counts().items())
    lines = [
        f"{sample}:",
        f"{splits}; {table['scan_id'].nunique()} scans, {table['site'].nunique()} sites.",
        "",
        "box: every voxel inside the CT.",
        "vertebra: voxels of the mask; body: of the vertebral body.",
        "The end codes of the image also hold what was clipped",
        f"to [{HU_MIN:g}, {HU_MAX:g}) HU.",
    ]
    if not stores_maps(cohort.about):
        lines.append("Maps made for this picture: the folder stores the image alone.")
    return "\n".join(lines)
