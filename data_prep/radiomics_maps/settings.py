"""PyRadiomics' settings by name: which ones are supported, and their values.

Names, defaults and allowed values are those of PyRadiomics 3.0.1 (radiomics/featureextractor.py
and radiomics/schemas/paramSchema.yaml).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

DEFAULTS: dict[str, Any] = {
    "minimumROIDimensions": 2,
    "minimumROISize": None,
    "normalize": False,
    "normalizeScale": 1,
    "removeOutliers": None,
    "resampledPixelSpacing": None,
    "interpolator": "sitkBSpline",
    "preCrop": False,
    "padDistance": 5,
    "distances": [1],
    "force2D": False,
    "force2Ddimension": 0,
    "resegmentRange": None,
    "label": 1,
    "additionalInfo": True,
}
"""Default settings of PyRadiomics' extractor."""

OF_THE_ENGINE = (
    "binWidth", "binCount", "kernelRadius", "maskedKernel", "distances", "force2D",
    "force2Ddimension", "symmetricalGLCM", "weightingNorm", "initValue", "voxelArrayShift",
)  # fmt: skip
"""Settings that `osteojax.ops.texture.voxel_maps.VoxelSettings` has, under the same names."""
VOXEL = ("kernelRadius", "maskedKernel", "initValue", "voxelBatch")
"""Settings that a parameter file has under voxelSetting; all others are under setting."""
OF_AN_IMAGE_TYPE = tuple(name for name in OF_THE_ENGINE if name not in VOXEL)
"""Settings that an entry of imageType may change."""

ONLY: dict[str, Any] = {
    "normalize": False,
    "resampledPixelSpacing": None,
    "resegmentRange": None,
    "correctMask": False,
}
"""Settings of unsupported steps -> the value that turns the step off."""

WITHOUT_EFFECT = (
    "voxelBatch",  # how many windows PyRadiomics takes at a time
    "normalizeScale", "removeOutliers", "interpolator",  # of steps in ONLY
    "resegmentMode", "resegmentShape",
    "sigma", "start_level", "level", "wavelet", "gradientUseSpacing",  # of filters
    "lbp2DRadius", "lbp2DSamples", "lbp2DMethod",
    "lbp3DLevels", "lbp3DIcosphereRadius", "lbp3DIcosphereSubdivision",
    "gldm_a",  # of another feature class
)  # fmt: skip
"""Settings that change nothing in maps of the original image. They are accepted."""


class _Values(NamedTuple):
    """The values that a setting may have, as a test and in words."""

    takes: Callable[[Any], bool]
    words: str


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


_POSITIVE = _Values(lambda v: _number(v) and v > 0, "a number above 0")
_FLAG = _Values(lambda v: isinstance(v, bool), "true or false")
_FROM_0 = _Values(lambda v: _whole(v, 0), "a whole number from 0")
_FROM_1 = _Values(lambda v: _whole(v, 1), "a whole number from 1")
_NORMS = (None, "manhattan", "euclidean", "infinity", "no_weighting")


def _or_none(values: _Values) -> _Values:
    return _Values(lambda v: v is None or values.takes(v), f"{values.words}, or none")


VALUES = {
    "binWidth": _POSITIVE,
    "binCount": _or_none(_FROM_1),
    "kernelRadius": _FROM_1,
    "maskedKernel": _FLAG,
    "initValue": _Values(lambda v: _number(v) or v != v, "a number"),  # NaN too
    "distances": _Values(
        lambda v: isinstance(v, list | tuple) and bool(v) and all(_whole(d, 1) for d in v),
        "a list of whole numbers from 1",
    ),
    "force2D": _FLAG,
    "force2Ddimension": _Values(lambda v: _whole(v, 0, 2), "0, 1 or 2"),
    "symmetricalGLCM": _FLAG,
    "weightingNorm": _Values(lambda v: v in _NORMS, ", ".join(str(n) for n in _NORMS)),
    "voxelArrayShift": _Values(lambda v: _whole(v, -(2**53), 2**53), "a whole number"),
    "label": _FROM_1,
    "label_channel": _FROM_0,
    "additionalInfo": _FLAG,
    "minimumROIDimensions": _Values(lambda v: _whole(v, 1, 3), "1, 2 or 3"),
    "minimumROISize": _or_none(_FROM_1),
    "geometryTolerance": _or_none(_POSITIVE),
    "preCrop": _FLAG,
    "padDistance": _FROM_0,
}
"""Supported settings, with the values that they may have."""


def fault(name: str, settings: Mapping[str, Any]) -> str:
    """What is wrong with a setting, in one line; empty if nothing is."""
    value = settings[name]
    if name in ONLY:
        if name == "resampledPixelSpacing" and settings.get("interpolator") is None:
            return ""  # without an interpolator PyRadiomics resamples nothing
        if value == ONLY[name]:
            return ""
        return f"setting {name} is {value}: this step is not supported; only {_word(ONLY[name])} is"
    if name in WITHOUT_EFFECT:
        return ""
    if name not in VALUES:
        known = [*VALUES, *ONLY, *WITHOUT_EFFECT]
        close = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        return f"there is no setting {name}{hint}"
    values = VALUES[name]
    return "" if values.takes(value) else f"setting {name} is {value!r}: it must be {values.words}"


def _word(value: Any) -> str:
    """A value as YAML writes it."""
    return {None: "null", False: "false"}[value]
