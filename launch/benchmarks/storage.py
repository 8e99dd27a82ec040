"""Storage of texture pools: bytes, errors, and reads per second.

It answers two questions. How many bits does a map need? Each member of the pool is stored as uint8,
uint16 and float16, and compared with its float32 map. How should records be laid out? A record per
map or per vertebra, compressions and group sizes are compared by bytes, by writing, and by random
reads of two members of a vertebra's pool, cold (after POSIX_FADV_DONTNEED) and from the page cache.
Shards are written into the temporary folder; TMPDIR chooses the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data_prep.records import WRITER_OPTIONS
from data_prep.vertebrae.pool import SIZES
from launch.benchmarks import measure
from launch.benchmarks.storage_boxes import Boxes, prepared_boxes, simulated_boxes
from launch.benchmarks.storage_formats import FORMATS, ErrorSums, encode, format_spec, is_format_of
from launch.benchmarks.storage_shards import (
    Layout,
    drop_from_cache,
    rate,
    read_seconds,
    share_in_cache,
    write_seconds,
    write_shard,
)
from osteojax.data.pipeline import READ_THREADS
from osteojax.errors import UserError

PAPER_VERTEBRAE = 30_256
"""Number of vertebrae of the paper's pre-training set, to which totals are scaled."""

TODAY = Layout()
"""The layout that `osteojax prepare` writes."""

LAYOUTS = (
    *(
        Layout(record, compression)
        for record in ("map", "vertebra")
        for compression in ("uncompressed", "zstd:1", "zstd:3", "zstd:9", "brotli:3")
    ),
    *(Layout(record, group_size=g) for record in ("map", "vertebra") for g in (4, 16)),
    *(Layout("image", compression) for compression in ("uncompressed", "zstd:1", "zstd:9")),
    Layout(stored_as="uint16"),
    Layout(stored_as="float16"),
)
"""The measured layouts: all compressions with a record per map and per vertebra, and variations of
one property of today's layout at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="PREPARED", help="use its vertebrae")
    parser.add_argument(
        "--size", type=int, choices=SIZES, help="edge of simulated boxes (96), without --data"
    )
    parser.add_argument("--vertebrae", type=int, default=48, help="how many (48); 30 MB each")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed runs of each row (5); slow rows get fewer"
    )
    parser.add_argument("--json", metavar="FILE", help="write environment and rows here")


def run(args: argparse.Namespace) -> int:
    if args.data and args.size:
        raise UserError("--size is for simulated boxes; leave it out with --data.")
    for what, value in (("--vertebrae", args.vertebrae), ("--repeats", args.repeats)):
        if value < 1:
            raise UserError(f"{what} {value}: a number from 1 is needed.")
    console = Console()
    if args.data:
        boxes = prepared_boxes(args.data, args.vertebrae)
    else:
        boxes = simulated_boxes(args.size or SIZES[0], args.vertebrae)
    with tempfile.TemporaryDirectory(prefix="osteojax-storage-") as folder:
        rows = measure_storage(boxes, Path(folder), args.repeats)
    env = measure.environment("array-record", "grain") | {
        "vertebrae": len(boxes.boxes),
        "vertebrae_from": boxes.name,
        "shape": list(boxes.shape),
        "texture": dataclasses.asdict(boxes.texture),
        "read_threads": READ_THREADS,
        # Reading and compressing use whole cores; on a busy machine only ratios are valid.
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cold": "fsync and POSIX_FADV_DONTNEED before each run of reads",
    }
    console.print(map_table([row for row in rows if row["kind"] == "map"], boxes))
    console.print(layout_table([row for row in rows if row["kind"] == "layout"], boxes))
    if args.json:
        measure.write_results(args.json, env, rows)
        console.print(f"written to {args.json}")
    return 0


def measure_storage(
    boxes: Boxes, folder: Path, repeats: int, layouts: tuple[Layout, ...] = LAYOUTS
) -> list[dict[str, Any]]:
    """Rows of kind "map" (bytes and error of a map in a format) and "layout" (a whole shard)."""
    rows = []
    total = sum(is_format_of(spec, f) for spec in boxes.specs for f in FORMATS) + len(layouts)
    with tqdm(total=total, unit="row", desc="storage") as bar:
        for stored_as in FORMATS:
            pools, sums = encoded_pools(boxes, stored_as)
            for member, spec in enumerate(boxes.specs):
                if not is_format_of(spec, stored_as):
                    continue
                rows.append(_map_row(folder, spec, stored_as, [pool[member] for pool in pools]))
                known = spec.name != "image" or all(b.hu is not None for b in boxes.boxes)
                rows[-1] |= sums[member].errors() if known else {}
                bar.update()
            for layout in layouts:
                if layout.stored_as == stored_as:
                    rows.append(_layout_row(folder, layout, boxes, pools, repeats))
                    bar.update()
    return rows


def encoded_pools(boxes: Boxes, stored_as: str) -> tuple[list[np.ndarray], list[ErrorSums]]:
    """[len(POOL), D, H, W] of every vertebra in a format, and the error sums of every map."""
    sums = [ErrorSums(spec, stored_as) for spec in boxes.specs]
    pools = []
    for one, truth in boxes.pools():
        stored = [encode(spec, stored_as, truth[spec.name]) for spec in boxes.specs]
        if stored_as == "uint8":
            stored[0] = one.codes  # computed from unclipped HU, as in `prepare`
        for own, spec, codes in zip(sums, boxes.specs, stored, strict=True):
            own.add(truth[spec.name], codes, one.training)
        pools.append(np.stack(stored))
    return pools, sums


def _map_row(folder: Path, spec: Any, stored_as: str, volumes: list[np.ndarray]) -> dict[str, Any]:
    path = folder / "map.array_record"
    write_shard(path, [volume.tobytes() for volume in volumes], WRITER_OPTIONS)
    size = path.stat().st_size
    path.unlink()
    return {
        "kind": "map",
        "map": spec.name,
        "unit": spec.unit,
        "transform": "linear" if stored_as == "float16" else format_spec(spec, stored_as).transform,
        "stored_as": stored_as,
        "options": WRITER_OPTIONS,
        "bytes_per_vertebra": size / len(volumes),
        "raw_bytes_per_vertebra": volumes[0].nbytes,
    }


def _layout_row(
    folder: Path, layout: Layout, boxes: Boxes, pools: list[np.ndarray], repeats: int
) -> dict[str, Any]:
    path, count = folder / "layout.array_record", len(pools)
    records = [
        record
        for pool, one in zip(pools, boxes.boxes, strict=True)
        for record in layout.records(pool, one.planes)
    ]
    raw = sum(map(len, records))
    if shutil.disk_usage(folder).free < 2 * raw:
        raise UserError(
            f"{folder}: {2 * raw / 1e9:.1f} GB are needed here. Set TMPDIR to another disk, or ask "
            "for fewer --vertebrae."
        )
    written = write_seconds(path, records, layout.options, repeats)
    size = path.stat().st_size
    row: dict[str, Any] = {
        "kind": "layout",
        **dataclasses.asdict(layout),
        "bytes_per_vertebra": size / count,
        "raw_bytes_per_vertebra": raw / count,
        "paper_cohort_bytes": size / count * PAPER_VERTEBRAE,
        "write_bytes_per_second": rate(raw, written),
        "share_in_cache_when_cold": None,
    }
    for name, cold in (("cold", True), ("cached", False)):
        row[f"{name}_vertebrae_per_second"] = None
        if cold and not drop_from_cache(path):
            continue
        if cold:
            row["share_in_cache_when_cold"] = share_in_cache(path)
        seconds = read_seconds(path, layout, count, boxes.shape, cold=cold, repeats=repeats)
        row[f"{name}_vertebrae_per_second"] = rate(count, seconds)
    path.unlink()
    return row


# ---------------------------------------------------------------- tables


def map_table(rows: list[dict[str, Any]], boxes: Boxes) -> Table:
    """Bytes and errors of each map in each format."""
    table = Table(
        title=f"Maps of {_source(boxes)}, {WRITER_OPTIONS}",
        caption="MB a vertebra; RMS and largest error against the float32 map: in its unit, and "
        "in SD of the network's z-scored input.",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("map", no_wrap=True)
    table.add_column("stored as", no_wrap=True)
    for head in ("MB", "RMS", "max", "unit", "RMS/SD", "max/SD"):
        table.add_column(head, justify="right", no_wrap=True)
    for spec in boxes.specs:
        for row in (row for row in rows if row["map"] == spec.name):
            keys = ("rms_error", "max_error", "input_rms_error_sd", "input_max_error_sd")
            errors = [f"{row[key]:.1g}" if key in row else "" for key in keys]
            first = row["stored_as"] == FORMATS[0]
            table.add_row(
                row["map"] if first else "",
                row["stored_as"],
                f"{row['bytes_per_vertebra'] / 1e6:.3f}",
                *errors[:2],
                row["unit"] if first else "",
                *errors[2:],
            )
    return table


def layout_table(rows: list[dict[str, Any]], boxes: Boxes) -> Table:
    """Bytes, writing and random reads of each layout."""
    held = [row["share_in_cache_when_cold"] for row in rows]
    known = [share for share in held if share is not None]
    table = Table(
        title=f"Shards of {_source(boxes)}",
        caption=f"MB a vertebra, mask included; GB of {PAPER_VERTEBRAE:,}, scaled from the "
        f"{len(boxes.boxes)} measured. Reads: vertebrae/s, two random members of the "
        f"pool (the image, where it is alone), {READ_THREADS} threads; cold: after "
        "POSIX_FADV_DONTNEED"
        + (f" ({statistics.mean(known):.0%} still cached)" if known else "")
        + "; cached: from the page cache. +-: spread, (max - min) / median. *: written by prepare.",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("record per", no_wrap=True)
    table.add_column("codes", no_wrap=True)
    table.add_column("codec", no_wrap=True)
    for head in ("group", "MB", "GB", "write MB/s", "cold/s", "cached/s"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        today = all(row[key] == value for key, value in dataclasses.asdict(TODAY).items())
        image = row["record"] == "image"
        table.add_row(
            ("image only" if image else row["record"]) + ("*" if today else ""),
            row["stored_as"],
            row["compression"].replace("uncompressed", "none"),
            str(row["group_size"]),
            f"{row['bytes_per_vertebra'] / 1e6:.3f}",
            f"{row['paper_cohort_bytes'] / 1e9:.1f}",
            _rate(row["write_bytes_per_second"], 1e6),
            _rate(row["cold_vertebrae_per_second"]),
            _rate(row["cached_vertebrae_per_second"]),
        )
    return table


def _rate(measured: dict[str, float] | None, unit: float = 1.0) -> str:
    if measured is None:
        return ""
    return f"{measured['median'] / unit:,.0f} +-{measured['spread']:.0%}"


def _source(boxes: Boxes) -> str:
    return f"{len(boxes.boxes)} vertebrae ({boxes.name}), {' x '.join(map(str, boxes.shape))}"
