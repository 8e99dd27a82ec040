"""Parts of `osteojax benchmark gpu`: training steps, ours and PyTorch's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launch.benchmarks import feeding, measure
from launch.benchmarks.experiment import Experiment, config_of, stand_in_cohort
from launch.benchmarks.gpu_part import Absent, Sizes
from osteojax.train.timing import device_memory

DTYPE = "bfloat16"
HELD_BATCHES = 4
"""Batches of noise in memory, of the device or of the host."""
STEPS_PER_DISPATCH = (1, 8)

Row = dict[str, Any]


def boxes_96(sizes: Sizes) -> Iterator[Row]:
    return _boxes(sizes, sizes.large)


def boxes_64(sizes: Sizes) -> Iterator[Row]:
    return _boxes(sizes, sizes.small)


def _boxes(sizes: Sizes, edge: int) -> Iterator[Row]:
    """TP-SwAV on whole boxes: the step, then resident in device memory, then fed from the host."""
    one = experiment(sizes, edge, "box")
    yield from _own_steps(sizes, one)
    fed = feeding.from_host_memory(one, HELD_BATCHES * sizes.batch)
    yield _timed(sizes, one, "host memory", fed)


def body(sizes: Sizes) -> Iterator[Row]:
    """TP-SwAV on crops inside the body, cut from boxes of 96^3: the shipped default."""
    return _own_steps(sizes, experiment(sizes, sizes.large, "body"))


def pytorch_96(sizes: Sizes) -> Iterator[Row]:
    return _pytorch(sizes, sizes.large)


def pytorch_64(sizes: Sizes) -> Iterator[Row]:
    return _pytorch(sizes, sizes.small)


def disk(sizes: Sizes) -> Iterator[Row]:
    """The step of `boxes_96` fed from a folder that is simulated and prepared here."""
    # Imported here, because some machines lack the packages that it needs.
    from launch.benchmarks.stand_in_folder import write_stand_in_folder
    from osteojax.data.cohort import PreparedCohort

    edge = 32 if sizes.smoke else sizes.large  # prepared folders have 32, 64 or 96
    with tempfile.TemporaryDirectory(prefix="osteojax-") as folder:
        written = write_stand_in_folder(Path(folder), edge, HELD_BATCHES * sizes.batch)
        one = Experiment(config(sizes, "box"), PreparedCohort(written), 1)
        yield _timed(sizes, one, "disk", feeding.from_folder(one, resident=False))


def config(sizes: Sizes, region: str) -> Any:
    """The shipped pre-training config with the step's size, as its figures were compiled."""
    own = config_of(
        SimpleNamespace(
            objective="swav", textures="offline", region=region, batch=sizes.batch,
            width=sizes.width, dtype=DTYPE, engine="shard_map",
        )
    )  # fmt: skip
    if region == "box":
        own.objective.queue_start_steps = 0
    if sizes.stage_sizes is not None:
        own.model.stage_sizes = sizes.stage_sizes
    if sizes.queue_size is not None:
        own.objective.queue_size = sizes.queue_size
    return own


def experiment(sizes: Sizes, edge: int, region: str) -> Experiment:
    """The step on one device, with noise for vertebrae."""
    return Experiment(config(sizes, region), stand_in_cohort(edge, HELD_BATCHES * sizes.batch), 1)


def _own_steps(sizes: Sizes, one: Experiment) -> Iterator[Row]:
    """The step on one batch that stays on the device; what it must do; then from device memory."""
    batch = one.synthetic_batch()
    yield _timed(sizes, one, "one batch", feeding.same_batch(one, batch))
    cost = one.cost(batch)
    yield _about(one) | {"measurement": "cost", "flops": cost.flops, "least_bytes": cost.bytes}
    for steps in STEPS_PER_DISPATCH:
        held = HELD_BATCHES * sizes.batch
        feed = feeding.from_noise_in_memory(one, steps, held)
        yield _timed(sizes, one, "device memory", feed)


def _about(one: Experiment) -> Row:
    return {
        "image_size": one.cohort.about.size,
        "region": one.config.data.views.region,
        "batch_size": one.config.batch_size,
        "dtype": one.config.model.dtype,
    }


def _timed(sizes: Sizes, one: Experiment, data: str, feed: feeding.Feed) -> Row:
    timing = measure.seconds_per_call(feed.call, sizes.repeats, sizes.window_seconds)
    return _about(one) | step_row("osteojax", data, timing, feed.steps_per_call) | {
        "data_wait_seconds": feed.wait_seconds(),
        "resident_bytes": feed.resident_bytes,
        **device_memory(),
    }  # fmt: skip


def step_row(engine: str, data: str, timing: dict[str, float], steps: int = 1) -> Row:
    """timing: of a call of `steps` steps."""
    return {
        "measurement": "step",
        "engine": engine,
        "data": data,
        "steps_per_dispatch": steps,
        "seconds": timing["median"] / steps,
        "seconds_min": timing["min"] / steps,
        "seconds_max": timing["max"] / steps,
        "first_call_seconds": timing["first"],
    }


def _pytorch(sizes: Sizes, edge: int) -> Iterator[Row]:
    """The same step in PyTorch; its process has no JAX on the GPU."""
    import torch

    from launch.benchmarks.peer_pytorch import peak_bytes, swav_steps

    if not torch.cuda.is_available() and not sizes.smoke:
        raise Absent(f"PyTorch {torch.__version__} finds no GPU")
    one = experiment(sizes, edge, "box")
    platform = "gpu" if torch.cuda.is_available() else "cpu"
    affine = one.cohort.about.map_affine()
    for form, call in swav_steps(one.config, one.synthetic_batch(), affine, platform):
        timing = measure.seconds_per_call(call, sizes.repeats, sizes.window_seconds)
        yield _about(one) | step_row(f"PyTorch, {form}", "one batch", timing) | {
            "peak_bytes": peak_bytes()
        }  # fmt: skip
