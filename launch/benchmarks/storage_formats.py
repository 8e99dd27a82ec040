"""Formats in which a member of the pool can be stored, and their errors.

The reference is the float32 map (or unrounded HU, where known). The error of a format is given in
the map's unit, relative to the map's SD, and in the network's input, which is the transformed
value z-scored over the training split.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from osteojax.data.codes import MapSpec
from osteojax.data.vertebrae import HU_MAX, HU_MIN

FORMATS = ("uint8", "uint8 linear", "uint8 log1p", "uint16", "float16")
"""uint8: as `osteojax prepare` writes. uint8 linear, uint8 log1p: maps that it stores with the
other transform, over the same range. uint16: the same range in 65,536 codes; the image in whole HU.
float16: the value in its unit."""


def is_format_of(spec: MapSpec, stored_as: str) -> bool:
    """Whether the format differs from uint8 for this map."""
    transform = stored_as.removeprefix("uint8 ")
    if transform not in ("linear", "log1p"):
        return True
    return spec.name != "image" and spec.transform != transform


def format_spec(spec: MapSpec, stored_as: str) -> MapSpec:
    """The spec of one member of the pool in a format; float16 has no codes and keeps the spec."""
    if stored_as in ("uint8 linear", "uint8 log1p"):
        if not is_format_of(spec, stored_as):
            return spec
        ends = np.array([spec.offset, spec.offset + spec.step * (spec.codes - 1)])
        low, high = np.log1p(ends) if spec.transform == "linear" else np.expm1(ends)
        step, transform = float((high - low) / (spec.codes - 1)), stored_as.split()[1]
        return dataclasses.replace(spec, transform=transform, offset=float(low), step=step)
    if stored_as != "uint16":
        return spec
    if spec.name == "image":
        return dataclasses.replace(spec, offset=HU_MIN, step=1.0, codes=int(HU_MAX - HU_MIN))
    return dataclasses.replace(spec, step=spec.step * (spec.codes - 1) / 65535, codes=65536)


def encode(spec: MapSpec, stored_as: str, values: np.ndarray) -> np.ndarray:
    """float32[...] values in the map's unit -> uint8, uint16 or float16[...]."""
    if stored_as == "float16":
        return values.astype(np.float16)
    wide = format_spec(spec, stored_as)
    if wide.codes <= 256:
        return wide.encode(values)
    codes = np.floor((transformed(wide, values) - wide.offset) / wide.step + 0.5)
    return np.clip(codes, 0, wide.codes - 1).astype(np.uint16)


def decode(spec: MapSpec, stored: np.ndarray) -> np.ndarray:
    """Stored values -> float64[...] transformed values, from which the network's input is made.

    spec: `format_spec` of the format; float16 is recognised by its dtype.
    """
    if stored.dtype == np.float16:
        return transformed(spec, stored)
    return spec.offset + spec.step * stored.astype(np.float64)


def transformed(spec: MapSpec, values: np.ndarray) -> np.ndarray:
    """float64[...]: values in the map's unit, transformed as in the spec."""
    values = values.astype(np.float64)
    return np.log1p(values) if spec.transform == "log1p" else values


def in_unit(spec: MapSpec, values: np.ndarray) -> np.ndarray:
    """float64[...]: the inverse of `transformed`."""
    return np.expm1(values) if spec.transform == "log1p" else values


class ErrorSums:
    """Errors of one map in one format, summed over vertebrae."""

    def __init__(self, spec: MapSpec, stored_as: str) -> None:
        self._spec = format_spec(spec, stored_as)
        self._voxels = 0
        # Errors of the value in its unit and of the transformed value: sum of squares, largest.
        self._squares, self._largest = np.zeros(2), np.zeros(2)
        self._training_voxels = 0
        self._moments = np.zeros((2, 2))  # sum and sum of squares of the truth, each kind

    def add(self, truth: np.ndarray, stored: np.ndarray, training: bool) -> None:
        """Adds a vertebra: float32[...] exact values in the map's unit, and their `encode`.

        training: whether the vertebra counts for the SD.
        """
        exact = transformed(self._spec, truth)
        found = decode(self._spec, stored)
        pairs = ((truth.astype(np.float64), in_unit(self._spec, found)), (exact, found))
        self._voxels += truth.size
        for kind, (wanted, got) in enumerate(pairs):
            error = np.abs(got - wanted)
            self._squares[kind] += np.square(error).sum()
            self._largest[kind] = max(self._largest[kind], error.max())
            if training:
                self._moments[kind] += wanted.sum(), np.square(wanted).sum()
        self._training_voxels += truth.size if training else 0

    def errors(self) -> dict[str, Any]:
        """RMS and largest error in the unit, in SD of the value, and in the network's input."""
        rms = np.sqrt(self._squares / self._voxels)
        mean, square = self._moments.T / self._training_voxels
        sd = np.sqrt(np.maximum(square - mean**2, 0))
        sd[sd == 0] = 1.0  # for a map that does not vary, as in the manifest
        return {
            "rms_error": float(rms[0]),
            "max_error": float(self._largest[0]),
            "rms_error_sd": float(rms[0] / sd[0]),
            "max_error_sd": float(self._largest[0] / sd[0]),
            "input_rms_error_sd": float(rms[1] / sd[1]),
            "input_max_error_sd": float(self._largest[1] / sd[1]),
        }
