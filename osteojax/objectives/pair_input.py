"""From a batch to what a self-supervised network sees: members, crops, flips and z-scores."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

from osteojax.data import vertebrae
from osteojax.data.augment import augment, flips_alone, network_input
from osteojax.data.online import online_texture
from osteojax.data.pair_views import PoolPair, pair_view
from osteojax.data.places import Places
from osteojax.data.view_settings import ViewSettings
from osteojax.data.views import Supervised
from osteojax.errors import UserError
from osteojax.types import Batch

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.cohort import PreparedCohort

log = logging.getLogger(__name__)


class PairInput:
    """What a run on pairs of the texture pool sees of a cohort.

    Attributes:
      settings: `data.views`.
      view: draws and reads pairs.
    """

    def __init__(self, config: ConfigDict, cohort: PreparedCohort) -> None:
        """Raises UserError for settings of `data` that mean nothing or that the folder cannot
        serve."""
        self._config, self._cohort = config, cohort
        self.settings = ViewSettings.of(config.data)
        self._about = vertebrae.about(cohort.manifest)
        self._online = online_texture(config.data.textures, cohort)
        self._places = Places.for_views(cohort, self.settings)
        self.view: PoolPair = pair_view(
            config.data.pairs, self._online is not None, self.settings, self._places
        )
        self._augmentation = config.data.augment if self._places is None else self._flips()
        statistics = config.data.get("statistics", "box")
        self._map_affine = jnp.asarray(self._about.map_affine(statistics))

    def _flips(self) -> ConfigDict:
        """Augmentation of body crops, whose places are drawn already."""
        asked = self._config.data.augment
        if asked.affine or asked.crop_min_volume < 1.0:
            raise UserError(
                "data.augment: affine and crop_min_volume are for whole boxes. Leave them at false "
                "and 1, or use data.views.region=box."
            )
        return flips_alone(asked)

    def training_rows(self) -> np.ndarray:
        """i64[N] vertebrae of training patients; those with a label only where
        `data.labelled_too`. For body crops only those whose body has a place for one."""
        return self._training_rows

    @cached_property
    def _training_rows(self) -> np.ndarray:
        labelled = None if self._config.data.labelled_too else False
        rows = self._cohort.rows("train", labelled=labelled)
        if self._places is None:
            return rows
        kept = rows[self._places.having(rows)]
        if len(kept) < len(rows):
            log.warning(
                "%d of %d training %s are left out: no crop of %g mm has a share of %g of its "
                "voxels in their body (data.views)",
                len(rows) - len(kept), len(rows), self._cohort.kind.ITEMS, self.settings.edge_mm,
                self.settings.body_share,
            )  # fmt: skip
        return kept

    def image_view(self, cohort: PreparedCohort) -> Supervised:
        """The image of a vertebra as its embedding sees it: the whole box, or fixed body crops.

        Args:
          cohort: the run's own, or another one that was prepared with the same boxes.

        Raises:
          UserError: its boxes differ.
        """
        if cohort is self._cohort:
            return Supervised(places=self._places, crops=self.settings.readout_crops)
        about = vertebrae.about(cohort.manifest)
        for name in ("spacing_mm", "shape", "margin"):
            found, expected = getattr(about, name), getattr(self._about, name)
            if found != expected:
                raise UserError(
                    f"{cohort.directory}: {name} is {found}, and {expected} in the cohort of the "
                    "run. Prepare it with the same --size and --box."
                )
        places = Places.for_views(cohort, self.settings)
        return Supervised(places=places, crops=self.settings.readout_crops)

    def augmented(self, batch: Batch, key: Array) -> Array:
        """[B, V, D, H, W]: what the network sees in training."""
        members = augment(self._members(batch), batch["index"], key, self._augmentation)
        return self._shown(members)

    def seen(self, batch: Batch) -> Array:
        """uint8[B, V, D, H, W]: the same without augmentation. V is the number of fixed crops for
        an `image_view` of body crops."""
        return self._shown(self._members(batch))

    def z_scored(self, codes_NDHW: Array, map_ids_N: Array) -> Array:
        """The network's input (`augment.network_input`)."""
        return network_input(codes_NDHW, map_ids_N, self._map_affine, self._config.model.rank)

    def _members(self, batch: Batch) -> Array:
        """uint8[B, V, D, H, W]: the members of the pool that a batch shows, read or computed; whole
        stored boxes, or the crops alone."""
        online = self._online if "image" in batch else None
        if self._places is None:
            if online is None:
                return batch["codes"]
            return online.members(batch["image"], batch["map_ids"])
        if online is None:
            return self._places.cut(batch["codes"], batch["corners"])
        corners, edge = batch["corners"] + self._places.margin, self._places.edge
        return online.crops(batch["image"], batch["map_ids"], corners, edge)

    def _shown(self, members_BVDHW: Array) -> Array:
        """The shown window of whole boxes. It is taken after augmentation, so that a shift within
        the margin shows what is there."""
        if self._places is not None:
            return members_BVDHW
        return members_BVDHW[(..., *self._about.window)]
