"""Texture maps compiled for a chip that is not attached: bytes a voxel, and what they bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from launch.compiled.chips import Chip
from launch.compiled.figures import Figures, bytes_moved
from launch.compiled.program import kernels
from osteojax.ops.texture import glcm
from osteojax.ops.texture.pair_features import ALL_FEATURES, FEATURES
from osteojax.ops.texture.windows import Window

NUM_LEVELS = 48
"""Grey levels, as in `osteojax benchmark texture`."""
FEATURES_OF = {"box": FEATURES, "masked": FEATURES, "all": ALL_FEATURES}


def compiled_textures(
    maps: str, size: int, batch: int, radius: int, chip: Chip, device: jax.Device
) -> tuple[Figures, str]:
    """Compiles the texture maps of a batch of boxes, as one program.

    Args:
      maps: a key of `launch.compile.TEXTURES`.
      size: edge of a box in voxels.
      batch: boxes.
      radius: of the window, in voxels.

    Returns:
      figures of the device, and the program's text.
    """
    where = jax.sharding.SingleDeviceSharding(device)
    shape = (batch, size, size, size)
    dtypes = (jnp.uint8, jnp.bool_) if maps == "masked" else (jnp.uint8,)
    volumes = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for dtype in dtypes]
    start = time.perf_counter()
    with jax.enable_x64(maps == "all"):  # central moments are made of 64-bit sums
        compiled: Any = jax.jit(texture_program(maps, radius)).lower(*volumes).compile()
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    found = sorted(kernels(text), key=lambda kernel: -kernel.bytes)
    moved = bytes_moved(compiled, found)
    voxels = batch * size**3
    least = len(dtypes) + 4 * len(FEATURES_OF[maps])
    figures: Figures = {
        "peak_bytes": memory.peak_memory_in_bytes,
        "room_bytes": chip.room_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_moved": moved,
        "bytes_per_voxel": moved / voxels,
        "least_bytes_per_voxel": least,
        "bound_voxels_per_second": chip.bytes_per_second * voxels / moved,
        "estimate_ms": None,
        "kernels": sum(kernel.runs for kernel in found),
        "largest": [
            {"name": kernel.name, "runs": kernel.runs, "bytes": kernel.bytes}
            for kernel in found[:10]
        ],
        "compile_seconds": round(seconds, 1),
    }
    return figures, text


def texture_program(maps: str, radius: int) -> Callable[..., dict[str, jax.Array]]:
    """What is compiled: (levels, mask where `maps` is "masked") -> maps; "all" inside
    `jax.enable_x64(True)`."""
    features = FEATURES_OF[maps]

    def program(levels: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        window = Window(radius)
        return glcm.window_maps(levels, mask, window, num_levels=NUM_LEVELS, features=features)

    return program


def texture_tables(result: dict[str, Any]) -> Iterator[Table | str]:
    """What is printed of compiled texture maps."""
    figures, program = result["figures"], result["program"]
    voxels = program["batch"] * program["size"] ** 3
    head = (
        f"{program['topology']}, {program['textures']}, {program['size']}^3 x {program['batch']}, "
        f"radius {program['radius']}, {NUM_LEVELS} levels"
    )
    table = Table(title=head, show_header=False)
    for name, value in (
        ("maps", str(len(FEATURES_OF[program["textures"]]))),
        ("bytes moved", f"{figures['bytes_per_voxel']:.1f} a voxel"),
        ("least bytes", f"{figures['least_bytes_per_voxel']} a voxel"),
        ("bound by bytes", f"{figures['bound_voxels_per_second'] / 1e9:.3g} Gvoxel/s"),
        (
            "peak memory",
            f"{figures['peak_bytes'] / 2**30:.2f} of {figures['room_bytes'] / 2**30:.1f} GiB",
        ),
        ("kernels", str(figures["kernels"])),
        ("compiled in", f"{figures['compile_seconds']:.0f} s"),
    ):
        table.add_row(name, value)
    yield table
    lines = Table("kernel", "runs", "bytes a voxel", title="kernels that move most")
    for line in figures["largest"]:
        lines.add_row(line["name"], str(line["runs"]), f"{line['bytes'] / voxels:.1f}")
    yield lines
    yield "each kernel counts what it reads once: one that reads a window relies on the caches"
