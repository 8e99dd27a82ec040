"""Interface of a kind of data for `osteojax prepare`; all other code of `prepare` is shared.

A kind is a module, `data_prep/<kind>/recipe.py` or `<dotted name>.recipe` elsewhere, with

    add_arguments(parser)      its own options of `osteojax prepare`
    recipe(args) -> Recipe     its settings
    read(args) -> Cohort       the items of the user's tables

Its docstring is the help of `osteojax prepare --kind <kind>`: the first line names input and
output, the rest the files that the user brings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from osteojax.data.schema import Field, Manifest
from osteojax.errors import CaseError

Doubt = tuple[str, str, str]
"""(case, reason, remedy) of what is kept although something in it is suspicious."""
KEEP, FAIL = DOUBTS = ("keep", "fail")
"""What becomes of an item or a row that is suspicious: it is kept and listed in doubts.csv, or left
out and listed in failures.csv."""


class Item(Protocol):
    """One thing to prepare: a CT with its mask, a picture. It is sent to a worker."""

    @property
    def index(self) -> int:
        """Position in the cohort, which determines the shard."""

    @property
    def case(self) -> str:
        """The user's id of it, for messages and `failures.csv`."""


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Content of the user's tables.

    Attributes:
      items: of usable rows, in the table's order; the n-th has index n.
      failures: errors of bad rows.
      excluded: (case, patient_id, reason) of rows that the tables exclude.
      notes: sentences that are shown to the user.
      digest: SHA-256 of the tables' bytes.
      doubts: of rows that are used. With `--doubts fail`, a kind leaves such rows out and lists
        them in `failures`.
      sources: for each item, a text that is the same exactly as long as its records are: a digest
        of the files it names. Then a folder may be resumed with corrected tables, and the recipe
        needs `relabelled`; without sources, with the same tables only.
    """

    items: Sequence[Any]
    failures: list[CaseError]
    excluded: list[tuple[str, str, str]]
    notes: list[str]
    digest: str
    doubts: list[Doubt] = dataclasses.field(default_factory=list)
    sources: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of one item beside its records; stored as `parts/000012.json`.

    Attributes:
      rows: of the folder's table, without shard and position; one for each group of records.
      failures: (case, reason, remedy).
      excluded: (case, patient_id, reason).
      histograms: name -> counts, summed over the item's rows, for the statistics of `finish`.
      complete: whether the records are final; if not, `Completion.complete` adds the rest.
      doubts: of the item or a row of it. With `--doubts fail`, `parts.prepare_item` makes them
        failures and leaves the item out.
    """

    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    excluded: list[tuple[str, str, str]]
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    complete: bool = True
    doubts: list[Doubt] = dataclasses.field(default_factory=list)


class Completion(Protocol):
    """Completes records in batches across items, which is faster on an accelerator."""

    def batch_size(self) -> int:
        """Number of rows that are completed together in this process."""

    def complete(self, batch: list[list[bytes]]) -> list[tuple[list[bytes], dict[str, np.ndarray]]]:
        """Final records and histograms (i64[...]) of each row, from the records of `prepare`.

        A row's result must not depend on the rest of its batch.
        """


class Recipe(Protocol):
    """A kind of data with its settings. It is sent to workers, so it holds no data.

    Attributes:
      kind: its name, as in `--kind` and in the manifest.
      item_column: the table's column with an item's `case`.
      shard_prefix: beginning of the names of shards.
    """

    kind: str
    item_column: str
    shard_prefix: str

    @property
    def fields(self) -> tuple[Field, ...]:
        """Fields of a row's final records, in order; the first is `META`."""

    @property
    def completion(self) -> Completion | None:
        """Completion of records, or None if `prepare` always makes final ones."""

    def settings(self) -> dict[str, Any]:
        """Everything but the items that determines the folder's bytes, as JSON values."""

    def prepare(self, item: Any, complete: bool) -> tuple[Report, list[list[bytes]]]:
        """Makes an item's report and the records of each row, whose first ("meta") is empty.

        Args:
          complete: whether to make final records; if not, `completion` adds the rest later.

        Raises:
          CaseError: the item is unusable.
        """

    def relabelled(self, item: Any, report: Report) -> Report:
        """An item's finished report with the values that come from the tables, which may have been
        corrected. Called only for cohorts that have `sources`."""

    def finish(
        self,
        cohort: Cohort,
        reports: list[Report],
        rows: list[dict[str, Any]],
        common: dict[str, Any],
    ) -> Manifest:
        """The manifest of the finished folder.

        Args:
          rows: of all reports in record order, with "shard" and "position".
          common: fields of `Manifest` that are the same for every kind: shards, settings,
            code_version.
        """

    def summary(self, rows: list[dict[str, Any]]) -> Table:
        """The table that `osteojax prepare` prints at the end."""
