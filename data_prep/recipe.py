"""What a kind of data brings to `osteojax prepare`. All that knows no kind is shared.

A kind is a module, `data_prep/<kind>/recipe.py` or `<dotted name>.recipe` elsewhere, with

    add_arguments(parser)      its own options of `osteojax prepare`
    recipe(args) -> Recipe     its settings
    read(args) -> Cohort       the user's tables -> items

Its docstring is the help of `osteojax prepare --kind <kind>`: the first line says what is made of
what, the rest which files the user brings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from osteojax.data.schema import Field, Manifest
from osteojax.errors import CaseError


class Item(Protocol):
    """One thing to prepare: a CT with its mask, a picture. It is sent to a worker."""

    @property
    def index(self) -> int:
        """Position in the cohort; it decides the shard."""

    @property
    def case(self) -> str:
        """The user's own id, for messages and `failures.csv`."""


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What the user's tables hold.

    Attributes:
      items: usable rows, in the table's order; the n-th has index n.
      failures: bad rows.
      excluded: (case, patient_id, reason) of what the tables leave out.
      notes: what the user should know.
      digest: SHA-256 of the tables' bytes; a folder is resumed with the same tables only.
    """

    items: Sequence[Any]
    failures: list[CaseError]
    excluded: list[tuple[str, str, str]]
    notes: list[str]
    digest: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What one item gave; stored as `parts/000012.json`.

    Attributes:
      rows: of the folder's table, without shard and position; one for each record group.
      failures: (case, reason, remedy).
      excluded: (case, patient_id, reason).
      histograms: name -> counts, added up over the item's rows, for the statistics of `finish`.
      complete: whether the records are final; if not, `Completion.complete` makes the rest.
    """

    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    excluded: list[tuple[str, str, str]]
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    complete: bool = True


class Completion(Protocol):
    """The part of the work that an accelerator does faster, in batches across items."""

    def batch_size(self) -> int:
        """How many rows are completed together, in this process."""

    def complete(self, batch: list[list[bytes]]) -> list[tuple[list[bytes], dict[str, np.ndarray]]]:
        """Final records and histograms (i64[...]) of each row, from the records of `prepare`.

        A row's result must not depend on the others of its batch.
        """


class Recipe(Protocol):
    """A kind of data with its settings. It is sent to workers, so it holds no data.

    Attributes:
      kind: its name, as `--kind` and the manifest say it.
      item_column: the table's column that holds an item's `case`.
      shard_prefix: what names of shards begin with.
    """

    kind: str
    item_column: str
    shard_prefix: str

    @property
    def fields(self) -> tuple[Field, ...]:
        """What each of a row's final records holds, in order; the first is `META`."""

    @property
    def completion(self) -> Completion | None:
        """None where `prepare` always makes final records."""

    def settings(self) -> dict[str, Any]:
        """All that decides the folder's bytes besides the items, as JSON values."""

    def prepare(self, item: Any, complete: bool) -> tuple[Report, list[list[bytes]]]:
        """One item -> its report and the records of each row, the first one empty ("meta").

        Args:
          complete: False leaves to `completion` what an accelerator does faster.

        Raises:
          CaseError: the item is unusable; the others go on.
        """

    def finish(
        self,
        cohort: Cohort,
        reports: list[Report],
        rows: list[dict[str, Any]],
        common: dict[str, Any],
    ) -> Manifest:
        """What the folder says of itself.

        Args:
          rows: of all reports in record order, with "shard" and "position".
          common: fields of `Manifest` that are the same for every kind: shards, settings,
            code_version.
        """

    def summary(self, rows: list[dict[str, Any]]) -> Table:
        """What `osteojax prepare` prints of the finished folder."""
