"""A GPU's or TPU's results beside the CPU's: `JAX_PLATFORMS=cuda,cpu pytest -m device`.

The same checks run in `osteojax benchmark gpu`, which needs no pytest.
"""

from __future__ import annotations

import jax
import pytest

from launch.benchmarks.device_checks import CHECKS, LIMITS


@pytest.mark.device
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_device_computes_what_the_cpu_does(check) -> None:
    if jax.devices()[0].platform == "cpu":
        pytest.fail("no device: run with JAX_PLATFORMS=cuda,cpu")
    assert check() <= LIMITS[check.__name__]


def test_every_check_has_a_limit() -> None:
    assert {check.__name__ for check in CHECKS} == set(LIMITS)
