"""Which series of a study is used: what each one is, and the rule by which one is picked."""

from __future__ import annotations

import re
from typing import Any

from data_prep.dicom_folder.headers import Series

AXIAL = "axial CT"
RULE = (
    "Of a study's axial CTs the one with the thinnest slices (to 0.1 mm) is used; of these a soft "
    "kernel before a sharp one, then the most slices, then original before derived."
)
LEAST_SLICES = 20
"""Fewer are a localiser, a bolus watch or a fragment: at 5 mm they would cover 10 cm."""
AXIAL_COSINE = 0.8
"""Of the angle between the slices' normal and the patient's axis; a gantry tilts by 30 degrees."""
SHARP_NUMBER = 55
"""Siemens kernels from B55 on (Br59, I70f, ...) raise edges, for bone or lung."""


def what_it_is(series: Series) -> str:
    """In words: "axial CT", "scout", "dose report", ..."""
    header = series.header
    modality = str(header.get("Modality") or "no modality")
    image_type = _image_type(series)
    if "Rows" not in header:
        return "dose report" if modality in ("SR", "CT") else f"{modality}, no image"
    if modality != "CT":
        return f"{modality}, not CT"
    if "LOCALIZER" in image_type or "SCOUT" in image_type:
        return "scout"
    if any("DOSE" in word or "PROTOCOL" in word for word in image_type):
        return "dose report"
    if "ImageOrientationPatient" not in header and series.frames == len(series.files):
        return "picture without a place"
    normal = series.normal
    if normal is not None and abs(float(normal[2])) < AXIAL_COSINE:
        return "sagittal or coronal reformat"
    if series.frames < LEAST_SLICES:
        return f"axial CT of {series.frames} slices, too few"
    return AXIAL


def is_derived(series: Series) -> bool:
    """Whether its first value of ImageType says that it was computed from other images."""
    return _image_type(series)[:1] == ["DERIVED"]


def is_sharp(kernel: str) -> bool:
    """Whether a reconstruction kernel raises edges, by the names of the four large makers."""
    name = kernel.upper().replace(" ", "")
    if any(word in name for word in ("BONE", "LUNG", "EDGE", "SHARP")):  # GE
        return True
    if siemens := re.match(r"[BHIQ][A-Z]?(\d\d)", name):
        return int(siemens[1]) >= SHARP_NUMBER
    if canon := re.match(r"FC(\d\d)", name):
        return int(canon[1]) // 10 in (3, 5, 8)
    return name in ("YC", "YD", "YE", "D", "E", "L")  # Philips


def pick(candidates: list[Series]) -> Series | None:
    """The series of a study by `RULE`, or None where it has no axial CT."""
    axial = [series for series in candidates if what_it_is(series) == AXIAL]
    return min(axial, key=_rank, default=None)


def kernel_of(series: Series) -> str:
    """The reconstruction kernel as the scanner names it, or ""."""
    return "/".join(str(word) for word in _values(series.header.get("ConvolutionKernel")))


def thickness_mm(series: Series) -> float | None:
    """The distance of slices, or, of a multi-frame file, its SliceThickness."""
    step = series.step_mm
    if step is not None:
        return step
    stated = series.header.get("SliceThickness")
    return float(stated) if stated else None


def _rank(series: Series) -> tuple[float, bool, int, bool]:
    thickness = thickness_mm(series)
    rounded = float("inf") if thickness is None else round(thickness, 1)
    return rounded, is_sharp(kernel_of(series)), -series.frames, is_derived(series)


def _image_type(series: Series) -> list[str]:
    return [str(word).upper() for word in _values(series.header.get("ImageType"))]


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
