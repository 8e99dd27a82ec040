"""Patients of dxa.csv that no scan has, and those whose id a spreadsheet may have changed."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict

SHOWN = 10
"""Ids in a sentence; the rest is a number."""


def near_form(name: str) -> str:
    """An id without case, spaces, leading zeros, a trailing ".0" and an apostrophe before it, which
    spreadsheets add and take away: "0012", "12", "12.0" and "'0012" have the same form."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = re.sub(r"\.0$|^'|\s", "", plain)
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


def loose_form(name: str) -> str:
    """`near_form` without punctuation: "P-0012" and "P12" have the same form."""
    return near_form(re.sub(r"[\W_]", "", near_form(name)))


def near_misses(
    strangers: list[str], patients: list[str], measured: set[str]
) -> dict[str, list[str]]:
    """Stranger -> patients of the cohort whose id is nearly the same.

    Punctuation may tell patients apart (1-1 and 11), so ids that differ in it are near only where
    the patient has no DXA result.

    Args:
      strangers: patients of dxa.csv that no scan has.
      patients: of cohort.csv.
      measured: patients of dxa.csv.
    """
    near, loose = defaultdict(list), defaultdict(list)
    for name in patients:
        near[near_form(name)].append(name)
        if name not in measured and (form := loose_form(name)):
            loose[form].append(name)
    found = {}
    for name in strangers:
        own = near.get(near_form(name)) or loose.get(loose_form(name))
        if own:
            found[name] = own
    return found


def listed(names: list[str]) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
