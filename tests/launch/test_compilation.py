"""Where compiled programs are kept."""

from __future__ import annotations

import os
import subprocess
import sys

from launch.compilation import keep_compiled_programs

PROGRAM = """
from launch.compilation import keep_compiled_programs
keep_compiled_programs()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0].sum() + jnp.fft.fft(x).real.sum())(jnp.ones((9, 9)))
print(sum("cache_hits" in event for event in hits))
"""


def test_a_second_process_finds_the_program(tmp_path):
    """Everything is kept here, so that a small program shows it."""
    environment = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"} | {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] > 0
    (folder,) = (tmp_path / "osteojax" / "compiled").iterdir()
    assert any(folder.iterdir())


def test_the_user_s_folder_wins_and_no_home_is_no_error(tmp_path):
    chosen = {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}
    keep_compiled_programs(chosen)
    assert chosen == {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}
    (tmp_path / "file").write_text("not a folder")
    unwritable = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    keep_compiled_programs(unwritable)
    assert "JAX_COMPILATION_CACHE_DIR" not in unwritable
