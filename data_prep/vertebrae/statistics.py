"""Statistics of the pool over the training vertebrae, which scale the network's input."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_prep.recipe import Report
from data_prep.vertebrae.pool import CODES
from osteojax.data.codes import MapSpec


def map_statistics(specs: tuple[MapSpec, ...], reports: list[Report]) -> tuple[MapSpec, ...]:
    """Mean and SD of the transformed value t (`MapSpec`) over every voxel of the training
    vertebrae, exact from summed histograms.

    The SD is 1 for a map that does not vary and for a cohort without training vertebrae.

    Args:
      reports: of the training scans.
    """
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
