"""Detects contrast agent by the brightest vessel-sized region in front of the spine.

The mask contains only vertebrae, so the aorta and the vena cava are searched for in front of the
bodies of T10 to L4. Blood without agent has 30 to 60 HU; in a portal-venous phase it has 120 to
200, in an arterial phase more. Agent makes bone look denser (about 10 HU in trabecular bone), so
predictions on such a CT err towards "no osteoporosis".

Limits: a late phase (below `CONTRAST_HU`) is not detected; bright bowel contents beside most of the
levels, or a graft, look like agent; a CT that is cropped to the spine cannot be checked.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from data_prep.vertebrae.roi import Vertebra
from osteojax.data.vertebrae import LEVELS

CONTRAST_HU = 110.0
"""Threshold: half-way between blood without agent and a portal-venous phase."""
VESSEL_LEVELS = LEVELS[LEVELS.index("T10") : LEVELS.index("L4") + 1]
"""Levels at which the aorta is in front of the spine; it divides at L4."""
GRID_MM = 2.0
REGION_MM = ((-8.0, 8.0), (-58.0, -6.0), (-28.0, 36.0))
"""Searched region: superior, posterior and left of the body's centre; the aorta is left of the
midline."""
LUMEN_MM = 5.0
"""Radius of the ball that must be bright; thinner structures (plaque, cortex, calcified wall) are
ignored."""
SHARE_DARKER = 25
"""Percentage of the ball's voxels that may be darker than the reported HU."""
BONE_MARGIN_MM = 4.0
"""Distance kept from every labelled vertebra because of partial volume."""
LEAST_INSIDE = 0.6
"""Smallest share of the region that must lie within the CT."""
LEAST_BODY_RADIUS_MM = 7.0
"""Smallest radius of a body's inscribed ball; a smaller one is that of a spinous process whose body
the border of the CT cuts off."""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Result of the check.

    Attributes:
      suspected: whether contrast agent is suspected; None if it could not be checked.
      vessel_hu: median over levels of the HU of the brightest ball; None if not checked.
      levels: number of levels that were checked.
    """

    suspected: bool | None
    vessel_hu: float | None
    levels: int


def contrast_doubt(contrast: Contrast) -> list[tuple[str, str]]:
    """(reason, remedy) where contrast agent is suspected."""
    if not contrast.suspected:
        return []
    reason = f"contrast agent suspected (vessels {contrast.vessel_hu:.0f} HU)"
    remedy = "Agent makes bone look denser: use a CT without, or say yes in the column contrast."
    return [(reason, remedy)]


def find_contrast(
    ct_image: sitk.Image, class_mask: sitk.Image, vertebrae: list[Vertebra]
) -> Contrast:
    """Checks the region in front of T10-L4 of a verified CT and mask (`verify.load_case`)."""
    found = [
        _vessel_hu(ct_image, class_mask, vertebra)
        for vertebra in vertebrae
        if vertebra.level in VESSEL_LEVELS and vertebra.radius_mm >= LEAST_BODY_RADIUS_MM
    ]
    measured = [value for value in found if value is not None]
    if not measured:
        return Contrast(None, None, 0)
    vessel_hu = float(np.median(measured))
    return Contrast(vessel_hu > CONTRAST_HU, vessel_hu, len(measured))


def _vessel_hu(ct_image: sitk.Image, class_mask: sitk.Image, vertebra: Vertebra) -> float | None:
    """HU that three quarters of the brightest 1 cm ball in front of one body reach."""
    frame = _frame(vertebra)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    # Voxels outside the CT become NaN; verified CTs contain no NaN.
    hu = sitk.GetArrayFromImage(
        sitk.Resample(ct_image, frame, identity, sitk.sitkLinear, float("nan"), sitk.sitkFloat32)
    )
    inside = np.isfinite(hu)
    if inside.mean() < LEAST_INSIDE:
        return None
    bone = sitk.GetArrayFromImage(
        sitk.Resample(class_mask, frame, identity, sitk.sitkNearestNeighbor, 0)
    )
    away_mm = ndimage.distance_transform_edt(np.pad(bone == 0, 1, constant_values=True))
    near = away_mm[1:-1, 1:-1, 1:-1] * GRID_MM <= BONE_MARGIN_MM
    usable = inside & ~(near & bool(bone.any()))
    reach = round(LUMEN_MM / GRID_MM)
    offsets = np.arange(-reach, reach + 1) * GRID_MM
    ball = sum(np.square(axis) for axis in np.meshgrid(offsets, offsets, offsets)) <= LUMEN_MM**2
    level = ndimage.percentile_filter(
        np.where(usable, hu, -1000.0), SHARE_DARKER, footprint=ball, mode="constant", cval=-1000.0
    )
    return float(level.max())


def _frame(vertebra: Vertebra) -> sitk.Image:
    """An empty grid over the region in front of a body, along the vertebra's own axes."""
    superior, posterior, left = vertebra.axes
    size = [round((high - low) / GRID_MM) + 1 for low, high in REGION_MM]
    frame = sitk.Image(size[2], size[1], size[0], sitk.sitkUInt8)
    frame.SetSpacing([GRID_MM] * 3)
    frame.SetDirection(np.stack([left, posterior, superior], axis=1).ravel().tolist())
    corner = sum(low * axis for (low, _), axis in zip(REGION_MM, vertebra.axes, strict=True))
    frame.SetOrigin((vertebra.centre_mm + corner).tolist())
    return frame
