"""Warnings at the top of the report, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from osteojax.data.vertebrae import UNKNOWN_DEVICE
from osteojax.evaluation.statistics import bootstrap

UNIT_NAMES = {
    "vertebra": "vertebrae",
    "patient": "patients (any vertebra positive)",
    "patient_mean": "patients (mean probability)",
}


def warnings(
    summary: dict[str, Any], table: pd.DataFrame, training_devices: Sequence[str] | None
) -> list[str]:
    """Sentences on rows that were left out, values that could not be fitted or computed, groups of
    few patients, and DXA scanners that training did not have.

    Args:
      summary: of `summary.summarise`: fitted, diagnosis and left_out.
      table: the predictions that the summary is about.
      training_devices: DXA scanners of the training split; None if not known.
    """
    return [
        *_left_out(summary["left_out"]),
        *(
            f"Validation, {name}: no {what} could be fitted: {why}."
            for unit, name in UNIT_NAMES.items()
            for what, why in summary["fitted"][unit]["notes"].items()
        ),
        *_groups(summary["diagnosis"]),
        *_devices(table, training_devices),
    ]


def _left_out(rows: list[dict[str, Any]]) -> Iterator[str]:
    table = pd.DataFrame(rows, columns=["split", "scan_id", "level", "reason"])
    for (split, reason), part in table.groupby(["split", "reason"], sort=False):
        first = f"{part['scan_id'].iloc[0]}/{part['level'].iloc[0]}"
        more = f" and {len(part) - 1} more" if len(part) > 1 else ""
        yield (
            f"Split {split}: {first}{more} left out of every number ({reason}): "
            "tables/left_out.csv names them."
        )


def _groups(diagnosis: dict[str, Any]) -> Iterator[str]:
    """Groups with one class, and those with too few patients for an interval."""
    for unit in ("vertebra", "patient"):
        groups = diagnosis[unit]
        named = [("Internal", groups["internal"])]
        for part in ("internal", "external"):
            sites = groups["sites"][part].items()
            if not groups[part]["n"]:
                continue  # sites of a part without labels would repeat the same sentence
            named += [(f"{part.capitalize()}, site {site}", entry) for site, entry in sites]
        for name, entry in named:
            reason = entry["at_0.5"]["notes"].get("AUROC")
            if reason:
                yield f"{name}, {UNIT_NAMES[unit]}: no AUROC: {reason}."
            elif entry["patients"] < bootstrap.MIN_PATIENTS:
                count = f"{entry['patients']} patient{'s' * (entry['patients'] != 1)}"
                yield (
                    f"{name}, {UNIT_NAMES[unit]}: {count} only; no interval, and the numbers mean "
                    "little."
                )


def _devices(table: pd.DataFrame, training_devices: Sequence[str] | None) -> Iterator[str]:
    if training_devices is None:
        return
    known = {*training_devices, UNKNOWN_DEVICE, ""}
    for device in sorted(set(table["device"]) - known):
        n = int((table["device"] == device).sum())
        yield (
            f"DXA device {device} ({n} vertebrae) was never seen in training: its embedding "
            "is untrained and its results are not to be trusted."
        )
