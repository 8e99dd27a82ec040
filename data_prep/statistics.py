"""What the manifest says of a whole cohort: statistics of the training split, and counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data_prep.pipeline import ScanReport
from data_prep.vertebrae.pool import CODES
from osteojax.data.codes import MapSpec
from osteojax.data.schema import SPLITS
from osteojax.errors import UserError


def map_statistics(specs: tuple[MapSpec, ...], reports: list[ScanReport]) -> tuple[MapSpec, ...]:
    """Mean and SD of t over every voxel of the training vertebrae, exact from summed histograms.

    A map that does not vary, and a cohort without training vertebrae, keep an SD of 1.

    Args:
      reports: of the training scans.

    Raises:
      UserError: a scan has vertebrae but no histograms.
    """
    if any(report.rows and not report.histograms for report in reports):
        raise UserError(
            "a scan was prepared a second time while its shard was written. Rerun the same command."
        )
    described = []
    for spec in specs:
        counts = np.zeros(CODES, np.int64)
        for report in reports:
            counts += np.array(report.histograms.get(spec.name, 0), np.int64)
        if counts.sum():
            t = spec.offset + spec.step * np.arange(CODES)
            mean = float(np.average(t, weights=counts))
            std = float(np.sqrt(np.average((t - mean) ** 2, weights=counts)))
            spec = dataclasses.replace(spec, mean=mean, std=std if std > 0 else 1.0)
        described.append(spec)
    return tuple(described)


def bmd_statistics(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean and SD of BMD over training vertebrae that have one; (0, 1) where none has."""
    bmd = [r["bmd_g_cm2"] for r in rows if r["split"] == "train" and r["bmd_g_cm2"] is not None]
    if not bmd:
        return 0.0, 1.0
    return float(np.mean(bmd)), float(np.std(bmd)) or 1.0


def split_counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Patients, vertebrae and labelled vertebrae of each split."""
    counts = {}
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        counts[split] = {
            "patients": len({row["patient_id"] for row in own}),
            "items": len(own),
            "labelled": sum(row["osteoporosis"] is not None for row in own),
        }
    return counts
