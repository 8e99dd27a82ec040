"""DICOM objects of a case in its study: a structured report, and the page as a secondary capture.

The report follows TID 1500, Measurement Report: a measurement group per vertebra (TID 1501) with
BMD, its interval and the probability, its flags as coded evaluations, and a reference to the slice
through the vertebral body; and a group for the lumbar spine with the patient's answer. Where no
standard code exists the private scheme 99OSTEOJAX is used.

Patient and study are copied from the CT's headers. Only these objects keep them; messages of
highdicom and pydicom, which may quote their values, are suppressed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pandas as pd
import pydicom
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from data_prep.dicom_slices import silent_dicom
from data_prep.volumes import series_files
from launch.prediction.answered_case import AnsweredCase
from launch.prediction.flags import MEANINGS, Flag
from osteojax import __version__
from osteojax.errors import CaseError
from osteojax.files import atomic_path

REPORT, PAGE = "report.dcm", "page.dcm"
SCHEME = "99OSTEOJAX"
MANUFACTURER = "OsteoJAX"
DESCRIPTION = "OsteoJAX bone density. Research only, no diagnosis"
REPORT_SERIES, PAGE_SERIES = 9301, 9302
"""Series numbers larger than those that scanners use."""
PATIENT_AND_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of type 2, which must exist but may be empty; de-identified series lack some."""

OSTEOPOROSIS = Code("64859006", "SCT", "Osteoporosis")
BMD = Code("bmd", SCHEME, "Areal bone mineral density estimated from CT")
PROBABILITY = Code("probability", SCHEME, "Probability of osteoporosis")
CALIBRATED = Code("calibrated", SCHEME, "Calibrated probability of osteoporosis")
DISTANCE = Code("distance", SCHEME, "Distance to the training data")
VERDICT = Code("verdict", SCHEME, "Opportunistic screening for osteoporosis")
VERDICTS = {
    None: Code("undecided", SCHEME, "Undecided"),
    True: Code("suspected", SCHEME, "Osteoporosis suspected"),
    False: Code("not-suspected", SCHEME, "No osteoporosis suspected"),
}
FLAG = Code("flag", SCHEME, "Reason for caution")
G_CM2 = Code("g/cm2", "UCUM", "g/cm2")
NO_UNIT = codes.UCUM.NoUnits
LOWER = Code("low", SCHEME, "Lower end of the interval")
UPPER = Code("high", SCHEME, "Upper end of the interval")


def write(answer: AnsweredCase, page: np.ndarray) -> None:
    """Writes `report.dcm` and `page.dcm` into the case's folder.

    Args:
      page: uint8[H, W, 3], without the case's name.

    Raises:
      CaseError: the CT's headers lack what a result in its study needs.
    """
    name, folder = answer.case.name, answer.case.folder
    with silent_dicom():
        try:
            headers = _headers(answer)
            objects = {REPORT: _report(answer, headers), PAGE: _page(page, headers)}
            for file_name, dataset in objects.items():
                with atomic_path(folder / file_name) as temporary:
                    dataset.save_as(temporary, enforce_file_format=True)
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            # The error's message may quote the header, so it is not shown.
            raise CaseError(
                name,
                f"no DICOM result can be made from the CT's headers ({type(error).__name__}).",
                "Check them with a DICOM validator, or leave out --dicom-out.",
            ) from None


def _headers(answer: AnsweredCase) -> list[FileDataset]:
    """Headers of the CT's slices, with empty values for missing attributes of type 2.

    Raises:
      CaseError: study or series are missing, as after some programs for de-identification.
    """
    headers = [
        pydicom.dcmread(path, stop_before_pixels=True) for path in series_files(answer.case.ct)
    ]
    for header in headers:
        header.SOPClassUID = header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID
        if not header.get("SOPInstanceUID"):
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
        if not header.get("StudyInstanceUID") or not header.get("SeriesInstanceUID"):
            raise CaseError(
                answer.case.name,
                "the CT's headers name no study or no series, so a DICOM result belongs nowhere.",
                "De-identify with new UIDs instead of none, or leave out --dicom-out.",
            )
        for keyword in PATIENT_AND_STUDY:
            if keyword not in header:
                setattr(header, keyword, "")
        if header.PatientSex not in ("M", "F", "O", ""):
            header.PatientSex = ""
    return headers


def _report(answer: AnsweredCase, headers: Sequence[Dataset]) -> Dataset:
    groups = [
        _vertebra_group(answer, row, flags, headers)
        for (_, row), flags in zip(answer.table.iterrows(), answer.flags, strict=True)
    ]
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer(answer)),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[_patient_group(answer), *groups],
        title=codes.DCM.ImagingMeasurementReport,
    )
    scheme = CodingSchemeIdentificationItem(
        SCHEME, name="OsteoJAX private codes", version=__version__,
        responsible_organization="OsteoJAX",
    )  # fmt: skip
    return sr.ComprehensiveSR(
        evidence=headers,
        content=report,
        series_number=REPORT_SERIES,
        series_instance_uid=hd.UID(),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=__version__,
        series_description=DESCRIPTION,
        is_complete=True,
        is_final=False,
        coding_schemes=[scheme],
    )


def _observer(answer: AnsweredCase) -> sr.ObserverContext:
    # Equal models have equal observer UIDs.
    name = uuid.uuid5(uuid.NAMESPACE_OID, answer.model["fingerprint"])
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID.from_uuid(str(name)),
            manufacturer_name=MANUFACTURER,
            model_name=f"{MANUFACTURER} {__version__}",
        ),
    )


def _algorithm(answer: AnsweredCase) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=MANUFACTURER,
        version=__version__,
        parameters=[
            f"model {answer.model['fingerprint'][:16]}", f"DXA device {answer.case.device}",
        ],
    )  # fmt: skip


def _patient_group(answer: AnsweredCase) -> sr.MeasurementsAndQualitativeEvaluations:
    patient = answer.patient
    values = []
    if patient["probability"] is not None:
        values.append(_measurement(PROBABILITY, patient["probability"], NO_UNIT))
    verdict = sr.QualitativeEvaluation(VERDICT, VERDICTS[patient["osteoporosis_pred"]])
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(hd.UID(), "L1-L4"),
        finding_type=OSTEOPOROSIS,
        algorithm_id=_algorithm(answer),
        finding_sites=[sr.FindingSite(codes.SCT.LumbarSpine)],
        measurements=values or None,
        qualitative_evaluations=[verdict, *(_flag(name) for name in patient["flags"])],
    )


def _vertebra_group(
    answer: AnsweredCase, row: pd.Series, flags: list[Flag], headers: Sequence[Dataset]
) -> sr.MeasurementsAndQualitativeEvaluations:
    level = row["level"]
    site = getattr(codes.SCT, f"{level}Vertebra", codes.SCT.Vertebra)  # L6 has no code
    values = [
        _measurement(BMD, row["bmd_pred_g_cm2"], G_CM2),
        _measurement(PROBABILITY, row["probability"], NO_UNIT),
    ]
    for derivation, column in ((LOWER, "bmd_low"), (UPPER, "bmd_high")):
        if np.isfinite(row[column]):
            values.append(_measurement(BMD, row[column], G_CM2, derivation))
    for name, column in ((CALIBRATED, "probability_calibrated"), (DISTANCE, "ood_distance")):
        if np.isfinite(row[column]):
            values.append(_measurement(name, row[column], NO_UNIT))
    source = headers[int(row["slice_index"]) if len(headers) > 1 else 0]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(hd.UID(), level),
        finding_type=codes.SCT.Vertebra,
        algorithm_id=_algorithm(answer),
        finding_sites=[sr.FindingSite(site)],
        measurements=values,
        qualitative_evaluations=[_flag(name) for name in sorted({f.name for f in flags})] or None,
        source_images=[
            sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)
        ],
    )


def _measurement(
    name: Code, value: float, unit: Code, derivation: Code | None = None
) -> sr.Measurement:
    rounded = float(f"{value:.6g}")  # a decimal string has 16 characters
    return sr.Measurement(name=name, value=rounded, unit=unit, derivation=derivation)


def _flag(name: str) -> sr.QualitativeEvaluation:
    return sr.QualitativeEvaluation(FLAG, Code(name, SCHEME, MEANINGS[name]))


def _page(page: np.ndarray, headers: Sequence[Dataset]) -> Dataset:
    first = headers[0]
    capture = hd.sc.SCImage(
        pixel_array=page,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=hd.UID(),
        series_number=PAGE_SERIES,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=__version__,
        series_description=DESCRIPTION,
        **_patient_and_study(first),
    )
    capture.PatientOrientation = []  # a page of figures has none
    capture.BodyPartExamined = "LSPINE"
    capture.ConversionType = "WSD"  # made by a workstation
    capture.BurnedInAnnotation = "NO"
    capture.DerivationDescription = DESCRIPTION
    capture.SourceImageSequence = [_reference(header) for header in headers]
    return capture


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def _patient_and_study(header: Dataset) -> dict[str, Any]:
    def date(keyword: str, kind: type) -> Any:
        return kind(header[keyword].value) if header[keyword].value else None

    return {
        "patient_id": header.PatientID,
        "patient_name": header.PatientName or None,
        "patient_birth_date": header.PatientBirthDate,
        "patient_sex": header.PatientSex,
        "accession_number": header.AccessionNumber,
        "study_id": header.StudyID,
        "study_date": date("StudyDate", pydicom.valuerep.DA),
        "study_time": date("StudyTime", pydicom.valuerep.TM),
        "referring_physician_name": header.ReferringPhysicianName or None,
        "specific_character_set": header.get("SpecificCharacterSet"),
    }
