"""Reads one case for the model and the page. It imports no JAX, because it runs in workers."""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk

from data_prep.vertebrae.contrast import Contrast, find_contrast
from data_prep.vertebrae.mask_fit import check_fit, posterior_doubt
from data_prep.vertebrae.roi import Roi, Vertebra, extract_roi, extract_rois
from data_prep.vertebrae.scan import slice_mm, thickness_doubt
from data_prep.vertebrae.verify import load_case, vertebra_hu_fault
from data_prep.volumes import itk_message
from launch.prediction import segment
from launch.prediction.cases import Case
from launch.prediction.flags import Flag
from launch.prediction.suspicions import suspicions
from osteojax.data.boxes import BoxGrid, cube_grid
from osteojax.errors import CaseError
from osteojax.evaluation.report.planes import PAGE_SPACING_MM, Reformat, reformat

SEGMENTATION = "segmentation.nii.gz"
MARGIN_MM = 40.0
FLAG_GRID = cube_grid(48, spacing_mm=2.0)


@dataclasses.dataclass(frozen=True)
class Frame:
    """Geometry of the model's input.

    Attributes:
      grid: the voxels of the box.
      background_hu: HU that replaces voxels outside the vertebra; None keeps them.
    """

    grid: BoxGrid
    background_hu: float | None


@dataclasses.dataclass(frozen=True)
class LoadedCase:
    """A case that was read.

    Attributes:
      case: the case.
      vertebrae: from T1 downwards.
      hu: f32[N, D, H, W], the model's input.
      body: bool[N, D, H, W], the vertebral bodies, for models that see them.
      core_hu: f64[N], median HU of the trabecular cores.
      slices: i64[N], the CT's slice through each body's centre.
      flags: of each vertebra, from its voxels.
      doubts: of the CT and the mask as a whole.
      contrast: of the CT.
      planes: for the page.
    """

    case: Case
    vertebrae: list[Vertebra]
    hu: np.ndarray
    body: np.ndarray
    core_hu: np.ndarray
    slices: np.ndarray
    flags: list[list[Flag]]
    doubts: list[Flag]
    contrast: Contrast
    planes: Reformat


def load(case: Case, frame: Frame) -> LoadedCase | CaseError:
    """Reads one case. Returns the error of an unusable case instead of raising it."""
    try:
        return _load(case, frame)
    except CaseError as error:
        return error
    except RuntimeError as error:  # raised by SimpleITK
        reason = f"its images cannot be brought into the model's frame ({itk_message(error)})."
        return CaseError(case.name, reason, "Check the geometry in the files' headers.")
    except MemoryError:
        return CaseError(
            case.name, "its CT does not fit into memory.", "Crop it, or predict with --workers 1."
        )


def _load(case: Case, frame: Frame) -> LoadedCase:
    mask, scheme = case.mask, case.label_scheme
    if mask is None:
        mask, scheme = case.folder / SEGMENTATION, segment.SCHEME
        segment.make_mask(case.ct, mask, case.name)
    ct_image, class_mask = load_case(case.ct, mask, scheme, case.name, case.ignored)
    doubts = check_fit(ct_image, class_mask, case.name)
    rois = extract_rois(ct_image, class_mask, frame.grid, case.name)
    # The images of the bodies are not needed again, and workers send this through a pipe.
    vertebrae = [dataclasses.replace(roi.vertebra, body=None) for roi in rois]
    # Flags are computed on a fixed grid, so that they are the same for every model.
    shapes, flags = suspicions([extract_roi(ct_image, class_mask, v, FLAG_GRID) for v in vertebrae])
    volumes = [
        roi.hu if frame.background_hu is None else np.where(roi.mask, roi.hu, frame.background_hu)
        for roi in rois
    ]
    return LoadedCase(
        case=case,
        vertebrae=vertebrae,
        hu=np.stack(volumes).astype(np.float32),
        body=np.stack([roi.body for roi in rois]),
        core_hu=np.array([shape.core_hu for shape in shapes]),
        slices=_slices(ct_image, vertebrae),
        flags=[[*_geometry_flags(roi), *found] for roi, found in zip(rois, flags, strict=True)],
        doubts=[
            *(Flag("mask_fit", reason) for reason, _ in doubts + posterior_doubt(vertebrae)),
            *(Flag("thick_slices", reason) for reason, _ in thickness_doubt(slice_mm(ct_image))),
        ],
        contrast=find_contrast(ct_image, class_mask, vertebrae),
        planes=_planes(ct_image, class_mask, vertebrae),
    )


def _geometry_flags(roi: Roi) -> list[Flag]:
    flags = []
    if roi.vertebra.truncated:
        flags.append(Flag("truncated", "cut by the border of the CT"))
    if roi.vertebra.posterior_rule == "header":
        flags.append(Flag("header_axes", "axes from the file's header"))
    if fault := vertebra_hu_fault(roi.mean_hu):
        flags.append(Flag("not_bone", fault))
    return flags


def _slices(ct_image: sitk.Image, vertebrae: list[Vertebra]) -> np.ndarray:
    index = [
        ct_image.TransformPhysicalPointToIndex(vertebra.centre_mm.tolist())[2]
        for vertebra in vertebrae
    ]
    return np.clip(index, 0, ct_image.GetSize()[2] - 1)


def _planes(ct_image: sitk.Image, class_mask: sitk.Image, vertebrae: list[Vertebra]) -> Reformat:
    """CT and mask along the patient's axes around the vertebrae, as planes."""
    centres_mm = np.stack([vertebra.centre_mm for vertebra in vertebrae])
    margin_mm = MARGIN_MM * np.array([1.5, 1.5, 1.0])
    low, high = centres_mm.min(axis=0) - margin_mm, centres_mm.max(axis=0) + margin_mm
    size = [int(n) for n in np.ceil((high - low) / PAGE_SPACING_MM)]
    identity = np.eye(3).ravel().tolist()
    arrays = []
    for image, method, outside in (
        (ct_image, sitk.sitkLinear, -1000.0),
        (class_mask, sitk.sitkNearestNeighbor, 0.0),
    ):
        moved = sitk.Resample(
            image, size, sitk.Transform(), method, low.tolist(), [PAGE_SPACING_MM] * 3, identity,
            outside,
        )  # fmt: skip
        arrays.append(sitk.GetArrayFromImage(moved))
    indices = ((centres_mm - low) / PAGE_SPACING_MM)[:, ::-1]
    return reformat(arrays[0].astype(np.float32), arrays[1], indices)
