"""The page over all CTs of a prediction: a table to sort, with a link to the page of each CT."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from osteojax.evaluation.report.templates import template

TEMPLATE = "scans.html.jinja"
ANSWERS = {None: "undecided", True: "suspected", False: "not suspected"}
COLUMNS = (
    ("scan", "text"),
    ("device", "text"),
    ("osteoporosis", "text"),
    ("probability", "number"),
    ("threshold", "number"),
    ("BMD, g/cm2", "number"),
    ("levels", "text"),
    ("caution", "text"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table. page: where the CT's own page lies, as a relative URL."""

    page: str
    cells: tuple[str, ...]


def render(
    answers: Sequence[dict[str, Any]],
    pages: Sequence[str],
    failures: Sequence[tuple[str, str, str]],
) -> str:
    """The HTML.

    Args:
      answers: contents of the CTs' prediction.json.
      pages: path of each CT's page, relative to this one.
      failures: (case, reason, remedy).
    """
    rows = [Row(quote(page), _cells(content)) for page, content in zip(pages, answers, strict=True)]
    found = Counter(ANSWERS[content["patient"]["osteoporosis_pred"]] for content in answers)
    counts = ", ".join(f"{found[word]} {word}" for word in ANSWERS.values())
    return template(TEMPLATE).render(
        title=f"{len(rows)} CT{'' if len(rows) == 1 else 's'}",
        rows=rows,
        columns=COLUMNS,
        counts=f"{counts}, {len(failures)} failed",
        notes=_notes_of_all(answers),
        failures=failures,
    )


def _cells(content: dict[str, Any]) -> tuple[str, ...]:
    patient = content["patient"]
    deciding = [row for row in content["vertebrae"] if row["decides"]]
    bmd = [row["bmd_pred_g_cm2"] for row in deciding]
    return (
        content["case"],
        content["device"],
        ANSWERS[patient["osteoporosis_pred"]],
        "" if patient["probability"] is None else f"{patient['probability']:.3f}",
        f"{patient['threshold_patient']:.3f}" if deciding else "",
        f"{sum(bmd) / len(bmd):.3f}" if bmd else "",
        " ".join(row["level"] for row in deciding),
        patient["caution"],
    )


def _notes_of_all(answers: Sequence[dict[str, Any]]) -> list[str]:
    """Notes that every CT has, such as that the model was trained on simulated CTs."""
    if not answers:
        return []
    first, *others = (content["patient"]["notes"] for content in answers)
    return [note for note in first if all(note in notes for notes in others)]
