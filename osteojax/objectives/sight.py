"""What the encoders of a run see of a vertebra: its box, crops of its body, or both.

Training reads stored codes and the places of crops from a batch; an exported program takes HU and
the mask of the body, and cuts the same crops. Both end in `Seen`, the inputs of the network.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from osteojax.data.augment import network_input
from osteojax.data.places import cut, edge_voxels, fixed_corners
from osteojax.data.vertebrae import HU_MAX, HU_MIN, About, about
from osteojax.data.view_settings import ViewSettings
from osteojax.errors import UserError
from osteojax.ops.body_numbers import body_numbers, log_squares, z_scored

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.schema import Manifest

SEES = ("vertebra", "body", "both")

Seen = dict[str, Any]
"""Inputs of `osteojax.objectives.diagnosis.DiagnosisModel`, None for what it does not take: x
f32[B, *space, 1], crops f32[B, N, *space, 1], numbers f32[B, 11]."""


@dataclasses.dataclass(frozen=True)
class Sight:
    """What the encoders of a run see.

    Attributes:
      known: of the prepared folder.
      sees: "vertebra", the shown box; "body", crops of the vertebral body; "both".
      views: settings of the crops.
      statistics: region whose z-scores the pre-trained encoder takes (`About.map_affine`).
      rank: 3, or 2 for the mid-sagittal slices of box and crops.
      numbers: whether the numbers of the body are joined to the embedding.
    """

    known: About
    sees: str
    views: ViewSettings
    statistics: str
    rank: int
    numbers: bool

    @classmethod
    def of(cls, config: ConfigDict, manifest: Manifest) -> Sight:
        """The sight that a config describes: `data.sees` of fine-tuning; the region of the views
        of pre-training.

        Raises:
          UserError: `data.sees` is not one of `SEES`, or the folder has no masks of bodies or no
            such statistics.
        """
        data, views = config.data, ViewSettings.of(config.data)
        sees = data.get("sees", "body" if views.of_body else "vertebra")
        if sees not in SEES:
            raise UserError(f"data.sees is {sees!r}; choose one of {', '.join(SEES)}.")
        sight = cls(
            known=about(manifest),
            sees=sees,
            views=views,
            statistics=data.get("statistics", "box"),
            rank=config.model.rank,
            numbers=bool(data.get("numbers", False)),
        )
        if sight.takes_body and not sight.known.has_body:
            raise UserError(
                f"data.sees={sees}, data.numbers={sight.numbers}: the prepared folder has no masks "
                "of vertebral bodies, because an earlier version wrote it. Prepare the cohort "
                "again, or see the whole vertebra without numbers."
            )
        sight.known.map_affine(sight.statistics)  # raises UserError
        return sight

    @property
    def box(self) -> bool:
        """Whether an encoder sees the shown box."""
        return self.sees != "body"

    @property
    def crops(self) -> bool:
        """Whether an encoder sees crops of the body."""
        return self.sees != "vertebra"

    @property
    def takes_body(self) -> bool:
        """Whether an exported program needs the mask of the body."""
        return self.crops or self.numbers

    @property
    def edge(self) -> int:
        """Edge of a crop in voxels."""
        return edge_voxels(self.views.edge_mm, self.known.spacing_mm)

    @property
    def box_statistics(self) -> str:
        """Region of the z-scores of the box. An encoder beside that of the crops has the box's own,
        so that the zeros which pad its convolutions are the box's mean; one that sees the box alone
        has those that it was pre-trained with."""
        return "box" if self.crops else self.statistics

    def of_codes(
        self, box_BDHW: Array | None, crops_BNDHW: Array | None, numbers: Array | None
    ) -> Seen:
        """`Seen` of codes of the image (uint8 or f32): the shown box, the crops; and of z-scored
        numbers. None for what is not seen."""
        x, crops = None, None
        if box_BDHW is not None:
            x = self._z_scored(box_BDHW, self.box_statistics)
        if crops_BNDHW is not None:
            each = crops_BNDHW.reshape(-1, *crops_BNDHW.shape[2:])
            flat = self._z_scored(each, self.statistics)
            crops = flat.reshape(*crops_BNDHW.shape[:2], *flat.shape[1:])
        return {"x": x, "crops": crops, "numbers": numbers}

    def _z_scored(self, codes_BDHW: Array, region: str) -> Array:
        image_maps = jnp.zeros(codes_BDHW.shape[0], jnp.int32)
        map_affine = jnp.asarray(self.known.map_affine(region))
        return network_input(codes_BDHW, image_maps, map_affine, self.rank)

    def of_hu(self, hu_BDHW: Array, body_BDHW: Array | None = None, *, scale: Any = None) -> Seen:
        """`Seen` of an exported program's inputs.

        HU are quantised as in the shards, so that the network gets the same input as in training.

        Args:
          hu_BDHW: f32[B, *shown] HU.
          body_BDHW: bool[B, *shown], where `takes_body`.
          scale: {"mean", "std"} f32[11] of the numbers, where they are joined.
        """
        image = self.known.maps[0]
        codes = jnp.floor((hu_BDHW - image.offset) / image.step + 0.5)
        codes = jnp.clip(codes, 0, image.codes - 1)
        crops, numbers = None, None
        if self.crops and body_BDHW is not None:
            crops = cut(codes[:, None], self.corners(body_BDHW), self.edge)
        if self.numbers and body_BDHW is not None:
            # The table's numbers are of HU that were not quantised.
            measured = body_numbers(jnp.clip(hu_BDHW, HU_MIN, HU_MAX), body_BDHW)
            numbers = z_scored(log_squares(measured), scale["mean"], scale["std"])
        return self.of_codes(codes if self.box else None, crops, numbers)

    def corners(self, body_BDHW: Array) -> Array:
        """i32[B, N, 3]: the fixed places of bodies, computed on the device."""
        views = self.views
        return fixed_corners(body_BDHW, self.edge, views.body_share, views.readout_crops)
