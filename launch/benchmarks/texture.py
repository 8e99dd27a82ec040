"""Texture maps: voxels/s of the paper's four maps, compared with PyRadiomics and its successors.

Every rate is for all four maps of a whole box (48 smooth grey levels) or, where the row says so,
of an ellipsoid mask in it; all voxels of the box count. Further rows, on the smallest box: all 16
GLCM features (with and without the mask, beside one run of PyRadiomics), the nine first-order
features, and the four maps from patches 3 voxels apart. Peers run in the same process, on a smaller
box where the full size would take minutes. They are faster there than at full size, so the ratio
favours them. "of CPU" are voxels per second of processor time, for machines that others use too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from data_prep.vertebrae.texture import pyradiomics_maps
from launch.benchmarks import measure, peaks
from osteojax.errors import UserError
from osteojax.ops.texture import glcm
from osteojax.ops.texture.first_order import first_order_maps
from osteojax.ops.texture.pair_features import ALL_FEATURES
from osteojax.ops.texture.patches import patch_maps
from osteojax.ops.texture.windows import Window
from osteojax.train.parallel import DataParallel

NUM_LEVELS = 48
PEER_SIZE = 24
"""Largest edge of the box on which peers are timed."""
PEER_REPEATS = 3
PATCH_STRIDE = 3
ALL_16 = "all 16 GLCM"
FLOOR_BYTES = 1 + 4 * len(glcm.FEATURES)
"""Bytes per voxel that an ideal kernel moves: each read or written once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", type=_numbers, default=(48, 64, 96), help="edges of the boxes (48,64,96)"
    )
    parser.add_argument("--radii", type=_numbers, default=(1, 2, 3), help="kernel radii (1,2,3)")
    parser.add_argument("--batch", type=int, default=1, help="boxes at a time (1)")
    parser.add_argument(
        "--peers",
        type=_peer_names,
        default=tuple(PEERS),
        help=f"out of {','.join(PEERS)}, or none (all)",
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each row (7)")
    parser.add_argument("--json", metavar="FILE", help="write environment and rows here")


def run(args: argparse.Namespace) -> int:
    for what, values in (
        ("--sizes", args.sizes),
        ("--radii", args.radii),
        ("--batch", (args.batch,)),
        ("--repeats", (args.repeats,)),
    ):
        if min(values) < 1:
            raise UserError(f"{what} {','.join(map(str, values))}: numbers from 1 are needed.")
    console = Console()
    rows = []
    bandwidth = peaks.copy_bytes_per_second(DataParallel.create(num_devices=1).mesh, args.repeats)
    peer_size = min(PEER_SIZE, max(args.sizes))
    for radius in args.radii:
        peer_levels = smooth_levels((peer_size,) * 3)
        reference = _reference(peer_levels, radius)
        for name in args.peers:
            rows.append(_peer_row(name, peer_levels, radius, min(args.repeats, PEER_REPEATS)))
            rows[-1]["max_rel_error"] = max_rel_error(rows[-1].pop("maps"), reference)
        error = max_rel_error(_own_maps(peer_levels, None, radius), reference)
        for size in args.sizes:
            for masked in (False, True):
                row = _own_row((args.batch, size, size, size), masked, radius, args.repeats)
                row["max_rel_error"] = None if masked else error
                row["fraction_of_copy"] = row["bytes_per_second"] / bandwidth
                rows.append(row)
        shape = (1, *(min(args.sizes),) * 3)
        rows.extend(_sixteen_rows(shape, peer_levels, radius, args.repeats, args.peers))
        rows.extend(_other_rows(shape, radius, min(args.repeats, PEER_REPEATS)))
    env = measure.environment("pyradiomics", "flash-radiomics")
    env["copy_bytes_per_second"] = bandwidth
    console.print(_table(rows, env))
    for note in dict.fromkeys(f"{r['engine']}: {r['note']}" for r in rows if r["note"]):
        console.print(note, highlight=False)
    if args.json:
        measure.write_results(args.json, env, rows)
        console.print(f"written to {args.json}")
    return 0


def smooth_levels(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 grey levels that reach from 1 to NUM_LEVELS, smooth like a CT."""
    noise = np.random.default_rng(0).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, [0] * (len(shape) - 3) + [1.5] * 3)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.minimum(smooth * NUM_LEVELS, NUM_LEVELS - 1).astype(np.uint8) + np.uint8(1)


def max_rel_error(maps: dict[str, np.ndarray] | None, reference: Any) -> float | None:
    """Largest |map - reference| / max(|reference|, 0.1) over all maps; None without either."""
    if maps is None or reference is None:
        return None
    worst = 0.0
    for name, truth in reference.items():
        error = np.abs(np.asarray(maps[name], np.float64) - truth) / np.maximum(np.abs(truth), 0.1)
        worst = max(worst, float(error.max()))
    return worst


# ---------------------------------------------------------------- engines


def _own_maps(
    levels: Any, mask: Any, radius: int, features: tuple[str, ...] = glcm.FEATURES
) -> dict[str, Any]:
    window = Window(radius)
    return glcm.window_maps(levels, mask, window, num_levels=NUM_LEVELS, features=features)


def _own_row(
    shape: tuple[int, ...],
    masked: bool,
    radius: int,
    repeats: int,
    features: tuple[str, ...] = glcm.FEATURES,
) -> dict[str, Any]:
    levels = jnp.asarray(smooth_levels(shape))
    mask = None
    if masked:
        axes = np.ogrid[tuple(slice(-1, 1, 1j * size) for size in shape[1:])]
        mask = jnp.asarray(np.broadcast_to(sum(axis**2 for axis in axes) <= 1, shape))
    timing = measure.seconds(lambda: _own_maps(levels, mask, radius, features), repeats)
    row = _row("osteojax", shape, radius, timing, mask="ellipsoid" if masked else "box")
    row["bytes_per_second"] = row["voxels_per_second"] * (1 + 4 * len(features) + masked)
    return row


def _sixteen_rows(
    shape: tuple[int, ...],
    peer_levels: np.ndarray,
    radius: int,
    repeats: int,
    peers: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Rows of all 16 features: PyRadiomics once on the small box, ours without and with a mask."""
    rows, reference = [], None
    if "pyradiomics" in peers:
        run = partial(_pyradiomics, features=ALL_FEATURES)
        rows.append(_peer_row("pyradiomics", peer_levels, radius, 1, run))
        reference = rows[-1].pop("maps")
        rows[-1]["max_rel_error"] = max_rel_error(reference, reference)
    error = max_rel_error(_own_maps(peer_levels, None, radius, ALL_FEATURES), reference)
    for masked in (False, True):
        row = _own_row(shape, masked, radius, repeats, ALL_FEATURES)
        rows.append(row | {"max_rel_error": None if masked else error})
    return [row | {"features": ALL_16} for row in rows]


def _other_rows(shape: tuple[int, ...], radius: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of further features that `osteojax.ops` computes of a box."""
    levels = smooth_levels(shape)
    volumes, hu = jnp.asarray(levels), levels.astype(np.int32) * 25
    window = Window(radius)

    def first_order() -> Any:
        return first_order_maps(hu, kernel_radius=radius, levels=volumes)

    def patches() -> Any:
        return [patch_maps(volume, None, window, stride=PATCH_STRIDE) for volume in volumes]

    rows = []
    for maps, run in (
        ("9 first-order", first_order),
        (f"patches, stride {PATCH_STRIDE}", patches),
    ):
        timing = measure.seconds(run, repeats)
        rows.append(
            _row("osteojax", shape, radius, timing, features=maps) | {"max_rel_error": None}
        )
    return rows


def _pyradiomics(
    levels: np.ndarray, radius: int, features: tuple[str, ...] = glcm.FEATURES
) -> dict[str, np.ndarray]:
    logging.getLogger("radiomics").setLevel(logging.ERROR)  # it warns for every batch of windows
    return pyradiomics_maps(levels, np.ones(levels.shape, bool), radius, features=features)


def _flash_radiomics(levels: np.ndarray, radius: int) -> dict[str, np.ndarray]:
    """Maps by FlashRadiomics' extractor on one CPU thread; level 1 is a bin that starts at 0."""
    import SimpleITK as sitk
    from flash_radiomics.featureextractor import RadiomicsFeatureExtractor

    logging.getLogger("flash_radiomics").setLevel(logging.ERROR)
    extractor = RadiomicsFeatureExtractor(
        {
            "setting": {"binWidth": 25.0, "distances": [1], "additionalInfo": False},
            "voxelSetting": {"kernelRadius": radius, "maskedKernel": True, "initValue": 0.0},
            "imageType": {"Original": {}},
            "scalarFeatureClass": None,
            "spatialFeatureClass": {"glcm": list(glcm.FEATURES)},
        },
        backend="cpu",
        num_threads=1,
    )
    image = sitk.GetImageFromArray((levels.astype(np.float32) - 1) * 25)
    mask = sitk.GetImageFromArray(np.ones(levels.shape, np.uint8))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = str(Path(folder) / "maps.h5")  # it always writes a file
        images = extractor.execute(image, mask, spatialMode=True, output_hdf5_path=out)
    return {n: sitk.GetArrayFromImage(images[f"original_glcm_{n}"]) for n in glcm.FEATURES}


PEERS: dict[str, Callable[[np.ndarray, int], dict[str, np.ndarray]]] = {
    "pyradiomics": _pyradiomics,
    "flash-radiomics": _flash_radiomics,
}


def _peer_row(
    name: str,
    levels: np.ndarray,
    radius: int,
    repeats: int,
    run: Callable[[np.ndarray, int], dict[str, np.ndarray]] | None = None,
) -> dict[str, Any]:
    run = run or PEERS[name]
    maps: dict[str, np.ndarray] = {}

    def once() -> None:
        maps.update(run(levels, radius))

    try:
        run(levels[:6, :6, :6], radius)  # imports and first calls
        timing = measure.seconds(once, repeats, warmup=0)
    except (ImportError, UserError) as error:
        row = _row(name, levels.shape, radius, None, note=f"absent: {error}")
        return row | {"maps": None}
    note = f"on {levels.shape[0]}^3, where it is faster than on larger boxes"
    return _row(name, levels.shape, radius, timing, note=note) | {"maps": maps}


def _reference(levels: np.ndarray, radius: int) -> dict[str, np.ndarray] | None:
    """PyRadiomics' maps, the reference for errors; None where it is not installed."""
    try:
        return _pyradiomics(levels, radius)
    except UserError:
        return None


# ---------------------------------------------------------------- rows


def _row(
    engine: str,
    shape: tuple[int, ...],
    radius: int,
    timing: dict[str, float] | None,
    mask: str = "box",
    features: str = "4 of the paper",
    note: str = "",
) -> dict[str, Any]:
    voxels = int(np.prod(shape))
    return {
        "engine": engine,
        "shape": list(shape),
        "kernel_radius": radius,
        "levels": NUM_LEVELS,
        "mask": mask,
        "features": features,
        "voxels_per_second": voxels / timing["median"] if timing else None,
        "voxels_per_processor_second": voxels / timing["processor"] if timing else None,
        "spread": (timing["max"] - timing["min"]) / timing["median"] if timing else None,
        "note": note,
    }


def _table(rows: list[dict[str, Any]], env: dict[str, Any]) -> Table:
    table = Table(
        title=f"Texture maps, {NUM_LEVELS} levels, "
        f"{env['cpu'] if env['platform'] == 'cpu' else env['device']}",
        caption=f"of copy: {FLOOR_BYTES} bytes a voxel, the least that four maps can move, against "
        f"{env['copy_bytes_per_second'] / 1e9:.1f} GB/s copied. x: times PyRadiomics. error: "
        "relative to PyRadiomics.",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("engine", no_wrap=True)
    for head in ("box", "r", "Mvox/s", "of CPU", "spread", "x", "error", "of copy"):
        table.add_column(head, justify="right", no_wrap=True)
    peer = {
        (row["kernel_radius"], row["features"]): row["voxels_per_second"]
        for row in rows
        if row["engine"] == "pyradiomics"
    }
    for row in rows:
        rate, base = row["voxels_per_second"], peer.get((row["kernel_radius"], row["features"]))
        error, share = row["max_rel_error"], row.get("fraction_of_copy")
        batch = f"{row['shape'][0]} x " if len(row["shape"]) == 4 and row["shape"][0] > 1 else ""
        table.add_row(
            _label(row),
            f"{batch}{row['shape'][-1]}^3",
            str(row["kernel_radius"]),
            f"{rate / 1e6:.3g}" if rate else "absent",
            f"{row['voxels_per_processor_second'] / 1e6:.3g}" if rate else "",
            f"{row['spread']:.0%}" if rate else "",
            f"{rate / base:,.0f}" if rate and base else "",
            f"{error:.0e}" if error is not None else "",
            f"{share:.1%}" if share is not None else "",
        )
    return table


def _label(row: dict[str, Any]) -> str:
    masked = "" if row["mask"] == "box" else ", masked"
    if row["features"].startswith("4"):
        return f"{row['engine']}{masked}"
    return f"  {row['features']}{masked}" + (
        "" if row["engine"] == "osteojax" else " (PyRadiomics)"
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _peer_names(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no peer named {', '.join(unknown)}; there are {', '.join(PEERS)}, or none"
        )
    return names
