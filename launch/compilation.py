"""Caches compiled programs between runs, so that only the first start of a verb compiles.

The folder is the user's cache (`$XDG_CACHE_HOME/osteojax`, else `~/.cache/osteojax`), with one
folder per kind of CPU: machines may share a home, and a program compiled for one CPU may contain
instructions that another lacks. JAX's variables take precedence: JAX_COMPILATION_CACHE_DIR names
another folder, JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

SHORTEST_SECS = "0.2"
"""Programs that compile faster than this (in seconds) are not cached."""


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets JAX's cache variables where the user has not. Call before JAX is imported; processes
    started later inherit them."""
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    try:
        root = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "osteojax" / "compiled" / _cpu_kind()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # without a writable home, programs are not cached
        return
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", SHORTEST_SECS)


def _cpu_kind() -> str:
    """The architecture and a digest of the CPU's features."""
    able = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        kinds = ("flags", "Features", "model name")
        able = "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
    return f"{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:12]}"
