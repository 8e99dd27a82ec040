"""What a part of `osteojax benchmark gpu` is told: sizes; and what it says where it cannot run."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the parts measure.

    Attributes:
      large, small: edges of boxes in voxels; those of "96" and "64" in names of parts.
      batch: vertebrae a step; boxes of a batch of textures.
      width: of the network.
      stage_sizes: of the network; None leaves the shipped config's.
      queue_size: of the objective; None leaves the shipped config's.
      repeats: timed windows.
      window_seconds: least length of a window.
      smoke: whether these are the tiny ones, for any device.
    """

    large: int = 96
    small: int = 64
    batch: int = 32
    width: int = 64
    stage_sizes: tuple[int, ...] | None = None
    queue_size: int | None = None
    repeats: int = 5
    window_seconds: float = 1.0
    smoke: bool = False


FULL = Sizes()
SMOKE = Sizes(16, 12, 2, 4, (1,), 16, repeats=1, window_seconds=0.01, smoke=True)


class Absent(Exception):
    """What a part would measure is not here; the message says why."""
