"""The Python environment that has the compilers for accelerators.

It is not `.venv`: an installed plugin is started by JAX in every program, whether it is wanted or
not. `make compile-env` makes `.venv-compile`, which has the compilers and takes all else from
`.venv`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.configs import SHIPPED
from osteojax.errors import UserError

PACKAGES = {"cuda": ("jax_cuda12_plugin", "jax_plugins.xla_cuda12"), "tpu": ("libtpu",)}
"""Modules of the compiler of each platform."""

PYTHON = "OSTEOJAX_COMPILE_PYTHON"
"""Environment variable with another interpreter that has the compilers."""

VARIABLES = {
    "JAX_PLATFORMS": "cpu",  # constants are made on the host
    "TPU_SKIP_MDS_QUERY": "1",  # there is no cloud machine to ask for its metadata
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process would wait for a chip's lock
    "TF_CPP_MIN_LOG_LEVEL": "3",  # messages about drivers that are absent
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}

NOISE = (
    *(b"cudart_stub.cc", b"before absl::InitializeLog", b"unexpected worker hostname"),
    *(b"could not determine TPU accelerator type", b"before InitGoogle"),
    *(b"=== Source Location Trace", b"libtpu_init_utils.cc"),
)
"""What the compilers say on stderr because no accelerator is attached."""


def has_compiler(platform: str) -> bool:
    """Whether this interpreter has the compiler of "cuda" or "tpu"."""
    return all(_found(module) for module in PACKAGES[platform])


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package it is in
        return False


def set_variables() -> None:
    """Sets what the compilers read when JAX is imported, before it is."""
    os.environ.update(VARIABLES)


def run_elsewhere(command: Sequence[str], platform: str) -> int:
    """Runs `osteojax` with some arguments in the compile environment; its exit status.

    Raises:
      UserError: there is none, or it lacks the compiler.
    """
    python = Path(os.environ.get(PYTHON) or SHIPPED / ".venv-compile" / "bin" / "python")
    itself = python.exists() and python.absolute() == Path(sys.executable).absolute()
    if itself or not python.exists():
        missing = "jax-cuda12-plugin" if platform == "cuda" else "libtpu"
        raise UserError(
            f"the compiler for {platform} is not installed ({missing}). Run `make compile-env` in "
            f"{SHIPPED} once, or set {PYTHON} to an interpreter that has it."
        )
    with subprocess.Popen([python, "-m", "launch.cli", *command], stderr=subprocess.PIPE) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if not any(noise in line for noise in NOISE):
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
    return run.returncode
