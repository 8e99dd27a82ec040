"""Flags of doubtful inputs, by name; they are shown on every output and never hide a number."""

from __future__ import annotations

import dataclasses

from data_prep.vertebrae.contrast import Contrast, contrast_doubt

MEANINGS = {
    "truncated": "Cut by the border of the CT",
    "header_axes": "Axes from the file's header",
    "mask_fit": "Mask does not lie on the CT's bone",
    "thick_slices": "Slices 5 mm apart or more",
    "not_bone": "Mean HU that no bone has",
    "metal": "Metal or cement suspected",
    "fracture_shape": "Fracture-like shape",
    "fracture_density": "Fracture-like density",
    "low_density": "Density far below its neighbours'",
    "other_level": "Looks like another level to the model",
    "unlike_training": "Unlike the training data",
    "contrast": "Contrast agent suspected",
    "contrast_unknown": "Contrast agent could not be checked for",
    "body_crop": "No crop lies inside the vertebral body",
    "stated": "Flagged in the user's own table",
}
"""Name -> meaning; at most 64 characters, because DICOM codes carry no more."""
REMARKS = frozenset(["header_axes", "contrast_unknown"])
"""Flags that are only remarks, no reason to doubt an answer."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a vertebra or of a case.

    Attributes:
      name: one of `MEANINGS`.
      text: for people, with the values.
    """

    name: str
    text: str


def contrast_flags(contrast: Contrast) -> list[Flag]:
    """Flags of the case; empty if no agent is suspected."""
    if contrast.suspected is None:
        text = "contrast agent could not be checked for (no room before T10-L4 in the CT)"
        return [Flag("contrast_unknown", text)]
    return [Flag("contrast", reason) for reason, _ in contrast_doubt(contrast)]


def doubts(flags: list[Flag]) -> list[Flag]:
    """The flags that are a reason to doubt an answer."""
    return [flag for flag in flags if flag.name not in REMARKS]


def joined(flags: list[Flag]) -> str:
    return "; ".join(flag.text for flag in flags)
