"""One scan -> the records of its vertebrae: verify, ROI, codes.

The unit of work of `osteojax prepare`: `prepare_scan` runs in a worker process and leaves
`parts/000012.array_record` and `parts/000012.json` (rows, failures, histograms). The JSON is
written last and means that the scan is done. Where an accelerator makes the maps, a part holds
images and masks only, and the shard's task adds the maps (`data_prep.shards`).
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from data_prep.records import ShardReader, count_records, encode_vertebra, write_records
from data_prep.vertebrae.cohort import Scan
from data_prep.vertebrae.pool import RoiSettings, histogram, image_codes, map_codes
from data_prep.vertebrae.roi import Roi, Vertebra, extract_roi, measure_vertebrae
from data_prep.vertebrae.verify import load_case
from osteojax.data.vertebrae import IMAGE_ONLY, POOL, record_keys
from osteojax.errors import CaseError, UserError
from osteojax.files import write_text

MIN_VOLUME_MM3 = 1000.0
"""A smaller label is a stray fragment; the body of T1 alone has about 6,000 mm^3."""


@dataclasses.dataclass(frozen=True)
class ScanReport:
    """What one scan gave; stored as `parts/00012.json`.

    Attributes:
      rows: of `vertebrae.csv`, without shard and position, from T1 downwards.
      failures: (case, reason, remedy).
      excluded: (case, patient_id, reason).
      histograms: member of `POOL` -> 256 counts of codes; empty until the maps are made.
    """

    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    excluded: list[tuple[str, str, str]]
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> ScanReport:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["failures"] = [tuple(failure) for failure in fields["failures"]]
        fields["excluded"] = [tuple(row) for row in fields["excluded"]]
        return cls(**fields)


def part_path(out: Path, scan_index: int, suffix: str) -> Path:
    """`parts/00012.json`, `parts/00012.array_record`."""
    return out / "parts" / f"{scan_index:06d}.{suffix}"


def prepare_scan(scan: Scan, settings: RoiSettings, out: Path, with_maps: bool) -> ScanReport:
    """Runs one scan to its part files.

    A case that is unusable becomes a failure in the report. So does an error nobody foresaw, with
    its place in the program: a cohort of thousands does not stop for one file.

    Args:
      with_maps: make the maps too; without, the part holds image and mask only.

    Raises:
      OSError: the part cannot be written (disk full).
      UserError: the texture engine is not installed.
    """
    try:
        report, records = _vertebrae(scan, settings, with_maps)
    except CaseError as error:
        report, records = ScanReport([], [(error.case, error.reason, error.remedy)], []), []
    except UserError:  # wrong for every scan alike: the texture engine is not installed
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        reason = f"unexpected {type(error).__name__} at {where}: {error}".replace("\n", " ")
        failure = (scan.scan_id, reason, "Please report this line as a bug.")
        report, records = ScanReport([], [failure], []), []
    save_scan(out, scan.index, report, records)
    return report


def save_scan(out: Path, scan_index: int, report: ScanReport, records: list[list[bytes]]) -> None:
    """Writes the part of a scan, or removes that of an earlier run where there are no records."""
    path = part_path(out, scan_index, "array_record")
    if records:
        write_records(path, records)
    else:
        path.unlink(missing_ok=True)
    report.save(part_path(out, scan_index, "json"))


def open_part(out: Path, scan_index: int, num_vertebrae: int) -> ShardReader:
    """The records of a scan's part; the reader's `stored` says whether the maps are in it."""
    path = part_path(out, scan_index, "array_record")
    with_maps = count_records(path) == num_vertebrae * len(record_keys(POOL))
    return ShardReader(path, POOL if with_maps else IMAGE_ONLY)


def _vertebrae(
    scan: Scan, settings: RoiSettings, with_maps: bool
) -> tuple[ScanReport, list[list[bytes]]]:
    """The report and the records of a scan's vertebrae."""
    report = ScanReport([], [], [])
    rois: list[Roi] = []
    ct_image, class_mask = load_case(scan.ct, scan.mask, scan.label_scheme, scan.scan_id)
    for vertebra in measure_vertebrae(class_mask, scan.scan_id):
        case = f"{scan.scan_id}/{vertebra.level}"
        small = vertebra.mask_volume_mm3 < MIN_VOLUME_MM3
        if vertebra.truncated and (small or not settings.keep_truncated):
            report.excluded.append((case, scan.patient_id, "truncated by the CT's border"))
            continue
        if small:
            reason = f"the label has {vertebra.mask_volume_mm3:.0f} mm^3, a stray fragment."
            report.failures.append((case, reason, "Correct the mask or remove the label."))
            continue
        roi = extract_roi(ct_image, class_mask, vertebra, settings.size, settings.spacing_mm)
        if not roi.mask.any():
            reason = "no voxel of the label is in its own frame."
            report.failures.append((case, reason, "Correct the mask: it lies in pieces."))
            continue
        rois.append(roi)
        report.rows.append(vertebra_row(scan, vertebra, roi.mean_hu, slice_mm(ct_image)))
    if not rois:
        return report, []
    codes = {"image": np.stack([image_codes(roi, settings) for roi in rois])}
    if with_maps:
        codes |= map_codes(codes["image"], np.stack([roi.mask for roi in rois]), settings)
        report.histograms.update({name: histogram(codes[name]).tolist() for name in POOL})
    kept = [name for name in codes if name in settings.stored]
    return report, [
        encode_vertebra({name: codes[name][i] for name in kept}, roi.mask, roi.valid)
        for i, roi in enumerate(rois)
    ]


def slice_mm(ct_image: sitk.Image) -> float:
    """Distance of the CT's slices: its spacing along the axis nearest to the patient's own.

    Overlapping reconstructions are thicker than their distance; a NIfTI does not say so.
    """
    superior_of_axes = np.abs(np.array(ct_image.GetDirection()).reshape(3, 3)[2])
    return float(ct_image.GetSpacing()[int(np.argmax(superior_of_axes))])


def vertebra_row(scan: Scan, vertebra: Vertebra, mean_hu: float, slice_mm: float) -> dict[str, Any]:
    """The row of `vertebrae.csv`, still without shard and position."""
    result = scan.dxa.get(vertebra.level)
    return {
        "patient_id": scan.patient_id,
        "scan_id": scan.scan_id,
        "site": scan.site,
        "split": scan.split,
        "level": vertebra.level,
        "level_class": vertebra.level_class,
        "device": result.device if result else None,
        "bmd_g_cm2": result.bmd_g_cm2 if result else None,
        "t_score": result.t_score if result else None,
        "osteoporosis": result.osteoporosis if result else None,
        "sex": scan.sex,
        "age": scan.age,
        "truncated": int(vertebra.truncated),
        "posterior_rule": vertebra.posterior_rule,
        "axial_rule": vertebra.axial_rule,
        "mean_hu": round(mean_hu, 3),
        "mask_volume_mm3": round(vertebra.mask_volume_mm3, 1),
        "slice_mm": round(slice_mm, 4),
    }
