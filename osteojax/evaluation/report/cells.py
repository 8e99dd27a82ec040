"""Tables for readers: cells of text, and footnotes on empty cells."""

from __future__ import annotations

import dataclasses
from typing import Any

ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A table for readers: text cells, and footnotes with reasons for absent cells or intervals."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    interval_notes: tuple[str, ...] = ()


class Missing:
    """Collects reasons for empty cells; groups with the same empty cell and reason share a note."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[str]] = {}
        self._intervals: dict[tuple[str, str], list[str]] = {}

    def add(self, group: str, metric: str, why: str) -> None:
        """Adds one empty cell with its reason."""
        self._values.setdefault((group, why), []).append(metric)

    def entry(self, group: str, entry: dict[str, Any]) -> None:
        """Adds the `notes` and `interval_notes` of an entry of the summary."""
        for metric, why in entry["notes"].items():
            self.add(group, metric, why)
        for metric, why in entry["interval_notes"].items():
            if metric not in entry["notes"]:
                self._intervals.setdefault((group, why), []).append(metric)

    def notes(self) -> tuple[str, ...]:
        """Sentences on absent values, one per reason."""
        return self._texts(self._values, "no")

    def interval_notes(self) -> tuple[str, ...]:
        """Sentences on absent intervals of values that are present."""
        return self._texts(self._intervals, "no interval of")

    @staticmethod
    def _texts(found: dict[tuple[str, str], list[str]], what: str) -> tuple[str, ...]:
        groups: dict[str, list[str]] = {}
        for (group, why), names in found.items():
            why = why.removeprefix("no interval ") if what.startswith("no interval") else why
            groups.setdefault(f"{what} {', '.join(names)}: {why}.", []).append(group)
        return tuple(f"{'; '.join(names)}: {text}" for text, names in groups.items())


def number(value: float | None, digits: int) -> str:
    """The value with some decimals and a typographic minus; `ABSENT` for None."""
    return ABSENT if value is None else f"{value:.{digits}f}".replace("-", "−")


def interval(bounds: list[float] | None) -> str:
    """ "0.824–0.911", "−0.1 to 0.2" where a bound is negative; `ABSENT` for None."""
    if bounds is None:
        return ABSENT
    low, high = (number(bound, 3) for bound in bounds)
    return f"{low}{' to ' if bounds[0] < 0 else ABSENT}{high}"


def estimate(values: dict[str, Any], metric: str, digits: int) -> str:
    """ "0.873 (0.824–0.911)", without the bracket where there is no interval."""
    text = number(values[metric], digits)
    bounds = values["intervals"].get(metric)
    return text if values[metric] is None or bounds is None else f"{text} ({interval(bounds)})"


def share(part: int, whole: int) -> str:
    """ "3 / 10 (30%)"."""
    return f"{part} / {whole}" + (f" ({100 * part / whole:.0f}%)" if whole else "")


def p_value(value: float | None) -> str:
    """Three decimals, "<0.001" below; `ABSENT` for None."""
    if value is None:
        return ABSENT
    return "<0.001" if value < 0.001 else f"{value:.3f}"
