"""A CT as a DICOM series with a patient in its headers, written with pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PATIENT = {
    "PatientName": "Müster^Jänne",
    "PatientID": "MRN-4711-0815",
    "PatientBirthDate": "19430517",
    "PatientSex": "F",
    "AccessionNumber": "ACC99887",
    "StudyID": "STUDY5544",
    "StudyDate": "20240229",
    "StudyTime": "101112",
    "ReferringPhysicianName": "Hösli^Urs",
    "InstitutionName": "Spital am See",
}
SECRETS = (
    "nster", "ster^J", "MRN-4711", "19430517", "ACC99887", "STUDY5544", "sli^U", "Spital am See",
    "1.2.826.0.1.3680043.8.498",
)  # fmt: skip
"""Parts of every identifier above, whatever their encoding, and pydicom's root of UIDs."""


def write_series(folder: Path, ct: sitk.Image, **changes: str) -> list[Path]:
    """Writes one axial series; `changes` replace values of `PATIENT`. Files are named by UID."""
    folder.mkdir(parents=True, exist_ok=True)
    values = sitk.GetArrayFromImage(ct)
    study, series, place = (generate_uid() for _ in range(3))
    paths = []
    for i, plane in enumerate(values):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{meta.MediaStorageSOPInstanceUID}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SpecificCharacterSet = "ISO_IR 100"
        for keyword, value in {**PATIENT, **changes}.items():
            setattr(data, keyword, value)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.FrameOfReferenceUID, data.Modality, data.SeriesNumber = place, "CT", 3
        data.Manufacturer, data.ImageType = "Phantom", ["ORIGINAL", "PRIMARY", "AXIAL"]
        x, y, z = ct.TransformIndexToPhysicalPoint((0, 0, i))
        data.ImagePositionPatient = [f"{x:.6g}", f"{y:.6g}", f"{z:.6g}"]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [ct.GetSpacing()[1], ct.GetSpacing()[0]]
        data.SliceThickness, data.InstanceNumber = ct.GetSpacing()[2], i + 1
        data.Rows, data.Columns = plane.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 0, 1, -1024
        data.PixelData = np.clip(plane.astype(int) + 1024, 0, 4095).astype(np.uint16).tobytes()
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
