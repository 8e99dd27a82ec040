"""Grain input: global shuffle, exact per-process sharding, resumable at any step.

Which example comes next depends only on the seed and the position in the endless stream; process p
of n takes positions p, p + n, ... So a batch holds the same examples for any number of processes,
epochs follow each other without a short batch, and to resume a run only its number of steps is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from osteojax.errors import UserError

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort
    from osteojax.data.views import Example

    Make = Callable[[PreparedCohort, int, np.random.Generator], Example]

READ_THREADS = 16
PREFETCH_EXAMPLES = 128


class _Rows:
    """Grain source: row numbers of the cohort; volumes are read later, in its threads."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> int:
        return int(self._rows[position])


def training_batches(
    cohort: PreparedCohort,
    rows: np.ndarray,
    view: Make,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
) -> Iterator[Example]:
    """Endless shuffled batches of this process's share.

    Args:
      cohort: where volumes are read from.
      rows: which items take part.
      view: `(cohort, row, rng) -> example`: a view, which reads volumes, or its `draw`, which does
        not (views.py). `rng` is Grain's generator for the position of the stream.
      batch_size: global; must divide by the number of processes.
      seed: of the shuffle and of the views' choices.
      first_step: number of steps already done; the stream continues exactly from there.

    Yields:
      examples stacked along a new first axis of batch_size / processes.
    """
    import grain  # imported here because machines that read no shards do without it

    processes = jax.process_count()
    if batch_size % processes:
        raise UserError(f"batch_size {batch_size} does not divide by {processes} processes.")
    if len(rows) == 0:
        raise UserError(
            f"{cohort.directory}: none of its {cohort.kind.ITEMS} is left to train on after "
            f"the config's selection. The manifest counts {cohort.manifest.counts}."
        )
    local = batch_size // processes
    stream = (
        grain.MapDataset.source(_Rows(rows))
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(lambda row, rng: view(cohort, row, rng))[jax.process_index() :: processes]
    )
    reading = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=PREFETCH_EXAMPLES)
    iterator = iter(stream.to_iter_dataset(reading).batch(local, drop_remainder=True))
    iterator.set_state({"next_index": first_step * local})
    return iterator


def evaluation_batches(
    cohort: PreparedCohort, rows: np.ndarray, view: Make, *, batch_size: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, Example]]:
    """Every row once, in order; the last batch is padded by repeating its last example.

    All processes read the same batches and each device takes its share, so that no patient is
    dropped, whatever the number of devices.

    Yields:
      (rows of this batch without padding, examples with leading axis batch_size).
    """
    generators = np.random.default_rng(seed).spawn(len(rows))
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        examples = [
            view(cohort, int(row), rng)
            for row, rng in zip(chosen, generators[start : start + batch_size], strict=True)
        ]
        examples += [examples[-1]] * (batch_size - len(examples))
        yield chosen, {key: np.stack([e[key] for e in examples]) for key in examples[0]}
