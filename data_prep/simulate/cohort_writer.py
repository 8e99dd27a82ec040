"""Writes a simulated cohort: CTs, label masks, `cohort.csv`, `dxa.csv`, `truth.csv`.

DIR/simulation.json          settings the folder was made with
DIR/ct/<scan_id>.nii.gz      int16 HU
DIR/mask/<scan_id>.nii.gz    uint8 VerSe ids of whole vertebrae
DIR/cohort.csv, dxa.csv      as a user writes them; written last
DIR/truth.csv                true bone; only the oracle of `study` reads it
"""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import json
import multiprocessing
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from data_prep.simulate.dxa import DEVICES
from data_prep.simulate.grid import Grid
from data_prep.simulate.patients import Patient, Settings, draw_patient
from data_prep.simulate.render import ct_trabecular_hu, render
from data_prep.simulate.scanner import SCANNERS
from osteojax.errors import UserError
from osteojax.files import atomic_path, write_json

SIMULATION_VERSION = 2
"""Incremented when the same settings would give other files."""

COHORT_COLUMNS = (
    "patient_id", "scan_id", "site", "ct", "mask", "sex", "age", "label_scheme", "ct_date",
    "contrast", "fracture", "implant",
)  # fmt: skip
DXA_COLUMNS = (
    "patient_id", "level", "device", "bmd_g_cm2", "t_score", "osteoporosis", "dxa_date",
)  # fmt: skip
TRUTH_COLUMNS = (
    "patient_id", "scan_id", "level", "scanner", "kvp", "slice_mm", "vbmd_mg_cm3", "trabecular_hu",
    "ct_trabecular_hu", "trabecular_spacing_mm", "anisotropy",
    *(f"bmd_g_cm2_{name}" for name in DEVICES), *(f"t_score_{name}" for name in DEVICES),
)  # fmt: skip


def simulate_cohort(
    directory: str | Path, settings: Settings, patients: int, workers: int = 1
) -> Iterator[Patient]:
    """Writes a cohort. A rerun with the same settings keeps finished scans and writes the rest.

    Files depend only on the settings and the patient's number, not on `workers` or the number of
    patients, so a finished cohort can be enlarged.

    Args:
      directory: new, empty, or holding a cohort of the same settings.
      settings: what to draw.
      patients: number of patients, at least one per site; with two, each site has both classes.
      workers: processes.

    Returns:
      The patients in order; an iterator that draws them again one by one.

    Raises:
      UserError: too few patients, a folder with other content, a file that can't be written.
    """
    directory = Path(directory)
    if patients < len(settings.sites):
        raise UserError(
            f"--patients {patients} for {len(settings.sites)} sites: at least one per site is "
            f"needed, two for both classes. Ask for {2 * len(settings.sites)}, or fewer --sites."
        )
    _claim(directory, settings)
    numbers = []
    for number in range(patients):
        scan_id = draw_patient(settings, number).scan_id
        if not all(path.is_file() for path in scan_paths(directory, scan_id)):
            numbers.append(number)
    _render_all(directory, settings, numbers, patients, workers)
    _write_tables(directory, settings, patients)
    return (draw_patient(settings, number) for number in range(patients))


def scan_paths(directory: Path, scan_id: str) -> tuple[Path, Path]:
    """(CT, mask) of a scan."""
    name = f"{scan_id}.nii.gz"
    return directory / "ct" / name, directory / "mask" / name


def write_scan(directory: Path, settings: Settings, number: int) -> None:
    """Renders and writes one patient's CT and mask, the mask first."""
    patient = draw_patient(settings, number)
    rendering = render(settings, patient)
    orientation = SCANNERS[patient.scanner].orientation
    ct_path, mask_path = scan_paths(directory, patient.scan_id)
    for path, volume in ((mask_path, rendering.labels), (ct_path, rendering.ct_hu)):
        _write_nifti(path, to_image(volume, rendering.grid, orientation))


def to_image(volume: np.ndarray, grid: Grid, orientation: str) -> sitk.Image:
    """The volume as an image in an orientation; every voxel keeps its patient position.

    Args:
      orientation: "LPS" keeps the grid's axes, "LAS" and "RAS" store some of them backwards.
    """
    origin, axes = grid.origin_mm.copy(), grid.axes.copy()
    for axis, (letter, kept) in enumerate(zip(orientation, "LPS", strict=True)):
        if letter != kept:
            count = grid.shape[2 - axis]
            origin += axes[:, axis] * grid.spacing_mm[axis] * (count - 1)
            axes[:, axis] *= -1
            volume = np.flip(volume, 2 - axis)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(origin.tolist())
    image.SetDirection(axes.ravel().tolist())
    return image


def _write_nifti(path: Path, image: sitk.Image) -> None:
    """Writes atomically. The length that gzip recorded shows whether the disk filled up."""
    header_bytes = 352
    expected = header_bytes + image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise UserError(f"{path}: could not be written. Make room, then rerun.") from error
        with temporary.open("rb") as file:
            file.seek(-4, 2)
            written = struct.unpack("<I", file.read(4))[0]
        if written != expected % 2**32:
            raise UserError(f"{path}: only partly written. Make room, then rerun.")


def _claim(directory: Path, settings: Settings) -> None:
    """Marks the folder as this cohort's. Raises UserError where it holds something else."""
    path = directory / "simulation.json"
    wanted = {"version": SIMULATION_VERSION, **dataclasses.asdict(settings)}
    wanted = json.loads(json.dumps(wanted))
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{path}: damaged. Choose another --out, or empty this folder.")
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            key = different[0]
            raise UserError(
                f"{directory}: holds a simulated cohort with {key} {found.get(key)!r}, not "
                f"{wanted[key]!r}. Choose another --out, or repeat the first settings to go on."
            )
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(
            f"{directory}: exists and is not a simulated cohort. Choose a new or empty --out."
        )
    write_json(path, wanted)


def _render_all(
    directory: Path, settings: Settings, numbers: list[int], patients: int, workers: int
) -> None:
    """Writes the scans of `numbers`, in this process or in `workers` processes."""
    kept = patients - len(numbers)
    bar = tqdm(total=patients, initial=kept, desc="simulate", unit="patient", disable=not numbers)
    with bar:
        if workers == 1:
            for number in numbers:
                write_scan(directory, settings, number)
                bar.update()
            return
        # "spawn", because a forked process that runs threads (jax, BLAS) can hang.
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_leave_with_parent
        )
        try:
            jobs = [pool.submit(write_scan, directory, settings, number) for number in numbers]
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                bar.update()
        except BrokenProcessPool as error:
            raise UserError(
                f"{directory}: a worker was killed, perhaps for memory (about 1 GB each). Finished "
                f"scans are kept: rerun with fewer than {workers} --workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _leave_with_parent() -> None:
    """Ends this worker when the process that started it is gone (SIGTERM, SIGKILL)."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_table(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, tuple(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_tables(directory: Path, settings: Settings, patients: int) -> None:
    """Writes `truth.csv`, `dxa.csv`, and last `cohort.csv`, one patient in memory at a time."""
    rows = {"truth": truth_rows, "dxa": dxa_rows, "cohort": cohort_rows}
    split = ("split",) if settings.complete_labels else ()
    columns = {"truth": TRUTH_COLUMNS, "dxa": DXA_COLUMNS, "cohort": COHORT_COLUMNS + split}
    for name, rows_of in rows.items():
        drawn = (draw_patient(settings, number) for number in range(patients))
        table = (row for patient in drawn for row in rows_of(patient, settings))
        _write_table(directory / f"{name}.csv", columns[name], table)


def cohort_rows(patient: Patient, settings: Settings) -> list[dict[str, Any]]:
    """The patient's line of `cohort.csv`."""
    name = f"{patient.scan_id}.nii.gz"
    split = {"split": patient.split} if settings.complete_labels else {}
    return [
        {
            "patient_id": patient.patient_id,
            "scan_id": patient.scan_id,
            "site": patient.site,
            "ct": f"ct/{name}",
            "mask": f"mask/{name}",
            "sex": patient.sex,
            "age": patient.age,
            "label_scheme": "verse",
            "ct_date": patient.ct_date.isoformat(),
            "contrast": int(patient.contrast),
            "fracture": int(patient.fractured_level is not None),
            "implant": int(bool(patient.screwed_levels)),
            **split,
        }
    ]


def dxa_rows(patient: Patient, settings: Settings) -> list[dict[str, Any]]:
    """The patient's lines of `dxa.csv`."""
    return [
        {
            "patient_id": patient.patient_id,
            "dxa_date": patient.dxa_date.isoformat(),
            **dataclasses.asdict(result),
            "bmd_g_cm2": f"{result.bmd_g_cm2:.3f}",
            "t_score": f"{result.t_score:.2f}",
        }
        for result in patient.dxa
    ]


def truth_rows(patient: Patient, settings: Settings) -> list[dict[str, Any]]:
    """The patient's lines of `truth.csv`: every rendered level, without measurement error."""
    rows = []
    scanner = SCANNERS[patient.scanner].with_slices(settings.slice_mm)
    for level in settings.levels:
        bone = patient.bones[level]
        row: dict[str, Any] = {
            "patient_id": patient.patient_id,
            "scan_id": patient.scan_id,
            "level": level,
            "scanner": patient.scanner,
            "kvp": scanner.kvp,
            "slice_mm": f"{scanner.slice_mm:g}",
            "vbmd_mg_cm3": f"{bone.vbmd_mg_cm3:.2f}",
            "trabecular_hu": f"{bone.trabecular_hu:.2f}",
            "ct_trabecular_hu": f"{ct_trabecular_hu(bone, patient):.2f}",
            "trabecular_spacing_mm": f"{bone.trabecular_spacing_mm:.4f}",
            "anisotropy": f"{bone.anisotropy:.4f}",
        }
        if bone.hologic_bmd_g_cm2 is not None:
            for name, device in settings.devices.items():
                deviation = patient.device_deviations[name]
                bmd = device.from_hologic(bone.hologic_bmd_g_cm2, deviation)
                row[f"bmd_g_cm2_{name}"] = f"{bmd:.4f}"
                row[f"t_score_{name}"] = f"{device.t_score(bmd, level):.3f}"
        rows.append(row)
    return rows
