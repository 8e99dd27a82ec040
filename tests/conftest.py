"""Eight fake CPU devices for every test, and the place of the real data."""

from __future__ import annotations

import atexit
import gc
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

# Tests train the same few models again and again; each program is compiled once a session (the
# workers of pytest-xdist inherit the folder).
_CACHE = tempfile.TemporaryDirectory(prefix="osteojax-test-cache-")
atexit.register(_CACHE.cleanup)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import matplotlib  # noqa: E402
import pytest  # noqa: E402

from tests.made_once import made_once  # noqa: E402

matplotlib.use("Agg")

# Most of the fast suite's time went into compiling programs that run for milliseconds. Without
# LLVM's optimisation and XLA's fusion emitters that takes a fifth; results differ by rounding.
FAST_COMPILATION = " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Compiles fast in the fast suite; slow tests run what users run. JAX has not started yet."""
    if "not slow" in config.option.markexpr and FAST_COMPILATION not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += FAST_COMPILATION


def pytest_collection_finish() -> None:
    """Garbage collection no longer walks through what imports have made, which stays anyway:
    tracing a model makes a million short-lived objects.

    Thresholds stay. With rarer collections, one that had more to finalise came inside another
    test's `ast.parse`, which CPython 3.11 does not bear (python/cpython#106905).
    """
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real CTs with masks; OSTEOJAX_TEST_DATA overrides where it is looked for."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("OSTEOJAX_TEST_DATA", default))
    if not (folder / "totalsegmentator").is_dir():
        pytest.skip(f"real CTs not found at {folder}; set OSTEOJAX_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 40 patients with a learnable signal, written without any CT."""
    from tests.tiny_cohort import write_tiny_cohort

    return write_tiny_cohort(tmp_path_factory.mktemp("tiny") / "pool", patients=40)


@pytest.fixture(scope="session")
def fine_tuned(tiny_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of a small fine-tuning run on `tiny_pool`."""
    from osteojax.train import loop
    from tests.small_runs import fine_tuning

    config = fine_tuning("--config.optim.learning_rate=0.01")
    return made_once(tmp_path_factory, "fine_tuned", lambda out: loop.train(config, out, tiny_pool))


@pytest.fixture(scope="session")
def exported_model(fine_tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported folder of `fine_tuned`."""
    from osteojax.export.write import export_model

    return made_once(tmp_path_factory, "model", lambda out: export_model(fine_tuned, out))


@pytest.fixture(scope="session")
def body_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_pool` with boxes that are no cubes and have a margin."""
    from tests.tiny_cohort import write_tiny_cohort

    folder = tmp_path_factory.mktemp("tiny") / "body_pool"
    return write_tiny_cohort(folder, patients=20, shape=(12, 14, 16), margin=2)


@pytest.fixture(scope="session")
def fine_tuned_body(body_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of a run that sees crops of 3 voxels, the box, and the body's numbers. Its weights
    are random, because a training step with two encoders takes long to compile."""
    from tests.small_runs import random_workdir, seeing

    return made_once(
        tmp_path_factory,
        "fine_tuned_body",
        lambda out: random_workdir(seeing("both"), out, body_pool),
    )


@pytest.fixture(scope="session")
def exported_body_model(fine_tuned_body: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported folder of `fine_tuned_body`."""
    from osteojax.export.write import export_model

    return made_once(tmp_path_factory, "body_model", lambda out: export_model(fine_tuned_body, out))
