"""Statistics of a cohort for its manifest: of the training split, and counts per split."""

from __future__ import annotations

from typing import Any

import numpy as np

from osteojax.data.schema import SPLITS


def number_statistics(rows: list[dict[str, Any]], column: str) -> tuple[float, float]:
    """Mean and SD of a column over training rows that have a value; (0, 1) where none has."""
    values = [r[column] for r in rows if r["split"] == "train" and r[column] is not None]
    if not values:
        return 0.0, 1.0
    return float(np.mean(values)), float(np.std(values)) or 1.0


def split_counts(rows: list[dict[str, Any]], label: str) -> dict[str, dict[str, int]]:
    """Patients, rows, and rows that have a value in the column `label`, of each split."""
    counts = {}
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        counts[split] = {
            "patients": len({row["patient_id"] for row in own}),
            "items": len(own),
            "labelled": sum(row[label] is not None for row in own),
        }
    return counts
