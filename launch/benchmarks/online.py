"""Offline or online textures: the cost of computing maps in the training step, and its savings.

Times one pre-training step of configs/tp_swav_resnet34.py from stored codes of two members of the
pool, and from the stored image only (data.textures=online), alternately, on a batch on the device.
It also times the maps alone, in every lowering. With --data the images, their size, the texture
settings and the bytes on disk are those of a prepared folder; without, images are smooth noise and
bytes are uncompressed.

Textures are computed before the rest of a step, so their share is the time of that part alone
divided by the time of the online step. The difference of the two steps, which has the noise of
both, is printed too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from configs.tp_swav_resnet34 import get_config
from launch.benchmarks import measure, peaks
from launch.benchmarks.experiment import Experiment, stand_in_cohort
from osteojax.data import vertebrae
from osteojax.data.cohort import PreparedCohort
from osteojax.data.online import MAPS, OnlineTexture, online_texture
from osteojax.data.pair_views import pair_choices
from osteojax.data.schema import Manifest
from osteojax.data.vertebrae import IMAGE_ONLY, POOL
from osteojax.errors import UserError
from osteojax.ops.texture.chosen_maps import chosen_maps
from osteojax.ops.texture.grey_levels import levels_from_codes

MOST_OF_A_STEP = 0.05
"""Largest share of a step that textures may cost; above it, store the maps in the folder."""
DISK_SAMPLE = 32
"""Number of vertebrae whose records are written to measure bytes on disk."""
LOWERINGS = ("batched", "one_by_one", "all_maps_then_select")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=96, help="edge in voxels (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="vertebrae a step (%(default)s)")
    parser.add_argument("--radius", type=int, default=3, help="kernel radius (%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of the network (%(default)s)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="(%(default)s)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="prepared folder: its images, size and settings"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="writes environment and rows")


def run(args: argparse.Namespace) -> int:
    for name in ("size", "batch", "radius", "width", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: numbers from 1 are needed.")
    cohort = _cohort(args)
    texture = online_texture("online", cohort)
    assert texture is not None
    images = _images(cohort, args.batch)
    map_ids = np.random.default_rng(0).permuted(
        np.resize(pair_choices("uniform"), (args.batch, 2)), axis=1
    )
    settings = {
        "image_size": cohort.about.size,
        "image_shape": list(cohort.about.shape),
        "batch_size": args.batch,
        "kernel_radius": texture.kernel_radius,
        "width": args.width,
        "dtype": args.dtype,
    }
    rows = _map_rows(texture, images, map_ids, args.repeats)
    rows += _step_rows(cohort, texture, images, map_ids, args)
    rows.append(_saved_row(cohort, texture, args.batch))
    rows.append(_verdict(rows))
    rows = [settings | row for row in rows]
    for row in rows:
        print(_line(row))
    if args.json:
        measure.write_results(args.json, measure.environment("flax"), rows)
        print(f"written to {args.json}")
    return 0


def _cohort(args: argparse.Namespace) -> Any:
    if args.data:
        return PreparedCohort(args.data)
    return stand_in_cohort(args.size, kernel_radius=args.radius)


def _images(cohort: Any, count: int) -> np.ndarray:
    """uint8[count, D, H, W] image codes: of the folder's first vertebrae, or of smooth noise."""
    if isinstance(cohort, PreparedCohort):
        rows = np.resize(np.arange(len(cohort)), count)
        return np.stack([cohort.members(int(row), ["image"])[0] for row in rows])
    noise = np.random.default_rng(0).normal(size=(count, *cohort.about.shape))
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.minimum(240 * smooth, 239).astype(np.uint8)


# ---------------------------------------------------------------- the maps alone


def _map_rows(
    texture: OnlineTexture, images: np.ndarray, map_ids: np.ndarray, repeats: int
) -> list[dict[str, Any]]:
    """Every way of making the chosen maps, and the members with quantisation."""
    stacked = np.repeat(images, map_ids.shape[1], axis=0)
    levels = levels_from_codes(stacked, texture.codes_per_level)
    ids = jnp.asarray(map_ids.reshape(-1) - 1)
    made = int((map_ids > 0).sum()) * images[0].size  # the image itself is not computed
    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(_maps(texture, name), levels, ids) for name in LOWERINGS
    }
    members = jax.jit(texture.members)
    runs["members"] = functools.partial(members, jnp.asarray(images), jnp.asarray(map_ids))
    rows = []
    for name, once in runs.items():
        timing = measure.seconds(once, repeats)
        rows.append(
            {"measurement": "maps", "lowering": name, "seconds": timing["median"]}
            | {"seconds_min": timing["min"], "seconds_max": timing["max"]}
            | {"map_voxels_per_second": made / timing["median"]}
        )
    return rows


def _maps(texture: OnlineTexture, lowering: str) -> Callable[..., jax.Array]:
    settings: dict[str, Any] = {
        "kernel_radius": texture.kernel_radius,
        "num_levels": texture.num_levels,
    }
    if lowering != "all_maps_then_select":
        return jax.jit(lambda v, i: chosen_maps(v, i, MAPS, lowering=lowering, **settings))

    def all_maps(levels: jax.Array, ids: jax.Array) -> jax.Array:
        result = levels.astype(jnp.float32)
        for index, name in enumerate(MAPS):
            one = chosen_maps(levels, 0 * ids, (name,), lowering="batched", **settings)
            result = jnp.where((ids == index)[:, None, None, None], one, result)
        return result

    return jax.jit(all_maps)


# ---------------------------------------------------------------- the training step


def _step_rows(
    cohort: Any,
    texture: OnlineTexture,
    images: np.ndarray,
    map_ids: np.ndarray,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Seconds per step of both, measured alternately, so that a slow minute affects both."""
    shared = {"index": np.arange(len(images), dtype=np.int32), "map_ids": map_ids}
    members = np.asarray(jax.jit(texture.members)(images, map_ids))
    batches = {"offline": {"codes": members}, "online": {"image": images}}
    whole = SimpleNamespace(  # offline, the objective needs a folder that stores the maps
        manifest=_with_all_maps(cohort.manifest), directory=cohort.directory
    )
    steps: dict[str, Callable[[], Any]] = {}
    compile_seconds, times = {}, {name: [] for name in batches}  # type: dict, dict
    experiments = {name: Experiment(_config(args, name), whole) for name in batches}
    for name, batch in batches.items():
        start = time.perf_counter()
        steps[name] = experiments[name].same_batch_again(batch | shared)
        jax.block_until_ready(steps[name]())
        compile_seconds[name] = time.perf_counter() - start
    for _ in range(args.repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            times[name].append(time.perf_counter() - start)
    # Textures are not counted as model FLOPs, so both steps have the same number.
    flops = experiments["offline"].cost(batches["offline"] | shared).flops
    mesh = experiments["offline"].devices.mesh
    peak = peaks.matrix_flops_per_second(mesh, args.dtype, args.repeats)
    return [
        {
            "measurement": "step",
            "textures": name,
            "flops_per_step": flops,
            "matmul_flops_per_second": peak,
            "model_flops_utilization": flops / statistics.median(taken) / peak,
            "step_seconds": statistics.median(taken),
            "step_seconds_min": min(taken),
            "step_seconds_max": max(taken),
            "compile_seconds": compile_seconds[name],
        }
        for name, taken in times.items()
    ]


def _with_all_maps(manifest: Manifest) -> Manifest:
    """The same folder with a record for every map."""
    about = vertebrae.about(manifest)
    planes = len(vertebrae.PLANES) - (not about.has_body)
    fields = vertebrae.fields(about.shape, POOL, planes)
    return dataclasses.replace(manifest, fields=fields)


def _config(args: argparse.Namespace, textures: str) -> ConfigDict:
    config = get_config()
    config.batch_size = args.batch
    config.model.width, config.model.dtype = args.width, args.dtype
    config.data.textures = textures
    return config


# ---------------------------------------------------------------- what is saved


def _saved_row(cohort: Any, texture: OnlineTexture, batch: int) -> dict[str, Any]:
    """Bytes on disk per vertebra, and bytes of codes that a step reads and moves."""
    voxels = math.prod(cohort.about.shape)
    planes = math.prod(cohort.manifest.field("mask").shape)
    plane_bytes = -(-planes // 8)
    disk = {name: len(stored) * voxels + plane_bytes for name, stored in _STORED.items()}
    if isinstance(cohort, PreparedCohort):
        disk = _disk_bytes(cohort, texture)
    return {
        "measurement": "bytes",
        "disk_compressed": isinstance(cohort, PreparedCohort),
        "disk_bytes_per_vertebra_offline": disk["offline"],
        "disk_bytes_per_vertebra_online": disk["online"],
        "input_bytes_per_step_offline": 2 * batch * voxels,
        "input_bytes_per_step_online": batch * voxels,
    }


_STORED = {"offline": POOL, "online": IMAGE_ONLY}


def _disk_bytes(cohort: PreparedCohort, texture: OnlineTexture) -> dict[str, float]:
    """Bytes of a shard per vertebra, for both kinds of folder, from a sample of this one."""
    from data_prep.records import write_records

    sample = np.unique(np.linspace(0, len(cohort) - 1, DISK_SAMPLE).astype(int))
    make = jax.jit(texture.members)
    vertebrae = []
    for row in map(int, sample):
        image = cohort.members(row, ["image"])
        pool = np.asarray(make(image, np.arange(len(POOL), dtype=np.int32)[None]))[0]
        meta, mask = cohort.records(row, ["meta", "mask"])
        vertebrae.append((meta, dict(zip(POOL, pool, strict=True)), mask))
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, stored in _STORED.items():
            path = Path(folder) / f"{name}.array_record"
            records = [[m, *(pool[s].tobytes() for s in stored), k] for m, pool, k in vertebrae]
            write_records(path, records)
            sizes[name] = path.stat().st_size / len(vertebrae)
    return sizes


# ---------------------------------------------------------------- printed lines


def _verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    steps = {row["textures"]: row["step_seconds"] for row in rows if row["measurement"] == "step"}
    alone = next(row["seconds"] for row in rows if row.get("lowering") == "members")
    share = alone / steps["online"]
    return {
        "measurement": "verdict",
        "texture_share_of_step": share,
        "step_difference": (steps["online"] - steps["offline"]) / steps["online"],
        "use": "online" if share <= MOST_OF_A_STEP else "offline",
    }


def _line(row: dict[str, Any]) -> str:
    if row["measurement"] == "maps":
        return (
            f"maps, {row['lowering']}: {1e3 * row['seconds']:.1f} ms "
            f"({1e3 * row['seconds_min']:.1f}-{1e3 * row['seconds_max']:.1f}), "
            f"{row['map_voxels_per_second'] / 1e9:.3g} Gvoxel/s of chosen maps"
        )
    if row["measurement"] == "step":
        return (
            f"step, {row['textures']}: {row['image_size']}^3 x {row['batch_size']}, width "
            f"{row['width']}, {row['dtype']}: {row['step_seconds']:.4g} s "
            f"({row['step_seconds_min']:.4g}-{row['step_seconds_max']:.4g}), ready in "
            f"{row['compile_seconds']:.0f} s"
        )
    if row["measurement"] == "bytes":
        kind = "on disk" if row["disk_compressed"] else "raw"
        return (
            f"bytes {kind} a vertebra: {row['disk_bytes_per_vertebra_offline'] / 1e6:.2f} MB with "
            f"all maps, {row['disk_bytes_per_vertebra_online'] / 1e6:.2f} MB with the image alone; "
            f"input a step: {row['input_bytes_per_step_offline'] / 1e6:.1f} MB and "
            f"{row['input_bytes_per_step_online'] / 1e6:.1f} MB"
        )
    return (
        f"textures are {row['texture_share_of_step']:.1%} of the online step (the steps differ by "
        f"{row['step_difference']:.1%}): use data.textures={row['use']} "
        f"(limit {MOST_OF_A_STEP:.0%})"
    )
