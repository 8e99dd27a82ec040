"""Input of training without training steps: samples/s from disk, page cache and device memory.

    osteojax benchmark input                                    # a simulated folder, minutes
    osteojax benchmark input --folder pool --batch 32 --json input.json

For each objective it reads the stream that training reads and puts batches on the devices. Cold:
the pages of the shards are dropped before each epoch (POSIX_FADV_DONTNEED; the row says which share
of them was still cached). Cached: epochs after the first. Resident: the volumes are in device
memory and a batch is gathered from draws. A sample is a vertebra: two members of its pool for swav,
its image for online textures and for multitask. Without --folder a simulated folder is written
first; TMPDIR chooses the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from launch.benchmarks import measure
from launch.benchmarks.experiment import Experiment, check_numbers, config_of
from launch.benchmarks.stand_in_folder import write_stand_in_folder
from launch.benchmarks.storage_shards import drop_from_cache, share_in_cache
from launch.benchmarks.train import PAPER_EPOCHS, PAPER_VERTEBRAE
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import training_batches
from osteojax.data.resident import Layout
from osteojax.errors import UserError
from osteojax.train.feed import Feed
from osteojax.types import AXIS

STREAMS = (("swav", "offline"), ("swav", "online"), ("multitask", "offline"))
"""(objective, textures) of each stream."""
SIZE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="DIR", help="prepared folder; default: a simulated one")
    parser.add_argument("--size", type=int, help=f"edge of simulated volumes (default: {SIZE})")
    parser.add_argument("--vertebrae", type=int, help="simulated (default: 4 batches)")
    parser.add_argument("--batch", type=int, default=32, help="global (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed epochs (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="writes environment and rows")


def run(args: argparse.Namespace) -> int:
    check_numbers(args, "size", "vertebrae", "batch", "repeats")
    if args.folder and (args.size or args.vertebrae):
        raise UserError("--size and --vertebrae are for simulated folders; leave out --folder.")
    with contextlib.ExitStack() as stack:
        folder = args.folder
        if folder is None:
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="osteojax-")))
            vertebrae = args.vertebrae or 4 * args.batch
            folder = write_stand_in_folder(room, args.size or SIZE, vertebrae)
        rows = measure_input(PreparedCohort(folder), args.batch, args.repeats)
    for row in rows:
        row["data_from"] = "prepared folder" if args.folder else "simulated"
    if args.json:
        measure.write_results(args.json, measure.environment("grain", "array-record"), rows)
        print(f"written to {args.json}")
    return 0


def measure_input(cohort: PreparedCohort, batch_size: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each stream that the folder can serve and each source; each is printed at once."""
    rows = []
    refused: UserError | None = None
    for objective, textures in STREAMS:
        try:
            experiment = _experiment(cohort, objective, textures, batch_size)
        except UserError as error:  # e.g. offline textures of a folder with images only
            print(f"{objective}, {textures}: not measured: {error}")
            refused = error
            continue
        for source in ("cold", "cached", "resident"):
            row = _row(experiment, source, repeats)
            if row is None:
                print(f"{objective}, {textures}, cold: this system cannot drop cached pages")
                continue
            rows.append({"objective": objective, "textures": textures, **row})
            print(_line(rows[-1]), flush=True)
    if refused and not rows:
        raise refused
    return rows


def _experiment(
    cohort: PreparedCohort, objective: str, textures: str, batch_size: int
) -> Experiment:
    args = argparse.Namespace(objective=objective, textures=textures, batch=batch_size)
    vars(args).update(engine="shard_map", width=64, dtype="float32")  # no step is taken
    experiment = Experiment(config_of(args), cohort)
    count = len(experiment.objective.training_rows())
    if count < batch_size:
        raise UserError(
            f"{cohort.directory}: {count} vertebrae for {objective}, fewer than a batch of "
            f"{batch_size}. Give a smaller --batch."
        )
    return experiment


def _row(experiment: Experiment, source: str, repeats: int) -> dict[str, Any] | None:
    cohort, view = experiment.cohort, experiment.objective.view
    shards = [cohort.directory / "shards" / shard["name"] for shard in cohort.manifest.shards]
    batch_size, about = experiment.config.batch_size, cohort.about
    batches = len(experiment.objective.training_rows()) // batch_size
    held: list[float] = []

    def forget() -> None:
        if source == "cold":
            for shard in shards:
                drop_from_cache(shard)
            shares = [share for shard in shards if (share := share_in_cache(shard)) is not None]
            held.extend(shares)

    if source == "cold" and not drop_from_cache(shards[0]):
        return None
    epoch = (_resident if source == "resident" else _from_disk)(experiment, batches)
    seconds = _timed(epoch, repeats, forget)
    rates = [batches * batch_size / taken for taken in seconds]
    rate = statistics.median(rates)
    shown = view.draw(cohort, int(experiment.objective.training_rows()[0]), np.random.default_rng())
    volumes = 1 if view.key == "image" else len(shown["map_ids"])
    return {
        "data": source,
        "image_size": about.size,
        "image_shape": list(about.shape),
        "batch_size": batch_size,
        "devices": experiment.devices.num_devices,
        "samples_per_second": rate,
        "samples_per_second_min": min(rates),
        "samples_per_second_max": max(rates),
        "samples_an_epoch": batches * batch_size,
        "code_bytes_per_sample": volumes * math.prod(about.shape),
        "disk_bytes_per_vertebra": sum(s.stat().st_size for s in shards) / len(cohort),
        "share_in_cache_when_cold": statistics.mean(held) if held else None,
        "paper_epochs_hours": PAPER_VERTEBRAE * PAPER_EPOCHS / rate / 3600,
    }


def _from_disk(experiment: Experiment, batches: int) -> Callable[[], None]:
    """An epoch from the shards, each time with a new stream, because a used one has read ahead."""
    devices, cohort = experiment.devices, experiment.cohort
    rows, view = experiment.objective.training_rows(), experiment.objective.view
    seeds = itertools.count()

    def epoch() -> None:
        stream = training_batches(
            cohort, rows, view, batch_size=experiment.config.batch_size, seed=next(seeds)
        )
        for batch in itertools.islice(stream, batches):
            jax.block_until_ready(devices.put(batch))

    return epoch


def _resident(experiment: Experiment, batches: int) -> Callable[[], None]:
    """An epoch of draws, and of batches gathered from them in device memory."""
    devices, cohort = experiment.devices, experiment.cohort
    rows, view = experiment.objective.training_rows(), experiment.objective.view
    layout = Layout.of(rows, view, cohort.manifest, devices.num_devices)
    feed = Feed(cohort, view, devices, layout)
    feed.start(rows, experiment.config.batch_size, seed=0, first_step=0)

    def gathered(data: jax.Array, draws_K: Any) -> Any:
        return feed.gather(data, jax.tree.map(lambda draw: draw[0], draws_K))

    each = partial(PartitionSpec, AXIS)
    program = jax.jit(
        jax.shard_map(
            gathered,
            mesh=devices.mesh,
            in_specs=(each(), PartitionSpec(None, AXIS)),
            out_specs=each(),
        )
    )

    def epoch() -> None:
        for _ in range(batches):
            draws, _ = feed.next(1)
            jax.block_until_ready(program(feed.data, draws))

    return epoch


def _timed(epoch: Callable[[], None], repeats: int, prepare: Callable[[], None]) -> list[float]:
    """Seconds of `repeats` epochs after an uncounted one; `prepare()` runs before each."""
    seconds = []
    for _ in range(1 + repeats):
        prepare()
        start = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _line(row: dict[str, Any]) -> str:
    held = row["share_in_cache_when_cold"]
    return (
        f"{row['objective']:9s} {row['textures']:7s} {row['data']:8s} "
        f"{row['samples_per_second']:.4g} samples/s "
        f"({row['samples_per_second_min']:.4g}-{row['samples_per_second_max']:.4g}), "
        f"{row['code_bytes_per_sample'] / 1e6:.3g} MB of codes a sample; 300 epochs of 30,256: "
        f"{row['paper_epochs_hours']:.3g} hours"
        + ("" if held is None else f"; {held:.0%} of pages still cached")
    )
