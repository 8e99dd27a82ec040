"""Statistics of the pool over the training vertebrae, which scale the network's input."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_prep.recipe import Report
from data_prep.vertebrae.pool import CODES, histogram_name
from osteojax.data.boxes import REGIONS
from osteojax.data.codes import MapSpec
from osteojax.data.vertebrae import Statistics


def map_statistics(specs: tuple[MapSpec, ...], reports: list[Report]) -> tuple[MapSpec, ...]:
    """The specs with mean and SD over every voxel of the training vertebrae's shown windows.

    Args:
      reports: of the training scans.
    """
    return tuple(
        dataclasses.replace(spec, mean=mean, std=std)
        for spec in specs
        for mean, std in [_mean_and_std(spec, reports, "box")]
    )


def region_statistics(specs: tuple[MapSpec, ...], reports: list[Report]) -> Statistics:
    """The same of the voxels of the vertebrae and of their bodies, as `About.statistics` has it."""
    return {
        region: tuple(_mean_and_std(spec, reports, region) for spec in specs)
        for region in REGIONS
        if region != "box"
    }


def _mean_and_std(spec: MapSpec, reports: list[Report], region: str) -> tuple[float, float]:
    """Mean and SD of the transformed value t (`MapSpec`) over a region, exact from summed
    histograms.

    The SD is 1 for a map that does not vary; (0, 1) without a training vertebra.
    """
    counts = np.zeros(CODES, np.int64)
    for report in reports:
        counts += np.array(report.histograms.get(histogram_name(spec.name, region), 0), np.int64)
    if not counts.sum():
        return spec.mean, spec.std
    t = spec.offset + spec.step * np.arange(CODES)
    mean = float(np.average(t, weights=counts))
    std = float(np.sqrt(np.average((t - mean) ** 2, weights=counts)))
    return mean, std if std > 0 else 1.0
