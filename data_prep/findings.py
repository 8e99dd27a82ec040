"""Failures and doubts that are collected while a user's tables are read."""

from __future__ import annotations

import dataclasses

from data_prep.recipe import Doubt
from osteojax.errors import CaseError


@dataclasses.dataclass
class Findings:
    """What was found so far.

    Attributes:
      doubts_fail: whether what is doubtful fails (`--doubts fail`).
      failures: of what cannot be used.
      doubts: of what is used.
    """

    doubts_fail: bool
    failures: list[CaseError] = dataclasses.field(default_factory=list)
    doubts: list[Doubt] = dataclasses.field(default_factory=list)

    def doubt(self, doubts: list[Doubt]) -> bool:
        """Adds doubts of one row or scan; whether it has to be left out."""
        if self.doubts_fail:
            self.failures += [CaseError(*doubt) for doubt in doubts]
        else:
            self.doubts += doubts
        return self.doubts_fail and bool(doubts)
