"""Aggregates vertebrae to patients.

A patient's truth and prediction use the same vertebrae, the labelled ones. An unlabelled vertebra
has a probability but no truth; including it would compare a prediction about one set of vertebrae
with the truth about another.
"""

from __future__ import annotations

import pandas as pd

from osteojax.evaluation.predictions import labelled

RULES = ("any", "mean")
"""Rules for a patient's probability: "any" is the largest of the vertebrae's (in the paper, a
patient is positive if any vertebra is), "mean" their mean. Under both, the truth is positive if any
vertebra is."""


def aggregate(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    """One row per patient with at least one labelled vertebra, in order of patient_id.

    Args:
      table: a checked predictions table.
      rule: member of `RULES`.

    Returns:
      patient_id, site, split, sex, age, device ("mixed" for several DXA scanners), vertebrae
      (number of labelled ones), osteoporosis int64, probability float64.
    """
    if rule not in RULES:
        raise ValueError(f"patient rule {rule!r}; rules are {', '.join(RULES)}")
    groups = labelled(table).groupby("patient_id", sort=True)
    return groups.agg(
        site=("site", _one_or_mixed),
        split=("split", "first"),
        sex=("sex", _one_or_mixed),
        age=("age", "min"),
        device=("device", _one_or_mixed),
        vertebrae=("level", "size"),
        osteoporosis=("osteoporosis", "max"),
        probability=("probability", "max" if rule == "any" else "mean"),
    ).reset_index()


def cases_of(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The labelled cases of a checked table: vertebrae, or patients by one of `RULES`.

    Args:
      unit: "vertebra", "patient" (any-positive) or "patient_mean".

    Returns:
      columns patient_id, osteoporosis int64, probability, site, device, sex, age, ...
    """
    if unit == "vertebra":
        return labelled(table)
    return aggregate(table, "any" if unit == "patient" else "mean")


def _one_or_mixed(values: pd.Series) -> str:
    unique = values.unique()
    return str(unique[0]) if len(unique) == 1 else "mixed"
