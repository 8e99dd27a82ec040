"""One scan -> the records of its vertebrae: verify, ROI, texture pool, codes.

The unit of work of `osteojax prepare`: `prepare_scan` runs in a worker process and leaves
`parts/00012.array_record` and `parts/00012.json` (rows, failures, histograms). The JSON is written
last and means that the scan is done.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cohort import Scan
from data_prep.records import encode_vertebra, write_records
from data_prep.roi import Roi, Vertebra, extract_roi, measure_vertebrae
from data_prep.texture import TextureSettings, texture_pool
from data_prep.verify import load_case
from osteojax.data.schema import HU_MAX, HU_MIN, MapSpec, image_spec, map_spec
from osteojax.errors import CaseError, UserError
from osteojax.files import write_text

FIELD_OF_VIEW_MM = 96.0
SIZES = (96, 64, 32)
MIN_VOLUME_MM3 = 1000.0
"""A smaller label is a stray fragment; the body of T1 alone has about 6,000 mm^3."""
CODES = 256


@dataclasses.dataclass(frozen=True)
class RoiSettings:
    """What decides a scan's records, besides the scan.

    Attributes:
      size: edge of the ROI in voxels; the field of view is 96 mm at every size.
      keep_truncated: keep vertebrae whose mask touches the CT's border.
      texture: of the maps.
    """

    size: int
    keep_truncated: bool
    texture: TextureSettings

    def __post_init__(self) -> None:
        levels = (HU_MAX - HU_MIN) / self.texture.bin_width
        if levels != round(levels):  # the stored ranges of the maps count whole levels
            raise UserError(
                f"--bin-width {self.texture.bin_width:g}: must divide the {HU_MAX - HU_MIN:g} HU "
                "of the image: 5, 10, 15, 20, 25, 30, 40, 50, ..."
            )

    @property
    def spacing_mm(self) -> float:
        return FIELD_OF_VIEW_MM / self.size

    def map_specs(self) -> tuple[MapSpec, ...]:
        """Storage of the pool's members, in `POOL` order, without statistics."""
        names = ("Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")
        return (image_spec(), *(map_spec(name, self.texture.bin_width) for name in names))


@dataclasses.dataclass(frozen=True)
class ScanReport:
    """What one scan gave; stored as `parts/00012.json`.

    Attributes:
      rows: of `vertebrae.csv`, without shard and position, from T1 downwards.
      failures: (case, reason, remedy).
      excluded: (case, patient_id, reason).
      histograms: member of `POOL` -> 256 counts of codes, for training scans; else empty.
    """

    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    excluded: list[tuple[str, str, str]]
    histograms: dict[str, list[int]]

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


def prepare_scan(scan: Scan, settings: RoiSettings, out: Path) -> ScanReport:
    """Runs one scan to its part files.

    A case that is unusable becomes a failure in the report. So does an error nobody foresaw, with
    its place in the program: a cohort of thousands does not stop for one file.

    Raises:
      OSError: the part cannot be written (disk full).
      UserError: the texture engine is not installed.
    """
    try:
        report, records = _vertebrae(scan, settings)
    except CaseError as error:
        failure = (error.case, error.reason, error.remedy)
        report, records = ScanReport([], [failure], [], {}), []
    except UserError:  # wrong for every scan alike: the texture engine is not installed
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        reason = f"unexpected {type(error).__name__} at {where}: {error}".replace("\n", " ")
        failure = (scan.scan_id, reason, "Please report this line as a bug.")
        report, records = ScanReport([], [failure], [], {}), []
    path = part_path(out, scan.index, "array_record")
    if records:
        write_records(path, records)
    else:
        path.unlink(missing_ok=True)
    report.save(part_path(out, scan.index, "json"))
    return report


def _vertebrae(scan: Scan, settings: RoiSettings) -> tuple[ScanReport, list[list[bytes]]]:
    """The report and the records of a scan's vertebrae."""
    report, records = ScanReport([], [], [], {}), []
    ct_image, class_mask = load_case(scan.ct, scan.mask, scan.label_scheme, scan.scan_id)
    histograms = {spec.name: np.zeros(CODES, np.int64) for spec in settings.map_specs()}
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
        codes = encode_roi(roi, settings)
        records.append(encode_vertebra(codes, roi.mask, roi.valid))
        report.rows.append(vertebra_row(scan, vertebra, roi.mean_hu))
        for name, histogram in histograms.items():
            histogram += np.bincount(codes[name].ravel(), minlength=CODES)
    if scan.split == "train":
        report.histograms.update({name: h.tolist() for name, h in histograms.items()})
    return report, records


def encode_roi(roi: Roi, settings: RoiSettings) -> dict[str, np.ndarray]:
    """The pool of one ROI as stored: each member of `POOL` as uint8[D, H, W] codes.

    With the texture domain "vertebra" every member, the image included, is 0 outside the mask.
    """
    image, *maps = settings.map_specs()
    codes = {image.name: image.encode(roi.hu)}
    masked = settings.texture.domain == "vertebra"
    values = texture_pool(codes[image.name], roi.mask if masked else None, settings.texture)
    codes |= {spec.name: spec.encode(values[spec.name]) for spec in maps}
    if masked:
        codes = {name: np.where(roi.mask, code, np.uint8(0)) for name, code in codes.items()}
    return codes


def vertebra_row(scan: Scan, vertebra: Vertebra, mean_hu: float) -> dict[str, Any]:
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
    }
