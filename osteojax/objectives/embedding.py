"""Runs a model over many vertebrae, and computes running statistics of images for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from osteojax.data.cohort import PreparedCohort
    from osteojax.objectives import Devices

NORM_MOMENTUM = 0.9
"""Momentum of the running averages of every normalisation layer."""


def run_over(
    cohort: PreparedCohort,
    rows: np.ndarray,
    view: Callable,
    forward: Callable,
    variables: Any,
    devices: Devices,
    batch_size: int,
    title: str,
) -> dict[str, np.ndarray]:
    """Outputs of `forward` for every row, in order, without padding.

    Args:
      forward: from `Devices.map_forward`.
      title: of the progress bar.

    Returns:
      outputs concatenated along the first axis, [len(rows), ...].
    """
    from tqdm import tqdm

    from osteojax.data.pipeline import evaluation_batches

    # Rounded up, so that a run with batches of 32 can be evaluated on 3 devices.
    batch_size = -(-batch_size // devices.num_devices) * devices.num_devices
    collected: list[dict[str, np.ndarray]] = []
    batches = evaluation_batches(cohort, rows, view, batch_size=batch_size)
    quiet = jax.process_index() != 0
    with tqdm(
        total=len(rows),
        desc=title,
        unit=f" {cohort.kind.ITEMS}",
        leave=False,
        delay=2,
        disable=quiet,
    ) as bar:
        for chosen, batch in batches:
            outputs = forward(variables, devices.put_whole(batch))
            collected.append({key: out[: len(chosen)] for key, out in outputs.items()})
            bar.update(len(chosen))
    return {key: np.concatenate([c[key] for c in collected]) for key in collected[0]}


def image_batch_statistics(
    apply: Callable,
    params: Any,
    batch_stats: Any,
    cohort: PreparedCohort,
    rows: np.ndarray,
    view: Callable,
    devices: Devices,
    batch_size: int,
    max_batches: int = 32,
) -> Any:
    """Running statistics of the image member alone.

    Pre-training normalises by statistics of all five members; fine-tuning and prediction use only
    the image. Statistics of whole batches of images are averaged; parameters do not change.

    Args:
      apply: from `Devices.map_reduce`: (variables, batch) -> updated batch_stats, in
        training mode.
      rows: training vertebrae; an evenly spaced sample of them is read.

    Returns:
      like `batch_stats`.
    """
    from osteojax.data.pipeline import evaluation_batches

    count = min(len(rows), max_batches * batch_size)
    sample = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    # Rows are permuted, so that those of one patient are spread over all batches.
    sample = np.random.default_rng(0).permutation(sample)
    total, batches = None, 0
    for chosen, batch in evaluation_batches(cohort, sample, view, batch_size=batch_size):
        if len(chosen) < batch_size and batches:
            break  # a padded batch would count its last item many times
        updated = apply({"params": params, "batch_stats": batch_stats}, devices.put_whole(batch))
        total = updated if total is None else jax.tree.map(lambda a, b: a + b, total, updated)
        batches += 1

    def fresh(old: Any, summed: Any) -> Any:
        return (summed / batches - NORM_MOMENTUM * old) / (1.0 - NORM_MOMENTUM)

    return jax.tree.map(fresh, batch_stats, total)
