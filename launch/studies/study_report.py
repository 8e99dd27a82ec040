"""Writes a study's results as tables: for the terminal, as CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from launch.studies.plan import UNITS, Study
from osteojax.files import write_json, write_text

SIMULATED = (
    "Simulated patients. These numbers say whether the method does what it is there for on data "
    "whose truth is known; they say nothing of patients."
)
SCORE_FIELDS = (
    "row", "cohort", "seeds", "unit", "group", "metric", "estimate", "low", "high", "n",
    "patients", "positives", "note",
)  # fmt: skip
CONTRAST_FIELDS = (
    "first", "second", "metric", "unit", "group", "expected", "matters", "seeds", "n",
    "difference", "low", "high", "p", "p_holm", "verdict", "note",
)  # fmt: skip
SWAP_FIELDS = (
    "row", "from", "to", "n", "patients", "true_change", "predicted_change", "low", "high", "error",
    "error_of_no_change", "note",
)  # fmt: skip
FAILURE_FIELDS = ("row", "seed", "reason")
_SIGNS = {1: "+", -1: "-", 0: "none"}


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _line(self.header), _line(["---"] * len(self.header))]
        return "\n".join([*lines, *(_line(row) for row in self.rows)]) + "\n"

    def terminal(self) -> Table:
        table = Table(title=self.title, box=box.SIMPLE_HEAD, title_justify="left")
        for number, name in enumerate(self.header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of a study.

    Attributes:
      scores, contrasts, device_swap, failures: lines, with the fields above.
      hours: row -> hours of its seeds, with the pre-training if it was made for this row.
    """

    scores: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    device_swap: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    hours: dict[str, float]


def write(out: Path, study: Study, results: Results) -> list[Grid]:
    """Writes scores.csv, contrasts.csv, device_swap.csv, failures.csv, study.md and study.json.

    Returns:
      the tables of study.md, for the terminal.
    """
    for name, fields, lines in (
        ("scores.csv", SCORE_FIELDS, results.scores),
        ("contrasts.csv", CONTRAST_FIELDS, results.contrasts),
        ("device_swap.csv", SWAP_FIELDS, results.device_swap),
        ("failures.csv", FAILURE_FIELDS, results.failures),
    ):
        write_text(out / name, csv_text(fields, lines))
    grids = _grids(study, results)
    head = [f"# {study.name}", "", SIMULATED, "", f"Size: {study.size}", "", _how(study), ""]
    write_text(out / "study.md", "\n".join([*head, *(grid.markdown() for grid in grids)]))
    about = {"study": study.name, "size": study.size, "simulated": True}
    write_json(out / "study.json", {**about, **dataclasses.asdict(results)})
    return grids


def _how(study: Study) -> str:
    return (
        "Mean over training seeds and 95% interval of a bootstrap over patients and seeds "
        f"({study.resamples} resamples; {study.contrast_resamples} for contrasts, so that the "
        f"smallest p after Holm's correction is {study.smallest_p:.3f}). Thresholds are Youden's "
        "on validation. SEN and SPE are sensitivity and specificity under their true definitions. "
        "A patient is positive if any vertebra is. MAE is of BMD, g/cm^2."
    )


def _grids(study: Study, results: Results) -> list[Grid]:
    """The main table first, then the contrasts, then metrics by site."""
    scores = results.scores
    groups = list(dict.fromkeys(line["group"] for line in scores))
    ends = [group for group in ("internal", "external") if group in groups]
    columns = [
        (unit, group, metric, f"{metric}, {unit}, {group}")
        for unit, metric in (("vertebra", "AUROC"), ("patient", "AUROC"), ("vertebra", "MAE"))
        for group in ends
    ]
    grids = [_grid(study, scores, "All rows", columns)]
    if results.contrasts:
        grids.append(_contrast_grid(results.contrasts))
    if results.device_swap:
        grids.append(_swap_grid(results.device_swap))
    for unit in UNITS:
        title = f"{unit.capitalize()} level, internal test"
        names = ("AUROC", "AUPRC", "F1", "SEN", "SPE", "PPV", "NPV")
        grids.append(_grid(study, scores, title, [(unit, "internal", m, m) for m in names]))
        for metric in ("AUROC", "F1") + (("MAE",) if unit == "vertebra" else ()):
            title = f"{unit.capitalize()} level, {metric} by site"
            columns = [(unit, group, metric, _group_name(group)) for group in groups]
            grids.append(_grid(study, scores, title, columns))
    grids = [grid for grid in grids if grid.rows]
    if results.failures:
        rows = tuple((f["row"], str(f["seed"]), f["reason"]) for f in results.failures)
        grids.append(Grid("What failed", ("row", "seed", "reason"), rows))
    if results.hours:
        spent = tuple((name, f"{60 * value:.1f}") for name, value in results.hours.items())
        grids.append(Grid("Minutes on this machine, all seeds", ("row", "minutes"), spent))
    return grids


def _grid(
    study: Study,
    scores: Sequence[dict[str, Any]],
    title: str,
    columns: Sequence[tuple[str, str, str, str]],
) -> Grid:
    """A table with a line per row of the study. columns: (unit, group, metric, heading) each."""
    found = {(s["row"], s["unit"], s["group"], s["metric"]): s for s in scores}
    seeds = {s["row"]: s["seeds"] for s in scores}
    rows = []
    for row in study.rows:
        if row.name in seeds:
            cells = [score_cell(found.get((row.name, *column[:3]))) for column in columns]
            cohort = study.trained(row).cohort
            rows.append((row.name, cohort, str(len(seeds[row.name])), *cells))
    return Grid(title, ("row", "cohort", "seeds", *(column[3] for column in columns)), tuple(rows))


def _contrast_grid(contrasts: Sequence[dict[str, Any]]) -> Grid:
    rows = []
    for line in contrasts:
        name, expected, difference = contrast_cells(line)
        p = "-" if line["p_holm"] is None else f"{line['p_holm']:.3f}"
        where = f"{line['metric']}, {line['unit']}, {_group_name(line['group'])}"
        rows.append((name, where, expected, difference, p, line["verdict"]))
    header = ("contrast", "of", "expected (matters)", "difference", "p (Holm)", "verdict")
    return Grid("Contrasts that were fixed before the run", header, tuple(rows))


def _swap_grid(swaps: Sequence[dict[str, Any]]) -> Grid:
    rows = []
    for line in swaps:
        interval = "" if line["low"] is None else f" [{line['low']:+.3f}, {line['high']:+.3f}]"
        rows.append(
            (
                line["row"],
                f"{line['from']} -> {line['to']}",
                str(line["n"]),
                f"{line['true_change']:+.3f}",
                f"{line['predicted_change']:+.3f}{interval}",
                f"{line['error']:.3f} ({line['error_of_no_change']:.3f})",
            )
        )
    header = ("row", "devices", "n", "true change", "predicted change", "error (of no change)")
    return Grid("Device swapped at test: change of BMD, g/cm^2", header, tuple(rows))


def contrast_cells(line: dict[str, Any]) -> tuple[str, str, str]:
    """A contrast's rows, what was expected, and the difference with its interval."""
    interval = "" if line["low"] is None else f" [{line['low']:+.3f}, {line['high']:+.3f}]"
    difference = "-" if line["difference"] is None else f"{line['difference']:+.3f}{interval}"
    expected = f"{_SIGNS[line['expected']]} ({line['matters']:g})"
    return f"{line['first']} - {line['second']}", expected, difference


def score_cell(line: dict[str, Any] | None) -> str:
    """An estimate with its interval; "-" where there is none."""
    if line is None or line["estimate"] is None:
        return "-"
    interval = "" if line["low"] is None else f" [{line['low']:.3f}, {line['high']:.3f}]"
    return f"{line['estimate']:.3f}{interval}"


def _group_name(group: str) -> str:
    return group if group in ("internal", "external") else f"site {group}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def csv_text(fields: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for line in lines:
        cells = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in line.items()}
        writer.writerow(cells)
    return text.getvalue()
