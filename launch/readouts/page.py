"""Writes the page of a study of frozen readouts: Markdown, CSV, JSON and the figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from launch.readouts import plots
from launch.readouts.plan import ReadoutStudy
from launch.studies import plots as contrast_plots
from launch.studies.study_report import SIMULATED, Grid, contrast_cells, csv_text, score_cell
from osteojax.evaluation.report.plots import save
from osteojax.files import write_json, write_text

SCORE_FIELDS = (
    "part", "row", "seeds", "group", "metric", "patients_fitted", "estimate", "low", "high", "sd",
    "n", "patients", "note",
)  # fmt: skip
CONTRAST_FIELDS = (
    "first", "second", "metric", "group", "patients", "primary", "expected", "matters", "seeds",
    "n", "difference", "low", "high", "p", "p_holm", "verdict", "note",
)  # fmt: skip
UNITS = {"r": "r", "AUROC": "AUROC", "MAE": "BMD error, g/cm²", "r_number": "r of texture number"}


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of a study of frozen readouts.

    Attributes:
      scores, contrasts: lines, with the fields above.
      failures: row, seed, reason.
      encoders: encoder, seed, steps, minutes.
      environment: versions and hardware.
    """

    scores: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    encoders: list[dict[str, Any]]
    environment: dict[str, Any]


def write(out: Path, study: ReadoutStudy, results: Results) -> list[Grid]:
    """Writes study.md, study.json, scores.csv, contrasts.csv, primary.png, readouts.png and
    contrasts.png.

    Returns:
      the tables of study.md, for the terminal.
    """
    write_text(out / "scores.csv", csv_text(SCORE_FIELDS, results.scores))
    write_text(out / "contrasts.csv", csv_text(CONTRAST_FIELDS, results.contrasts))
    grids = tables(study, results)
    head = [f"# {study.name}", "", SIMULATED, "", f"Size: {study.size}", "", _how(study), ""]
    pictures = []
    for name, rows in (("primary", study.questioned), ("readouts", study.rows)):
        if (figure := plots.readouts(study, results.scores, rows)) is not None:
            save(figure, out / f"{name}.png")
            pictures += [f"![{name}]({name}.png)", ""]
    if (figure := contrast_plots.contrasts(_as_of_studies(results.contrasts))) is not None:
        save(figure, out / "contrasts.png")
        pictures += ["![contrasts](contrasts.png)", ""]
    body = [*head, *pictures, *(grid.markdown() for grid in grids), _where(results.environment)]
    write_text(out / "study.md", "\n".join(body) + "\n")
    about = {"study": study.name, "size": study.size, "simulated": True}
    write_json(out / "study.json", {**about, **dataclasses.asdict(results)})
    return grids


def tables(study: ReadoutStudy, results: Results) -> list[Grid]:
    """Two tables for each part, of all patients and of few, then contrasts, time and failures."""
    few = tuple(sorted(study.few, reverse=True))
    parts = [(part, counts) for part in study.parts for counts in ((0,), few)]
    grids = [_part(study, results.scores, part, counts) for part, counts in parts]
    for primary, title in ((True, "Primary contrasts"), (False, "Other contrasts")):
        lines = [line for line in results.contrasts if line["primary"] == primary]
        grids.append(_contrasts(f"{title}, fixed before the run", lines))
    grids.append(_time(results.encoders))
    failures = tuple((f["row"], str(f["seed"]), f["reason"]) for f in results.failures)
    grids.append(Grid("What failed", ("row", "seed", "reason"), failures))
    return [grid for grid in grids if grid.rows]


def _how(study: ReadoutStudy) -> str:
    return (
        "r is Pearson's of log trabecular spacing, predicted by ridge regression from the frozen "
        "embedding; AUROC is of the label, by logistic regression; the BMD error is the mean "
        "absolute one, by ridge regression; r of the texture number is that of what the probe "
        "without truth reads. Readouts are fitted on the patients that pre-train. "
        '"held" are test patients of that cohort, "new" all patients of a second cohort, drawn '
        "with another seed, which no choice ever saw. Mean over training seeds and 95% interval of "
        f"a bootstrap over patients and seeds ({study.resamples} resamples; "
        f"{study.contrast_resamples} for contrasts)."
    )


def _part(
    study: ReadoutStudy, scores: Sequence[dict[str, Any]], part: str, few: tuple[int, ...]
) -> Grid:
    """The rows of a part, with readouts that are fitted on `few` patients (0: all of them); columns
    are what any of the rows has."""
    found = {(s["row"], s["group"], s["metric"], s["patients_fitted"]): s for s in scores}
    seeds = {s["row"]: len(s["seeds"]) for s in scores}
    rows = [row for row in study.rows if row.part == part and row.name in seeds]
    wanted = [
        (group, metric, count) for metric in UNITS for count in few for group in ("held", "new")
    ]
    columns = [key for key in wanted if any((row.name, *key) in found for row in rows)]
    cells = tuple(
        (
            row.name,
            str(seeds[row.name]),
            *(score_cell(found.get((row.name, *key))) for key in columns),
        )
        for row in rows
        if any((row.name, *key) in found for key in columns)
    )
    title = part if few == (0,) else f"{part}: readouts of few patients"
    return Grid(title, ("row", "seeds", *(_heading(*key) for key in columns)), cells)


def _heading(group: str, metric: str, count: int) -> str:
    return f"{UNITS[metric]}, {group}" + (f", {count} patients" if count else "")


def _contrasts(title: str, contrasts: Sequence[dict[str, Any]]) -> Grid:
    rows = []
    for line in contrasts:
        name, expected, difference = contrast_cells(line)
        where = _heading(line["group"], line["metric"], line["patients"])
        p = "-" if line["p_holm"] is None else f"{line['p_holm']:.4f}"
        seeds = str(len(line["seeds"]))
        rows.append((name, where, seeds, expected, difference, p, line["verdict"]))
    header = ("contrast", "of", "seeds", "expected (matters)", "difference", "p (Holm)", "verdict")
    return Grid(title, header, tuple(rows))


def _as_of_studies(contrasts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines as the figure of contrasts wants them, which are of vertebrae of a group."""
    few = {line["patients"]: f", {line['patients']} patients" for line in contrasts}
    few[0] = ""
    return [
        {**line, "unit": "vertebra", "group": f"{line['group']}{few[line['patients']]}"}
        for line in contrasts
    ]


def _time(encoders: Sequence[dict[str, Any]]) -> Grid:
    rows = []
    for name, part in pd.DataFrame(encoders).groupby("encoder", sort=False) if encoders else ():
        minutes, steps = part["minutes"].sum(), part["steps"].sum()
        step = f"{60 * minutes / steps:.2f}" if steps else "-"
        rows.append((str(name), str(len(part)), f"{minutes:.1f}", step))
    header = ("encoder", "seeds", "minutes, all seeds", "seconds a step, with compilation")
    return Grid("Time of pre-training on this machine", header, tuple(rows))


def _where(environment: dict[str, Any]) -> str:
    if not environment:
        return ""
    versions = ", ".join(f"{name} {text}" for name, text in environment["versions"].items())
    return (
        f"Finished on {environment['date']}: {environment['cpu']}, {environment['cpu_cores']} "
        f"cores to a process, {environment['platform']}; Python {environment['python']}, "
        f"{versions}."
    )
