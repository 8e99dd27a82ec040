"""CT + vertebra mask -> upright ROIs, one per vertebra, along the vertebra's own axes.

Two steps, both pure: `measure_vertebrae` finds centres and axes from the mask alone, `extract_roi`
resamples CT and mask into one vertebra's frame. The rules are in docs/method.md: centre of the
vertebral body, axial axis tangent to the line of neighbouring centres, posterior towards the
posterior elements or, for masks of bodies only, the patient's posterior from the header.

Physical coordinates are LPS millimetres (x to the patient's left, y posterior, z superior).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from data_prep.vertebrae.body import Body, measure_bodies
from osteojax.data.boxes import BoxGrid
from osteojax.data.vertebrae import LEVELS
from osteojax.errors import CaseError

OUTSIDE_HU = -1000.0
HEADER_SUPERIOR = np.array([0.0, 0.0, 1.0])
HEADER_POSTERIOR = np.array([0.0, 1.0, 0.0])

MIN_VOLUME_RATIO = 0.3
"""Smallest ratio of the volumes of two neighbouring bodies. If the border of the CT leaves less of
a body, the rest may be only a spinous process, whose centroid says nothing about the axes."""
MAX_LEVEL_GAP = 2
MAX_TRUNCATED_TURN_DEGREES = 25.0
"""Largest angle to the header's posterior for elements that the border cuts: a cut on one side
shifts their centroid."""


@dataclasses.dataclass(frozen=True)
class Vertebra:
    """Position and orientation of one vertebra of a mask.

    Attributes:
      level_class: 1-18.
      centre_mm: f64[3], centroid of the vertebral body, LPS.
      axes: f64[3, 3], rows are the unit vectors superior, posterior, left, in LPS.
      axial_rule: "neighbours" or "header".
      posterior_rule: "elements" or "header".
      truncated: whether the label touches the border of the volume.
      radius_mm: radius of the largest ball inside the body.
      body_volume_mm3, mask_volume_mm3: of the body, and of the whole label.
      body: uint8 image, 1 in the body, on its own grid; None where it was not looked for.
    """

    level_class: int
    centre_mm: np.ndarray
    axes: np.ndarray
    axial_rule: str
    posterior_rule: str
    truncated: bool
    radius_mm: float
    body_volume_mm3: float
    mask_volume_mm3: float
    body: sitk.Image | None = None

    @property
    def level(self) -> str:
        return LEVELS[self.level_class - 1]


@dataclasses.dataclass(frozen=True)
class Roi:
    """One vertebra in its own frame.

    Arrays are [D, H, W]: inferior to superior, anterior to posterior, right to left.

    Attributes:
      vertebra: its position and axes.
      grid: the voxels of the box.
      hu: f32[D, H, W], unclipped HU, -1000 outside the CT.
      mask: bool[D, H, W], the vertebra.
      valid: bool[D, H, W], inside the CT.
      body: bool[D, H, W], the vertebral body, a part of `mask`.
      mean_hu: mean HU of the label's voxels within the shown window, in the original CT.
      fraction_in_frame: part of the label's voxels within the shown window.
    """

    vertebra: Vertebra
    grid: BoxGrid
    hu: np.ndarray
    mask: np.ndarray
    valid: np.ndarray
    body: np.ndarray
    mean_hu: float
    fraction_in_frame: float

    @property
    def spacing_mm(self) -> float:
        return self.grid.spacing_mm


def extract_rois(
    ct_image: sitk.Image, class_mask: sitk.Image, grid: BoxGrid, case: str
) -> list[Roi]:
    """Extracts every vertebra of a checked CT and mask (`verify.load_case`), also truncated ones.

    Args:
      grid: the voxels of the box.

    Returns:
      ROIs from T1 downwards.

    Raises:
      CaseError: levels are in the reverse order of the header (see `measure_vertebrae`).
    """
    return [
        extract_roi(ct_image, class_mask, vertebra, grid)
        for vertebra in measure_vertebrae(class_mask, case)
    ]


def measure_vertebrae(class_mask: sitk.Image, case: str) -> list[Vertebra]:
    """Centres and axes of every vertebra in a mask of classes 1-18, from T1 downwards.

    Raises:
      CaseError: levels are numbered from inferior to superior in the header's coordinates, which
        means a wrong orientation in the header or a wrong label scheme.
    """
    bodies = measure_bodies(class_mask)
    vertebrae = []
    for body in bodies:
        superior, axial_rule = _axial_axis(body, bodies)
        if superior @ HEADER_SUPERIOR < 0:
            raise CaseError(
                case,
                f"{LEVELS[body.level_class - 1]}: the levels are numbered from below upwards.",
                "Check the label scheme of the mask and the orientation in the file's header.",
            )
        posterior, posterior_rule = _posterior_axis(body, superior)
        left = np.cross(posterior, superior)  # x = y cross z in LPS
        vertebrae.append(
            Vertebra(
                level_class=body.level_class,
                centre_mm=body.centre_mm,
                axes=np.stack([superior, posterior, left]),
                axial_rule=axial_rule,
                posterior_rule=posterior_rule,
                truncated=body.truncated,
                radius_mm=body.radius_mm,
                body_volume_mm3=body.body_volume_mm3,
                mask_volume_mm3=body.mask_volume_mm3,
                body=body.image,
            )
        )
    return vertebrae


def _axial_axis(body: Body, bodies: list[Body]) -> tuple[np.ndarray, str]:
    """(unit tangent towards superior, rule). The tangent is the derivative, at the body, of the
    parabola through it and up to two neighbours (one on each side, or both on one side at the end
    of the column), parametrised by chord length. Without neighbours it is the header's superior."""
    near = [
        other
        for other in bodies
        if 0 < abs(other.level_class - body.level_class) <= MAX_LEVEL_GAP
        and other.body_volume_mm3 >= MIN_VOLUME_RATIO * body.body_volume_mm3
        and body.body_volume_mm3 >= MIN_VOLUME_RATIO * other.body_volume_mm3
    ]
    above = sorted((o for o in near if o.level_class < body.level_class), key=_class, reverse=True)
    below = sorted((o for o in near if o.level_class > body.level_class), key=_class)
    chosen = [*above[:1], *below[:1]] if above and below else (above + below)[:2]
    if not chosen:
        return HEADER_SUPERIOR, "header"
    points = sorted([body, *chosen], key=_class, reverse=True)  # from below upwards
    position = np.array([p.centre_mm for p in points])
    chord = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(position, axis=0), axis=1))])
    at = chord[points.index(body)]
    coefficients = np.polynomial.polynomial.polyfit(chord - at, position, len(points) - 1)
    tangent = coefficients[1]
    return tangent / np.linalg.norm(tangent), "neighbours"


def _posterior_axis(body: Body, superior: np.ndarray) -> tuple[np.ndarray, str]:
    """(unit vector, rule): across `superior`, towards the posterior elements or else the header's
    posterior."""

    def across(towards: np.ndarray) -> np.ndarray:
        flat = towards - (towards @ superior) * superior
        return flat / np.linalg.norm(flat)

    header = across(HEADER_POSTERIOR)
    if body.elements_mm is None:
        return header, "header"
    elements = across(body.elements_mm)
    turn = np.degrees(np.arccos(np.clip(elements @ header, -1, 1)))
    if body.truncated and turn > MAX_TRUNCATED_TURN_DEGREES:
        return header, "header"
    return elements, "elements"


def _class(body: Body) -> int:
    return body.level_class


def extract_roi(
    ct_image: sitk.Image, class_mask: sitk.Image, vertebra: Vertebra, grid: BoxGrid
) -> Roi:
    """Resamples CT (linear), mask and body (nearest) into one vertebra's frame.

    Where the ROI's voxels are clearly coarser than the CT's, the CT is smoothed first along those
    axes, so that fine structure is averaged instead of aliased.
    """
    frame = _frame(vertebra, grid)
    sigma = _prefilter_sigma(np.array(ct_image.GetSpacing()), grid.spacing_mm)
    start, extent = _crop_box(ct_image, frame, margin=2 + int(np.ceil(3 * sigma.max())))
    crop = sitk.Cast(sitk.RegionOfInterest(ct_image, extent, start), sitk.sitkFloat32)
    if sigma.any():
        values = ndimage.gaussian_filter(
            sitk.GetArrayViewFromImage(crop), sigma[::-1], mode="nearest", truncate=3.0
        )
        smooth = sitk.GetImageFromArray(values)
        smooth.CopyInformation(crop)
        crop = smooth
    identity = sitk.Transform(3, sitk.sitkIdentity)
    # NaN marks voxels outside the CT; verified CTs contain no NaN.
    resampled = sitk.Resample(crop, frame, identity, sitk.sitkLinear, float("nan"))
    hu = sitk.GetArrayFromImage(resampled)
    valid = np.isfinite(hu)
    hu[~valid] = OUTSIDE_HU
    label = sitk.RegionOfInterest(class_mask, extent, start) == vertebra.level_class

    def nearest(image: sitk.Image) -> np.ndarray:
        resampled = sitk.Resample(image, frame, identity, sitk.sitkNearestNeighbor, 0)
        return sitk.GetArrayFromImage(resampled).astype(bool)

    mask = nearest(label)
    body = np.zeros_like(mask) if vertebra.body is None else nearest(vertebra.body) & mask
    mean_hu, fraction = _label_in_window(ct_image, label, start, vertebra, grid)
    return Roi(vertebra, grid, hu, mask, valid, body, mean_hu, fraction)


def _frame(vertebra: Vertebra, grid: BoxGrid) -> sitk.Image:
    """An image whose voxels lie where the grid's do.

    The corner is computed as that of a cube of the grid's longest edge, from which the box is cut.
    So a cube has the corner that it has always had, to the last bit.
    """
    superior, posterior, left = vertebra.axes
    frame = sitk.Image(*grid.shape[::-1], sitk.sitkUInt8)
    frame.SetSpacing([grid.spacing_mm] * 3)
    frame.SetDirection(np.stack([left, posterior, superior], axis=1).ravel().tolist())
    longest = max(grid.shape)
    half_mm = (longest - 1) / 2 * grid.spacing_mm
    corner = vertebra.centre_mm - half_mm * (left + posterior + superior)
    cut_mm = (longest - np.array(grid.shape)) / 2 * grid.spacing_mm + (0, grid.back_mm, 0)
    frame.SetOrigin((corner + cut_mm @ vertebra.axes).tolist())
    return frame


def _prefilter_sigma(ct_spacing_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
    """f64[3] (x, y, z): sigma, in CT voxels, of a Gaussian whose full width at half maximum is the
    difference (in quadrature) between the ROI's voxel and the CT's; 0 below a factor of 1.25."""
    factor = spacing_mm / ct_spacing_mm
    return np.where(factor > 1.25, np.sqrt(np.maximum(factor**2 - 1, 0)) / 2.355, 0.0)


def _crop_box(image: sitk.Image, frame: sitk.Image, margin: int) -> tuple[list[int], list[int]]:
    """First index and extent (x, y, z) of the part of `image` that the frame reads."""
    last = [n - 1 for n in frame.GetSize()]
    corners = [
        image.TransformPhysicalPointToContinuousIndex(
            frame.TransformIndexToPhysicalPoint([c * n for c, n in zip(corner, last, strict=True)])
        )
        for corner in np.ndindex(2, 2, 2)
    ]
    size = np.array(image.GetSize())
    low = np.floor(np.min(corners, axis=0)).astype(int) - margin
    high = np.ceil(np.max(corners, axis=0)).astype(int) + margin + 1
    low, high = np.clip(low, 0, size - 1), np.clip(high, 1, size)
    return low.tolist(), (high - low).tolist()


def _label_in_window(
    ct_image: sitk.Image, label: sitk.Image, start: list[int], vertebra: Vertebra, grid: BoxGrid
) -> tuple[float, float]:
    """(mean HU, fraction) of the label's voxels within the shown window, in the original CT."""
    index = np.argwhere(sitk.GetArrayViewFromImage(label))  # z, y, x
    matrix = np.array(label.GetDirection()).reshape(3, 3) * np.array(label.GetSpacing())
    place_mm = index[:, ::-1] @ matrix.T + np.array(label.GetOrigin()) - vertebra.centre_mm
    from_middle_mm = place_mm @ vertebra.axes.T - (0, grid.back_mm, 0)
    half_mm = (np.array(grid.shown) - 1) / 2 * grid.spacing_mm + grid.spacing_mm / 2
    inside = np.all(np.abs(from_middle_mm) <= half_mm, axis=1)
    z, y, x = (index[inside] + np.array(start)[::-1]).T
    values = sitk.GetArrayViewFromImage(ct_image)[z, y, x]
    volume_mm3 = inside.sum() * abs(np.linalg.det(matrix))
    mean_hu = float(values.mean(dtype=np.float64)) if values.size else float("nan")
    return mean_hu, float(volume_mm3 / vertebra.mask_volume_mm3)
