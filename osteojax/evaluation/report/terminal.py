"""Tables for a terminal: fewer columns than in the report, 80 characters wide."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from osteojax.evaluation.report import tables
from osteojax.evaluation.report.cells import Shown


def rendered(shown: Shown) -> RichTable:
    """The table for `rich.print`; brackets go to a second line of the cell."""
    table = RichTable(
        title=shown.title,
        caption=escape("\n".join(shown.notes)) or None,
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    for i, name in enumerate(shown.header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in shown.rows:
        # A site called "[red]" is a name, not a colour.
        table.add_row(*(escape(cell.replace(" (", "\n(")) for cell in row))
    return table


def main_tables(summary: dict[str, Any]) -> list[Shown]:
    """The tables that `osteojax evaluate` prints, within 80 columns: diagnosis at the validation
    threshold, BMD, level. Only the main number has an interval; the report has all intervals."""
    return [
        _narrow(tables.diagnosis(summary, "vertebra", "at_validation_threshold")),
        _narrow(tables.diagnosis(summary, "patient", "at_validation_threshold")),
        _narrow(tables.bmd(summary)),
        _narrow(tables.position(summary)),
    ]


def _narrow(shown: Shown) -> Shown:
    """Short headers, fewer columns, intervals of the first metric only."""
    short = {
        "positive / cases": "pos./n",
        "limits of agreement": "limits",
        "vertebrae": "n",
        "within one level": "within 1",
        "mean error, levels": "mean error",
    }
    dropped, with_interval = {"patients", "AUPRC"}, {"AUROC", "MAE", "accuracy"}
    keep = [i for i, name in enumerate(shown.header) if name not in dropped]
    header = tuple(short.get(shown.header[i], shown.header[i]) for i in keep)
    rows = []
    for row in shown.rows:
        cells = [
            row[i]
            if shown.header[i] in with_interval
            else row[i].split(" (")[0].replace(" / ", "/")
            for i in keep
        ]
        rows.append((cells[0].replace("internal, ", ""), *cells[1:]))
    return Shown(shown.title, header, tuple(rows), shown.notes)
