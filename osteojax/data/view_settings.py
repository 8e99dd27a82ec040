"""What the views of a run show: `config.data.views`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from osteojax.errors import UserError

REGIONS = ("box", "body")


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """Settings of the views. A config without them means whole boxes, two views a vertebra.

    Attributes:
      region: "box": every view is the whole box. "body": every view is a cubic crop of the
        vertebral body (`osteojax.data.places`).
      edge_mm: of the crops, rounded to whole voxels.
      count: V, views of a vertebra in pre-training: V / 2 pairs of members of the pool.
      same_place: whether all views of a vertebra are cut at one place, or each at its own.
      body_share: share of a crop's voxels that must be body. Vertebrae without such a crop are
        left out of pre-training; elsewhere they show the crop of largest share.
      readout_crops: fixed crops whose mean embedding is that of a vertebra, in probes, fine-tuning,
        evaluation and export.
    """

    region: str = "box"
    edge_mm: float = 18.0
    count: int = 2
    same_place: bool = False
    body_share: float = 1.0
    readout_crops: int = 8

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> ViewSettings:
        """The settings of `config.data`. Raises UserError for a value that means nothing."""
        given = data.get("views")
        names = [field.name for field in dataclasses.fields(cls)]
        found = {} if given is None else {name: given[name] for name in names if name in given}
        settings = cls(**found)
        if fault := settings._fault():
            raise UserError(f"data.views.{fault}.")
        return settings

    @property
    def of_body(self) -> bool:
        """Whether views are crops of the body."""
        return self.region == "body"

    def _fault(self) -> str | None:
        if self.region not in REGIONS:
            return f"region is {self.region!r}; choose one of {', '.join(REGIONS)}"
        if self.edge_mm <= 0:
            return f"edge_mm is {self.edge_mm:g}; it must be positive"
        if self.count < 2 or self.count % 2:
            return f"count is {self.count}; views come in pairs: choose an even number from 2"
        if not 0 < self.body_share <= 1:
            return f"body_share is {self.body_share:g}; choose a share above 0, at most 1"
        if self.readout_crops < 1:
            return f"readout_crops is {self.readout_crops}; choose a number from 1"
        return None


WHOLE_BOXES = ViewSettings()
