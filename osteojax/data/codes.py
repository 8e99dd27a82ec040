"""How a volume is stored in one byte per voxel, and how codes become network input."""

from __future__ import annotations

import dataclasses

import numpy as np

from osteojax.data.soundness import is_count, is_number, is_positive


@dataclasses.dataclass(frozen=True)
class MapSpec:
    """How one member of the texture pool is stored, and how its codes become network input.

    A value v (HU, grey levels, squared grey levels) is transformed, t = v or log1p(v); its code is
    floor((t - offset) / step + 0.5) in 0..codes-1; a code stands for t = offset + step * code. The
    network's input is (t - mean) / std with the training split's statistics, an affine function of
    the code, so that it costs one multiply-add on the device.

    Attributes:
      name: member of `POOL`.
      unit: of v.
      transform: "linear" or "log1p".
      offset, step, codes: quantisation of t.
      mean, std: of t over every voxel of the training split's vertebrae (f32, by map).
    """

    name: str
    unit: str
    transform: str
    offset: float
    step: float
    codes: int
    mean: float = 0.0
    std: float = 1.0

    def encode(self, values: np.ndarray) -> np.ndarray:
        """float[...] values in `unit` -> uint8[...] codes, clipped to the stored range."""
        t = np.log1p(values) if self.transform == "log1p" else np.asarray(values)
        codes = np.floor((t - self.offset) / self.step + 0.5)
        return np.clip(codes, 0, self.codes - 1).astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """uint8[...] codes -> float32[...] values in `unit`."""
        t = self.offset + self.step * codes.astype(np.float32)
        return (np.expm1(t) if self.transform == "log1p" else t).astype(np.float32)

    def affine(self) -> tuple[float, float]:
        """(scale, shift) with network input = scale * code + shift."""
        return self.step / self.std, (self.offset - self.mean) / self.std


def spec_fault(spec: MapSpec) -> str | None:
    """The spec in words if its values are invalid, else None."""
    sound = (
        all(is_number(value) for value in (spec.offset, spec.mean))
        and is_positive(spec.step)
        and is_positive(spec.std)
        and is_count(spec.codes)
        and 0 < spec.codes <= 256
        and spec.transform in ("linear", "log1p")
    )
    return None if sound else f"map {spec!r}"
