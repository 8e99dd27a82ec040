"""Prepares one CT with its mask: verifies it, extracts ROIs, makes rows and records."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import SimpleITK as sitk

from data_prep.recipe import Report
from data_prep.vertebrae.body_numbers import body_row
from data_prep.vertebrae.cohort import Scan
from data_prep.vertebrae.contrast import contrast_doubt, find_contrast
from data_prep.vertebrae.mask_fit import check_fit, posterior_doubt
from data_prep.vertebrae.pool import (
    RoiSettings,
    encode_vertebra,
    histograms,
    image_codes,
    map_codes,
    roi_planes,
)
from data_prep.vertebrae.roi import Roi, extract_roi, measure_vertebrae
from data_prep.vertebrae.verify import load_case, slice_axis, vertebra_hu_fault
from osteojax.data.vertebrae import POOL

MIN_VOLUME_MM3 = 1000.0
"""Smallest volume of a label; a smaller one is a stray fragment (T1's body has 6,000 mm^3)."""

THICK_MM = 5.0
"""Distance of slices from which a CT is doubted: trabeculae are 0.6 to 1 mm apart."""


def prepare_scan(
    scan: Scan, settings: RoiSettings, with_maps: bool
) -> tuple[Report, list[list[bytes]]]:
    """The report and the records of a scan's vertebrae, from T1 downwards.

    Args:
      with_maps: whether to make the maps too; if not, there are records of image and mask only.

    Raises:
      CaseError: the scan is unusable.
    """
    report = Report([], [], [])
    rois: list[Roi] = []
    ct_image, class_mask = load_case(
        scan.ct, scan.mask, scan.label_scheme, scan.scan_id, settings.ignore_labels
    )
    doubts = check_fit(ct_image, class_mask, scan.scan_id)
    vertebrae = measure_vertebrae(class_mask, scan.scan_id)
    doubts += posterior_doubt(vertebrae)
    doubts += contrast_doubt(find_contrast(ct_image, class_mask, vertebrae))
    doubts += thickness_doubt(slice_mm(ct_image))
    report.doubts.extend((scan.scan_id, f"{reason}.", remedy) for reason, remedy in doubts)
    for vertebra in vertebrae:
        case = f"{scan.scan_id}/{vertebra.level}"
        small = vertebra.mask_volume_mm3 < MIN_VOLUME_MM3
        if vertebra.truncated and (small or not settings.keep_truncated):
            report.excluded.append((case, scan.patient_id, "truncated by the CT's border"))
            continue
        if small:
            reason = f"the label has {vertebra.mask_volume_mm3:.0f} mm^3, a stray fragment."
            report.failures.append((case, reason, "Correct the mask or remove the label."))
            continue
        roi = extract_roi(ct_image, class_mask, vertebra, settings.grid)
        if not roi.mask.any():
            reason = "no voxel of the label is in its own frame."
            report.failures.append((case, reason, "Correct the mask: the label has pieces."))
            continue
        if fault := vertebra_hu_fault(roi.mean_hu):
            remedy = "Look at it: metal, cement, a mask beside the bone, or slices not in HU."
            report.failures.append((case, f"{fault}.", remedy))
            continue
        rois.append(roi)
        report.rows.append(vertebra_row(scan, roi, slice_mm(ct_image)))
    if not rois:
        return report, []
    codes = {"image": np.stack([image_codes(roi, settings) for roi in rois])}
    planes = [roi_planes(roi) for roi in rois]
    if with_maps:
        codes |= map_codes(codes["image"], np.stack([roi.mask for roi in rois]), settings)
        report.histograms.update(_summed_histograms(codes, planes, settings.grid.margin))
    else:
        report = dataclasses.replace(report, complete=False)
    kept = [name for name in codes if name in settings.stored]
    return report, [
        encode_vertebra({name: codes[name][i] for name in kept}, own)
        for i, own in enumerate(planes)
    ]


def _summed_histograms(
    codes: dict[str, np.ndarray], planes: list[np.ndarray], margin: int
) -> dict[str, list[int]]:
    """`histograms`, summed over a scan's vertebrae. codes: name -> uint8[N, D, H, W]."""
    each = [
        histograms({name: codes[name][i] for name in POOL}, own, margin)
        for i, own in enumerate(planes)
    ]
    return {name: np.stack([own[name] for own in each]).sum(axis=0).tolist() for name in each[0]}


def slice_mm(ct_image: sitk.Image) -> float:
    """Distance of the CT's slices: its spacing along the axis nearest to the patient's axis.

    Slices of overlapping reconstructions are thicker than this; NIfTI has no slice thickness.
    """
    return float(ct_image.GetSpacing()[slice_axis(ct_image)])


def thickness_doubt(slice_mm: float) -> list[tuple[str, str]]:
    """(reason, remedy) where slices are too far apart to show texture."""
    if slice_mm < THICK_MM - 0.01:  # headers are rounded
        return []
    reason = f"its slices are {slice_mm:.2g} mm apart: they show mean HU but no texture"
    return [(reason, f"Use a reconstruction with slices under {THICK_MM:g} mm, if there is one.")]


def vertebra_row(scan: Scan, roi: Roi, slice_mm: float) -> dict[str, Any]:
    """The row of `vertebrae.csv`, still without shard and position."""
    vertebra, shown = roi.vertebra, roi.grid.window
    return {
        **_place_columns(scan),
        "level": vertebra.level,
        "level_class": vertebra.level_class,
        **_result_columns(scan, vertebra.level),
        "truncated": int(vertebra.truncated),
        "posterior_rule": vertebra.posterior_rule,
        "axial_rule": vertebra.axial_rule,
        "mean_hu": round(roi.mean_hu, 3),
        "mask_volume_mm3": round(vertebra.mask_volume_mm3, 1),
        "slice_mm": round(slice_mm, 4),
        **body_row(roi.hu[shown], roi.body[shown], roi.spacing_mm),
    }


def _place_columns(scan: Scan) -> dict[str, Any]:
    """Columns of a vertebra's row that cohort.csv gives to all vertebrae of a scan."""
    return {
        "patient_id": scan.patient_id,
        "scan_id": scan.scan_id,
        "site": scan.site,
        "split": scan.split,
    }


def _result_columns(scan: Scan, level: str) -> dict[str, Any]:
    """Columns of a vertebra's row from its DXA result, and the patient's sex and age."""
    result = scan.dxa.get(level)
    return {
        "device": result.device if result else None,
        "bmd_g_cm2": result.bmd_g_cm2 if result else None,
        "t_score": result.t_score if result else None,
        "osteoporosis": result.osteoporosis if result else None,
        "sex": scan.sex,
        "age": scan.age,
    }


def relabelled(scan: Scan, report: Report) -> Report:
    """A scan's report with the columns that come from the tables."""
    rows = [row | _place_columns(scan) | _result_columns(scan, row["level"]) for row in report.rows]
    excluded = [(case, scan.patient_id, reason) for case, _, reason in report.excluded]
    return dataclasses.replace(report, rows=rows, excluded=excluded)
