"""Predict on one CT with its vertebra mask: table, JSON and a picture.

Example:
  osteojax predict --model model --ct ct.nii.gz --mask mask.nii.gz --device hologic --out result
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from osteojax.files import atomic_path, write_json

if TYPE_CHECKING:
    import SimpleITK as sitk

    from data_prep.roi import Roi
    from osteojax.exported import ExportedModel

DECIDING_LEVELS = ("L1", "L2", "L3", "L4")
"""DXA measures these, and training labels come from them; other levels are extrapolated."""
DEFAULT_THRESHOLD = 0.5
SURE_OF_LEVEL = 0.8
"""Probability from which a level that differs from the mask's is worth a flag."""
MARGIN_MM = 40.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder that `osteojax export` wrote")
    parser.add_argument(
        "--ct", required=True, help="NIfTI, NRRD, MHA, or a folder with a DICOM series"
    )
    parser.add_argument(
        "--mask", required=True, help="vertebra mask: one file, or a folder of masks"
    )
    parser.add_argument(
        "--label-scheme", default="verse", help="of the mask (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="unknown", help="DXA device to predict for (default: %(default)s)"
    )
    parser.add_argument("--out", required=True, help="folder of the results")


def run(args: argparse.Namespace) -> int:
    from data_prep.roi import extract_rois
    from data_prep.verify import load_case
    from osteojax.exported import ExportedModel

    model = ExportedModel(args.model)
    device = model.device_index(args.device)
    case = Path(args.ct).name
    ct_image, class_mask = load_case(args.ct, args.mask, args.label_scheme, case)
    rois = extract_rois(ct_image, class_mask, model.size, model.spacing_mm, case)
    table = predict_table(model, rois, device)
    name = model.devices[device]
    answer = decide(model, table, name)
    _print(table, answer, case)
    paths = _write(Path(args.out), model, table, answer, name, case)
    paths["picture"] = Path(args.out) / "prediction.png"
    _draw(paths["picture"], ct_image, class_mask, rois, table, answer, case)
    for name, path in paths.items():
        print(f"{name}: {path}")
    return 0


def predict_table(model: ExportedModel, rois: list[Roi], device: int) -> pd.DataFrame:
    """One row per vertebra from above.

    Columns: level, level_class, probability, bmd_g_cm2, bmd_low, bmd_high (90% of validation
    residuals; for an unknown device widened to the spread over the devices), level_pred,
    level_probability, gate_*, truncated, decides, flags.
    """
    background = model.card["inputs"]["hu"]["outside_vertebra"]
    volumes = [
        roi.hu if background is None else np.where(roi.mask, roi.hu, background) for roi in rois
    ]
    hu = np.stack(volumes).astype(np.float32)
    outputs = model.predict(hu, device)
    table = pd.DataFrame({"level": [roi.vertebra.level for roi in rois]})
    table["level_class"] = [roi.vertebra.level_class for roi in rois]
    table["probability"] = outputs["probability"].astype(np.float64)
    table["bmd_g_cm2"] = outputs["bmd_g_cm2"].astype(np.float64)
    low, high = _residuals(model)
    table["bmd_low"], table["bmd_high"] = table["bmd_g_cm2"] + low, table["bmd_g_cm2"] + high
    if device == len(model.devices) - 1:
        known = [model.predict(hu, i)["bmd_g_cm2"] for i in range(device)]
        table["bmd_low"] = np.fmin(table["bmd_low"], np.min(known, axis=0))
        table["bmd_high"] = np.fmax(table["bmd_high"], np.max(known, axis=0))
    levels = outputs["level_probabilities"]
    table["level_pred"] = [model.card["levels"][i] for i in levels.argmax(1)]
    table["level_probability"] = levels.max(1).astype(np.float64)
    for expert in range(outputs["gate"].shape[1]):
        table[f"gate_{expert}"] = outputs["gate"][:, expert].astype(np.float64)
    table["truncated"] = [roi.vertebra.truncated for roi in rois]
    table["decides"] = table["level"].isin(DECIDING_LEVELS)
    sure = table["level_pred"].where(table["level_probability"] >= SURE_OF_LEVEL, table["level"])
    table["flags"] = [_flags(roi, level) for roi, level in zip(rois, sure, strict=True)]
    return table


def _residuals(model: ExportedModel) -> tuple[float, float]:
    """5% and 95% quantile of (measured - predicted) BMD on validation; NaN where not fitted."""
    fitted = model.card.get("fitted") or {}
    quantiles = (fitted.get("bmd_residual_g_cm2") or {}).get("quantiles")
    if not quantiles:
        return np.nan, np.nan
    return float(quantiles["0.05"]), float(quantiles["0.95"])


def _flags(roi: Roi, level_pred: str) -> str:
    flags = []
    if roi.vertebra.truncated:
        flags.append("cut by the border of the CT")
    if roi.vertebra.posterior_rule == "header":
        flags.append("axes from the file's header")
    if roi.mask.any() and float((roi.hu[roi.mask] > 1500).mean()) > 0.005:
        flags.append("metal or cement suspected (voxels above 1500 HU)")
    if level_pred != roi.vertebra.level:
        flags.append(f"looks like {level_pred} to the model")
    return "; ".join(flags)


def decide(model: ExportedModel, table: pd.DataFrame, device: str) -> dict[str, Any]:
    """The patient's answer: positive if any of L1-L4 reaches the patient's threshold."""
    fitted = model.card.get("fitted") or {}
    thresholds, notes = {}, []
    for unit in ("vertebra", "patient"):
        threshold = (fitted.get(unit) or {}).get("threshold")
        if threshold is None:
            notes.append(
                f"No {unit} threshold was fitted on validation: {DEFAULT_THRESHOLD} is used."
            )
        thresholds[unit] = DEFAULT_THRESHOLD if threshold is None else float(threshold)
    if device == "unknown":
        notes.append(
            "The DXA device is unknown: BMD is a pooled answer, its interval spans the devices."
        )
    if model.card.get("simulated_training_data"):
        notes.append("This model was trained on simulated CTs.")
    deciding = table[table["decides"]]
    answer: dict[str, Any] = {
        "threshold_vertebra": thresholds["vertebra"], "threshold_patient": thresholds["patient"],
        "notes": notes,
    }  # fmt: skip
    if deciding.empty:
        text = "undecided, no vertebra of L1-L4 in the mask"
        return {**answer, "osteoporosis": None, "probability": None, "text": text}
    probability = float(deciding["probability"].max())
    positive = probability >= thresholds["patient"]
    level = deciding["level"].iloc[int(deciding["probability"].argmax())]
    text = (
        f"{'osteoporosis suspected' if positive else 'no osteoporosis suspected'} "
        f"(highest of L1-L4: {level} {probability:.2f}, threshold {thresholds['patient']:.2f})"
    )
    return {**answer, "osteoporosis": positive, "probability": probability, "text": text}


def _print(table: pd.DataFrame, answer: dict[str, Any], case: str) -> None:
    shown = Table(title=case)
    for name in ("level", "probability", "BMD g/cm^2", "interval", "expert weights", "flags"):
        shown.add_column(name, justify="left" if name in ("level", "flags") else "right")
    gates = [name for name in table.columns if name.startswith("gate_")]
    for _, row in table.iterrows():
        interval = (
            "" if np.isnan(row["bmd_low"]) else f"{row['bmd_low']:.3f} to {row['bmd_high']:.3f}"
        )
        shown.add_row(
            row["level"] if row["decides"] else f"({row['level']})",
            f"{row['probability']:.3f}",
            f"{row['bmd_g_cm2']:.3f}",
            interval,
            " ".join(f"{row[name]:.2f}" for name in gates),
            row["flags"],
        )
    console = Console()
    console.print(shown)
    console.print(f"[bold]{answer['text']}[/bold]", highlight=False)
    for note in answer["notes"]:
        console.print(note, highlight=False)


def _write(
    out: Path,
    model: ExportedModel,
    table: pd.DataFrame,
    answer: dict[str, Any],
    device: str,
    case: str,
) -> dict[str, Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = {"table": out / "predictions.csv", "json": out / "prediction.json"}
    with atomic_path(paths["table"]) as temporary:
        table.to_csv(temporary, index=False)
    vertebrae = table.astype(object).where(table.notna(), None).to_dict("records")
    content = {
        "case": case, "device": device, "patient": answer, "vertebrae": vertebrae,
        "model": {name: model.card[name] for name in ("code_version", "checkpoint")},
        "intended_use": model.card["intended_use"],
    }  # fmt: skip
    write_json(paths["json"], content)
    return paths


def _draw(
    path: Path, ct_image: sitk.Image, class_mask: sitk.Image, rois: list[Roi], table: pd.DataFrame,
    answer: dict[str, Any], case: str,
) -> None:  # fmt: skip
    import matplotlib

    matplotlib.use("Agg")
    from osteojax.evaluation import patient_page, plots

    hu, classes, centres = _upright(ct_image, class_mask, rois, patient_page.PAGE_SPACING_MM)
    planes = patient_page.reformat(hu, classes, centres)
    plots.save(patient_page.draw(planes, table, answer, case), path)


def _upright(
    ct_image: sitk.Image, class_mask: sitk.Image, rois: list[Roi], spacing_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CT and mask along the patient's axes around the vertebrae, and their centres as indices."""
    import SimpleITK as sitk

    centres_mm = np.stack([roi.vertebra.centre_mm for roi in rois])
    low, high = centres_mm.min(axis=0) - 1.5 * MARGIN_MM, centres_mm.max(axis=0) + 1.5 * MARGIN_MM
    low[2], high[2] = centres_mm[:, 2].min() - MARGIN_MM, centres_mm[:, 2].max() + MARGIN_MM
    size = [int(n) for n in np.ceil((high - low) / spacing_mm)]
    identity = np.eye(3).ravel().tolist()
    arrays = []
    for image, method, outside in (
        (ct_image, sitk.sitkLinear, -1000.0),
        (class_mask, sitk.sitkNearestNeighbor, 0.0),
    ):
        moved = sitk.Resample(
            image, size, sitk.Transform(), method, low.tolist(), [spacing_mm] * 3, identity, outside
        )
        arrays.append(sitk.GetArrayFromImage(moved))
    indices = ((centres_mm - low) / spacing_mm)[:, ::-1]
    return arrays[0].astype(np.float32), arrays[1], indices
