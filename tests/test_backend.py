"""Without a device every verb that computes says so, and blames no file."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from osteojax.backend import check_devices
from osteojax.errors import UserError
from osteojax.export import load, write

ERRORS = [RuntimeError("Unable to initialize backend 'cuda'"), AssertionError()]


@pytest.fixture(params=ERRORS, ids=["no GPU", "no plugin"])
def no_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def fail() -> None:
        raise request.param

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    return r"no device to compute on: .*cuda.*JAX_PLATFORMS=cpu"


def test_no_device_is_said(no_device: str) -> None:
    with pytest.raises(UserError, match=no_device):
        check_devices()


def test_an_exported_model_is_not_blamed(exported_model: Path, no_device: str) -> None:
    with pytest.raises(UserError, match=no_device):
        load.ExportedModel(exported_model)


def test_a_run_is_not_blamed(tmp_path: Path, no_device: str) -> None:
    (tmp_path / "config.json").write_text('{"config": {}}')
    with pytest.raises(UserError, match=no_device):
        write.load_run(tmp_path)
