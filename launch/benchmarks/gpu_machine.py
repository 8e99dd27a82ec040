"""Parts of `osteojax benchmark gpu`: the card with its rates, and whether it computes right."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from launch.benchmarks import device_checks, measure, peaks
from launch.benchmarks.gpu_part import Sizes
from osteojax.train.parallel import DataParallel

PACKAGES = (
    *("flax", "optax", "orbax-checkpoint", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "torch", "triton"),
)
QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm"


def machine(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The environment; then the rates of matrix products and copies."""
    yield {"measurement": "environment", **measure.environment(*PACKAGES), "card": _card()}
    if sizes.smoke:
        peaks.MATRIX_EDGE["cpu"], peaks.COPY_BYTES["cpu"] = 256, 2**20
    mesh = DataParallel.create(num_devices=1).mesh
    for dtype in ("bfloat16", "float32"):
        rate = peaks.matrix_flops_per_second(mesh, dtype, sizes.repeats)
        yield {"measurement": "matrix product", "dtype": dtype, "flops_per_second": rate}
    rate = peaks.copy_bytes_per_second(mesh, sizes.repeats)
    yield {"measurement": "copy", "bytes_per_second": rate}


def _card() -> str:
    """What the driver's own tool says of the first GPU; "" where it is not there."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return ""
    command = [tool, f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip().partition("\n")[0] if said.returncode == 0 else ""


def checks(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The device's results beside the CPU's, which the tests compare with others.

    Raises:
      RuntimeError: one is further off than it may be; after all of them.
    """
    wrong = []
    for check in device_checks.CHECKS:
        name, error = check.__name__.replace("_", " "), check()
        limit = device_checks.LIMITS[check.__name__]
        if not error <= limit:  # NaN is wrong, too
            wrong.append(f"{name} is {error:.2g} off")
        said = error if math.isfinite(error) else None  # JSON has no NaN
        yield {"measurement": "check", "check": name, "error": said, "limit": limit}
    if wrong:
        raise RuntimeError("; ".join(wrong))
