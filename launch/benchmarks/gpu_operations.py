"""Parts of `osteojax benchmark gpu`: texture maps, Sinkhorn, and kernels of ours against XLA's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks import measure
from launch.benchmarks.experiment import random_codes, stand_in_cohort
from launch.benchmarks.gpu_part import Absent, Sizes
from launch.compiled.textures import FEATURES_OF, texture_program
from osteojax.data.online import online_texture
from osteojax.data.pair_views import pair_choices
from osteojax.ops.sinkhorn import sinkhorn

RADIUS = 3
TEXTURES = {
    "box": "four maps of whole boxes",
    "masked": "four maps in an ellipsoid",
    "all": "all 16 features of whole boxes",
}
DISTINCT_BOXES = 4
"""Boxes of a batch that differ; making smooth noise takes the host a second for each."""
ASSIGNED = ((1056, 128), (8192, 3000))
"""Samples x prototypes: a view of the shipped step beside its queue, and a large one."""

Row = dict[str, Any]


def textures(sizes: Sizes) -> Iterator[Row]:
    """The paper's four maps, all 16 features, and the members of a batch of online textures."""
    from launch.benchmarks.texture import smooth_levels

    edge = sizes.large
    distinct = smooth_levels((min(DISTINCT_BOXES, sizes.batch), edge, edge, edge))
    levels = jnp.asarray(np.resize(distinct, (sizes.batch, edge, edge, edge)))
    axes = np.ogrid[tuple(slice(-1, 1, 1j * edge) for _ in range(3))]
    ball = jnp.asarray(np.broadcast_to(sum(axis**2 for axis in axes) <= 1, levels.shape))

    yield _texture_row(sizes, "box", levels)
    yield _online_row(sizes)
    yield _texture_row(sizes, "masked", levels, ball)
    yield _texture_row(sizes, "all", levels)


def _texture_row(sizes: Sizes, maps: str, *volumes: jax.Array) -> Row:
    """Maps of a batch as the one program that `osteojax compile --textures` compiles.

    volumes: uint8[B, D, H, W] levels, and bool[B, D, H, W] for "masked". For each voxel they are
    read at least once and a float32 is written for each map.
    """
    with jax.enable_x64(maps == "all"):  # central moments are made of 64-bit sums
        run = functools.partial(jax.jit(texture_program(maps, RADIUS)), *volumes)
        timing = measure.seconds_per_call(run, sizes.repeats, sizes.window_seconds)
    return _row("textures", TEXTURES[maps], timing) | {
        "textures": maps,
        "image_size": sizes.large,
        "batch_size": sizes.batch,
        "kernel_radius": RADIUS,
        "voxels": volumes[0].size,
        "voxel_bytes": len(volumes) + 4 * len(FEATURES_OF[maps]),
    }


def _online_row(sizes: Sizes) -> Row:
    """The members that a step of online textures makes, both views of a batch, as codes."""
    edge = sizes.large
    texture = online_texture("online", stand_in_cohort(edge, kernel_radius=RADIUS))
    assert texture is not None
    images = jnp.asarray(random_codes(sizes.batch, edge, edge, edge))
    pairs = np.resize(pair_choices("uniform"), (sizes.batch, 2))
    ids, members = jnp.asarray(pairs), jax.jit(texture.members)
    timing = measure.seconds_per_call(
        lambda: members(images, ids), sizes.repeats, sizes.window_seconds
    )
    made = int((pairs > 0).sum()) * images[0].size  # the image itself is not computed
    about = {"textures": "chosen", "voxels": made, "voxel_bytes": 2}  # codes read and written
    return _row("textures", "maps that a step chooses", timing) | about


def assignments(sizes: Sizes) -> Iterator[Row]:
    """Sinkhorn, of the sizes `ASSIGNED`."""
    for samples, prototypes in ASSIGNED[:1] if sizes.smoke else ASSIGNED:
        values = np.random.default_rng(0).uniform(-1, 1, (samples, prototypes))
        scores = jnp.asarray(values, jnp.float32)
        run = functools.partial(jax.jit(sinkhorn), scores)
        timing = measure.seconds_per_call(run, sizes.repeats, sizes.window_seconds)
        least = 2 * scores.size * scores.dtype.itemsize
        yield _row("sinkhorn", f"{samples} x {prototypes}", timing) | {"least_bytes": least}


def pallas(sizes: Sizes) -> Iterator[Row]:
    """Kernels of ours in Pallas beside XLA's programs for the same."""
    raise Absent("OsteoJAX has no kernel in Pallas: XLA makes all of them")
    yield {}


def _row(measurement: str, name: str, timing: dict[str, float]) -> Row:
    return {
        "measurement": measurement,
        "name": name,
        "seconds": timing["median"],
        "seconds_min": timing["min"],
        "seconds_max": timing["max"],
        "first_call_seconds": timing["first"],
    }
