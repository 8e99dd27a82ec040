"""What the encoders of a fine-tuned model see of a batch of a cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from osteojax.data.augment import augment, flips_alone
from osteojax.data.places import Places
from osteojax.data.vertebra_columns import BODY_NUMBERS
from osteojax.data.views import GivenDevice, Supervised
from osteojax.errors import UserError
from osteojax.objectives.sight import Seen, Sight
from osteojax.ops.body_numbers import log_squares, z_scored
from osteojax.types import Batch, ModelState

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort

CROP_KEY = 2**31 - 2
"""Folded into a step's key for the crops; no record has this index."""


class BatchSight:
    """Reads and makes `Seen` of a cohort's batches.

    Attributes:
      sight: of the config.
      scale: state of a new model: {"numbers": {"mean", "std"} f32[11]} of the training split where
        the model takes numbers, else {}. The model keeps it, so that it predicts on other cohorts
        as it was trained.
    """

    def __init__(self, config: ConfigDict, cohort: PreparedCohort) -> None:
        """cohort: may be only `Described`; then no view draws, and the scale is a stand-in.

        Raises:
          UserError: the folder lacks what the config asks for, or `data.augment` does not fit
            crops.
        """
        self.sight, self._augment = Sight.of(config, cohort.manifest), config.data.augment
        self._window = self.sight.known.window
        self._places = self._flips = self._numbers = None
        self.scale: ModelState = {}
        if self.sight.crops:
            self._places = Places(cohort, self.sight.edge, self.sight.views.body_share)
            self._flips = self._flips_alone()
        if self.sight.numbers:
            self._numbers, self.scale = _numbers_of(cohort)

    def _flips_alone(self) -> Any:
        """Augmentation of crops, whose places are fixed."""
        asked = self._augment
        if not self.sight.box and (asked.affine or asked.crop_min_volume < 1.0):
            raise UserError(
                "data.augment: affine and crop_min_volume are for boxes, and data.sees=body has "
                "none. Leave them at false and 1."
            )
        return flips_alone(asked)

    def view(self, given_device: np.ndarray | None = None) -> Supervised:
        """The view that draws what is seen; given_device: as for `GivenDevice`."""
        shown: dict[str, Any] = {
            "places": self._places,
            "crops": self.sight.views.readout_crops,
            "numbers": self._numbers,
        }
        return Supervised(**shown) if given_device is None else GivenDevice(given_device, **shown)

    def seen(self, batch: Batch, scale: Any, key: Array | None = None) -> Seen:
        """What the encoders see of one device's share of a batch.

        Args:
          batch: codes uint8[B, 1, *stored], index; corners i32[B, N, 3] and numbers f32[B, 11]
            where the view draws them.
          scale: {"mean", "std"} of the numbers, or None.
          key: of the step, to augment: the box is shifted within its margin and flipped, every crop
            flipped by itself. None shows everything as it is.
        """
        codes, index_B = batch["codes"], batch["index"]
        box = crops = numbers = None
        if self.sight.box:
            box = codes if key is None else augment(codes, index_B, key, self._augment)
            # The window is taken last, so that a shift shows what is stored beyond it.
            box = box[:, 0][(..., *self._window)]
        if self._places is not None:
            crops = self._places.cut(codes, batch["corners"])
            if key is not None:
                crop_key = jax.random.fold_in(key, CROP_KEY)
                crops = augment(crops, index_B, crop_key, self._flips)
        if self.sight.numbers:
            numbers = z_scored(batch["numbers"], scale["mean"], scale["std"])
        return self.sight.of_codes(box, crops, numbers)


def _numbers_of(cohort: Any) -> tuple[np.ndarray, ModelState]:
    """(f32[N, 11] the numbers of every row, their logarithms where they are squares; their scale
    over the training split). Zeros and a stand-in for a cohort without a table."""
    if not hasattr(cohort, "table"):
        count = len(cohort.labels.level) if hasattr(cohort, "labels") else 0
        blank = jnp.zeros(len(BODY_NUMBERS), jnp.float32)
        numbers = np.zeros((count, len(BODY_NUMBERS)), np.float32)
        return numbers, {"numbers": {"mean": blank, "std": blank + 1.0}}
    numbers = log_squares(cohort.table[list(BODY_NUMBERS)].to_numpy(np.float64))
    training = numbers[cohort.rows("train")]
    if absent := np.array(BODY_NUMBERS)[np.isnan(training).all(axis=0)].tolist():
        raise UserError(
            f"{cohort.directory}: data.numbers needs {', '.join(absent)}, and the training split "
            "has no value of it. Prepare the cohort again, or train without numbers."
        )
    std = np.nanstd(training, axis=0)
    scale = {"mean": np.nanmean(training, axis=0), "std": np.where(std > 0, std, 1.0)}
    return numbers.astype(np.float32), {
        "numbers": {name: jnp.asarray(value, jnp.float32) for name, value in scale.items()}
    }
