"""Runs that earlier versions began continue in this one as they would have: the same draws, crops,
shifts and flips, the same steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from osteojax.train import loop
from tests.small_runs import fine_tuning, on_devices, pretraining
from tests.stored import UNFINISHED, UNFINISHED_VERSIONS, unpack
from tests.stored.write_unfinished import PATIENTS, SIZE, STOPPED, end_of
from tests.tiny_cohort import write_tiny_cohort


@pytest.fixture(scope="module", params=UNFINISHED_VERSIONS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`finetune`, `pretrain` and how each ended, of one version."""
    return unpack(request.param, tmp_path_factory.mktemp("unfinished"), UNFINISHED)


def test_every_version_is_small() -> None:
    assert UNFINISHED_VERSIONS
    for path in UNFINISHED.iterdir():
        assert path.stat().st_size < 300_000


@pytest.mark.parametrize(
    ("verb", "current"), [("finetune", fine_tuning), ("pretrain", pretraining)]
)
def test_a_run_with_crops_continues_as_it_would_have(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, current
) -> None:
    """The same batch, views and update at every step; only rounding may differ (another compiler
    or processor)."""
    pool = write_tiny_cohort(tmp_path / "pool", patients=PATIENTS, size=SIZE)
    workdir = Path(shutil.copytree(stored / verb, tmp_path / verb))
    shutil.copy(workdir / "manifest.json", pool)  # the folder as that version prepared it
    config = current()
    with config.unlocked():
        config.update(ConfigDict(json.loads((workdir / "config.json").read_text())["config"]))
    assert config.data.augment.crop_min_volume == 0.14
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(STOPPED)]
    # The validation at the end changes no parameter, and half of the time went into it.
    monkeypatch.setattr(loop._Run, "_validate", lambda self, step: None)
    with on_devices(1):
        loop.train(config, workdir, pool)
    found = end_of(workdir)
    with np.load(stored / f"{verb}.npz", allow_pickle=False) as arrays:
        expected = dict(arrays)
    for name, value in expected.items():
        print(name, float(np.abs(found[name] - value).max() / np.abs(value).max()))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
